"""The folder in which a program was started has no say in what it imports.

``python -m`` puts that folder first on the path: whoever can write there would have a ``json.py`` of his own run by the
daemon, and as root by root. The processes that the daemon starts are started with ``-P``; this is for its own start.
Imports nothing that could come from that folder.
"""

from __future__ import annotations

import os
import sys

SAFE = "-P"
"""The interpreter's option that leaves the start folder off the path."""


def forget_start_folder() -> None:
    """Take the start folder off the path of this process; the first thing that a ``__main__`` does.

    Where this package itself was found there, as in a tree that is not installed, the folder stays, last, and is named
    in PYTHONPATH for the processes to come.
    """
    if sys.flags.safe_path:
        return
    start = sys.path.pop(0)
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if ours not in sys.path and ours == os.path.abspath(start):
        sys.path.append(ours)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), ours)))
