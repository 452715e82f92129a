"""``python -m chronetix.nodeworker.inprocess.command FLOW.json|-``: a compiled flow in one process, without a daemon.

stdout has each node's result and each route's counters (``-o json``: one object); logs and messages go to stderr. ^C or
SIGTERM ends the sources and lets the rest finish; a second one stops at once. Exit codes are in ``runner.EXITS``.

Before there is a flow to stop ^C just ends the process: while modules are imported nobody could catch an exception. So
nothing is imported here but what that takes, and a signal that ``chronetixctl run`` has held back comes through now.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


END_TIMEOUT = "CHRONETIX_END_TIMEOUT"
"""The daemon's setting of that name counts here too: seconds that the end of the process may take."""


def main() -> NoReturn:
    """Run the flow that the command line names, and end the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    from chronetix.nodeworker.engine import ending
    from chronetix.nodeworker.inprocess import runner

    code = runner.main(end_s=_limit_s())
    signal.signal(signal.SIGINT, _end)
    ending.Shutdown(code, _limit_s(), lambda _: None).run()


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _limit_s() -> float:
    try:
        return float(os.environ[END_TIMEOUT])
    except (KeyError, ValueError):
        return 5.0


if __name__ == "__main__":
    main()
