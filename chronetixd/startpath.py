"""Removes the folder in which a program was started from its import path.

``python -m`` puts that folder first on the path: a user who can write there could have the daemon run a ``json.py`` of
that user, and root's daemon run it as root. The daemon starts its processes with ``-P``; this module serves its own
start. It imports nothing that could come from that folder.
"""

from __future__ import annotations

import os
import sys

SAFE = "-P"
"""The interpreter's option that keeps the start folder off the import path."""


def forget_start_folder() -> None:
    """Remove the start folder from the import path of this process. A ``__main__`` calls this first.

    If this package itself was found in that folder, as in a tree that is not installed, the folder is kept as the last
    one, and is added to PYTHONPATH for the processes that this one starts.
    """
    if sys.flags.safe_path:
        return
    start = sys.path.pop(0)
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if ours not in sys.path and ours == os.path.abspath(start):
        sys.path.append(ours)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), ours)))
