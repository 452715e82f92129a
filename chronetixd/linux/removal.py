"""Reports when a file may have been removed or replaced, by inotify(7) on its folder.

A report only means that something in the folder has changed: the receiver compares inode numbers. When the folder
itself is removed, the watch reports that and ends.
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
        """Begin to watch. Raises OSError, and nothing is left open then."""
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
        """Stop watching. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _changed(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 1 << 16)  # the content is ignored, because the kernel may have dropped events
        self._then()
