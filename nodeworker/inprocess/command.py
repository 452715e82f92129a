"""``python -m chronetix.nodeworker.inprocess.command FLOW.json|-``: a compiled flow in one process, without a daemon.

stdout has each node's result and each route's counters (``-o json``: one object); logs and messages go to stderr. ^C or
SIGTERM ends the sources and lets the rest finish; a second one stops at once. Exit codes: 0 finished, also because of
SIGTERM; 1 a node failed or the flow is not valid; 2 usage; 130 ^C, whatever there was to finish.

Before there is a flow to stop ^C just ends the process: while modules are imported nobody could catch an exception. So
nothing is imported here but what that takes, and a signal that ``chronetixctl run`` has held back comes through now.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def main() -> int:
    """Run the flow that the command line names; the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    from chronetix.nodeworker.inprocess import runner

    return runner.main()


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
