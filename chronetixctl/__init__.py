"""chronetixctl: the command line of chronetixd, and the client it is made of (``chronetixctl.client``).

Rules: data on stdout, messages on stderr; exit codes in ``exits``; nothing heavy is imported before a command
needs it, and nothing at all before Ctrl-C has its meaning.
"""

from __future__ import annotations


def main() -> None:
    """Run chronetixctl with this process's arguments and exit."""
    from chronetixd import interrupt

    interrupt.end_quietly()
    from chronetixctl.app import run

    raise SystemExit(run())
