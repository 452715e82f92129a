"""A thread beside the loop, for work that may have to wait: disks, and files that a flow names.

One thread does its work in the order in which it was given. It shares no data with the loop, and returns results by
:attr:`post`, which has a function called in the loop. A disk that never answers stops this thread and nothing else:
nothing waits for it longer than the caller has said, also not the end of the process.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

LAST_WORDS_S = 10.0
"""How long the end of the daemon waits for a disk."""


class Aside:
    """Threads called ``name``: one, or several for work that needs no order. They start with the first work."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, threads: int = 1) -> None:
        self._loop = loop
        self._name = name
        self._most = threads
        self._work: deque[Callable[[], None]] = deque()
        self._change = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = self._busy = 0
        self._closing = False

    def do(self, work: Callable[[], None]) -> None:
        """Have ``work`` done in the thread. It must not raise."""
        with self._change:
            self._work.append(work)
            if len(self._work) > self._idle and len(self._threads) < self._most:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._change.notify_all()

    async def ask(self, work: Callable[[], T]) -> T:
        """Have ``work`` done in the thread, and return or raise what it does. It is also done if the caller is
        cancelled. When the result is there, the thread holds no reference to the work's objects any more, so that it
        never has to free them."""
        done: asyncio.Future[T] = self._loop.create_future()

        def told(result: T | None, reason: BaseException | None) -> None:
            if done.done():
                return
            if reason is None:
                done.set_result(result)  # type: ignore[arg-type]
            else:
                done.set_exception(reason)

        def working() -> None:
            nonlocal work
            mine, work = work, _nothing
            try:
                result = mine()
            except Exception as reason:
                failed = reason
                self.post(lambda: told(None, failed))
            else:
                del mine
                self.post(lambda: told(result, None))

        self.do(working)
        return await done

    def post(self, call: Callable[[], None]) -> None:
        """Have ``call`` made in the loop. Call this in the thread. Does nothing if the loop is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def settle(self, seconds: float) -> bool:
        """Wait at most ``seconds`` until all work is done, and return whether it is. This blocks the loop."""
        with self._change:
            return self._change.wait_for(lambda: not self._work and not self._busy, seconds)

    def close(self, seconds: float = LAST_WORDS_S) -> bool:
        """Have all work done within ``seconds`` and end the threads; return whether they have ended. Idempotent."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if self._threads:
            return False
        self._closing = False
        return True

    def _run(self) -> None:
        while True:
            with self._change:
                self._idle += 1
                self._change.notify_all()
                self._change.wait_for(lambda: self._work or self._closing)
                self._idle -= 1
                if not self._work:
                    return
                work = self._work.popleft()
                self._busy += 1
            try:
                work()
            finally:
                del work
                with self._change:
                    self._busy -= 1
                    self._change.notify_all()


def _nothing() -> Any:
    """Stands for work that is done."""
