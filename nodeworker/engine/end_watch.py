"""A thread that notices from elsewhere that what should end blocks: a task that keeps the event loop from going on."""

from __future__ import annotations

import _thread
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from chronetix.nodeworker.engine import ending


class EndWatch:
    """A thread that says where the present one is, unless it is stopped within ``limit_s``."""

    def __init__(self, limit_s: float, blocked: Callable[[str], None]) -> None:
        self._due = time.monotonic() + limit_s
        self._blocked = blocked
        self._watched = threading.get_ident()
        self._stopped = False
        self._stir, self._running = _thread.allocate_lock(), _thread.allocate_lock()
        self._stir.acquire()
        self._running.acquire()
        try:
            _thread.start_new_thread(self._watch, ())
        except RuntimeError:  # there may be no more threads: then nobody says where it hangs
            self._running.release()

    def hurry(self, seconds: float) -> None:
        """There is no more time than this. From a signal handler."""
        self._due = min(self._due, time.monotonic() + seconds)
        self._wake()

    def stop(self) -> None:
        """It has not hung. Waits for the thread."""
        self._stopped = True
        self._wake()
        with self._running:
            pass

    def _wake(self) -> None:
        with suppress(RuntimeError):
            self._stir.release()

    def _watch(self) -> None:
        try:
            while not self._stopped:
                left = self._due - time.monotonic()
                if left <= 0:
                    frame = sys._current_frames().get(self._watched)
                    self._blocked(f"a task of the event loop {ending.place(frame)}")
                    return
                self._stir.acquire(timeout=left)
        finally:
            self._running.release()
