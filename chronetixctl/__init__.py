"""chronetixctl: the command line of chronetixd, and the client of the control socket (``chronetixctl.client``).

Rules: data on stdout, messages on stderr; exit codes in ``exits``; a package that is slow to import is imported only by
the commands that need it, and nothing is imported before Ctrl-C is set to end the process quietly.
"""

from __future__ import annotations


def main() -> None:
    """Run chronetixctl with this process's arguments and exit."""
    from chronetixd import interrupt

    interrupt.end_quietly()
    from chronetixctl.app import run

    raise SystemExit(run())
