"""Runs one plugin in a unit test: takes frames, ticks and messages, and returns what it sent, published and logged."""

from chronetix.nodeworker.inprocess.testing import Logged, Published, Run, run

__all__ = ["Logged", "Published", "Run", "run"]
