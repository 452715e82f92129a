"""Tells when a file may have been removed, or another one put into its place: inotify(7) on its folder.

A watch says no more than "look again": whoever is told compares inode numbers. A folder that is itself removed takes
the watch with it; that too is told.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_MOVED_FROM, _MOVED_TO, _DELETED = 0x40, 0x80, 0x200
_FOLDER_DELETED, _FOLDER_MOVED = 0x400, 0x800
_CHANGES = _MOVED_FROM | _MOVED_TO | _DELETED | _FOLDER_DELETED | _FOLDER_MOVED


class RemovalWatch:
    """Calls ``then`` in the loop after files of ``folder`` were removed, moved or replaced."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path, then: Callable[[], None]) -> None:
        """Raises OSError."""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if libc.inotify_add_watch(fd, os.fsencode(folder), _CHANGES) < 0:
            number = ctypes.get_errno()
            os.close(fd)
            raise OSError(number, os.strerror(number), str(folder))
        self._loop = loop
        self._fd = fd
        self._then = then
        loop.add_reader(fd, self._changed)

    def close(self) -> None:
        """Tell nothing more. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _changed(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 1 << 16)  # what has changed is looked for, not read: events may have been lost
        self._then()
