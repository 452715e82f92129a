"""Runs one plugin in a unit test: frames, ticks and messages in, and what it sent, published and logged out."""

from chronetix.nodeworker.inprocess.testing import Logged, Published, Run, run

__all__ = ["Logged", "Published", "Run", "run"]
