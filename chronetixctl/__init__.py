"""chronetixctl: the command line of chronetixd, and the client it is made of (``chronetixctl.client``).

Rules: data on stdout, messages on stderr; exit codes in ``exits``; nothing heavy is imported before a command
needs it.
"""

from __future__ import annotations


def main() -> None:
    """Run chronetixctl with this process's arguments and exit."""
    from chronetixctl.app import run

    raise SystemExit(run())
