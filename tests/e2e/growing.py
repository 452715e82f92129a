"""Waits for what is written into files (inotify): who waits leaves the processors to those it waits for."""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Callable
from pathlib import Path

from chronetix.client import Client

LIBC = ctypes.CDLL(None, use_errno=True)
MODIFIED, MOVED_THERE, MADE = 0x2, 0x80, 0x100


def await_written(file: Path, holds: Callable[[], object], client: Client | None = None) -> None:
    """Until ``holds``, which is asked at once and after each write into ``file`` or another one of its folder. Raises
    what ``client`` does when its daemon ends meanwhile."""
    changes = LIBC.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if changes < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    try:
        if LIBC.inotify_add_watch(changes, os.fsencode(file.parent), MODIFIED | MOVED_THERE | MADE) < 0:
            raise OSError(ctypes.get_errno(), f"inotify_add_watch of {file.parent}")
        while not holds():
            if client is not None and client.fileno() < 0:
                raise ConnectionError("its daemon has ended, and the client has closed")
            (first, *_), _, _ = select.select([changes] if client is None else [client, changes], [], [])
            if first is client:
                client.call("version")
            else:
                os.read(changes, 1 << 16)
    finally:
        os.close(changes)
