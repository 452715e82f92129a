"""The client of the daemon that ``chronetixctl`` uses: calls and streams."""

from chronetixctl.client import Client

__all__ = ["Client"]
