"""A client of the daemon: calls, streams, taps. What ``chronetixctl`` uses itself."""

from chronetixctl.client import Client

__all__ = ["Client"]
