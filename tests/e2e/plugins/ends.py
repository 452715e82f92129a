"""Plugins that leave at their end what an orderly end takes care of. ``params.into`` is a folder for what they tell."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path


def told(folder: str, name: str, text: str = "") -> None:
    """By a file of its own: nothing has to be flushed for it."""
    (Path(folder) / name).write_text(text)


def numbers(ctx):
    try:
        yield from range(100)
    finally:
        told(ctx.params["into"], "numbers-closed")


def endless(ctx):
    try:
        while True:
            yield 1
    finally:
        told(ctx.params["into"], "endless-closed")


class Sink:
    """Takes a hundred frames and leaves its things as they are."""

    def on_start(self, ctx):
        self.into = ctx.params["into"]
        self.begin()

    def begin(self):
        """What the subclass leaves."""

    def on_frame(self, frame, ctx):
        """Takes it."""


class KilledAtItsEnd(Sink):
    def begin(self):
        atexit.register(os.kill, os.getpid(), signal.SIGKILL)

    def on_stop(self):
        return "done"


class Writes(Sink):
    def begin(self):
        self.file = open(f"{self.into}/lines-{type(self).__name__}", "w")  # noqa: SIM115

    def on_frame(self, frame, ctx):
        self.file.write(f"{frame.value()}\n")


class WritesInACircle(Writes):
    def begin(self):
        super().begin()
        self.this = self


class WritesForItsModule(Writes):
    kept: list[Writes] = []

    def begin(self):
        super().begin()
        self.kept.append(self)


class Leaves(Sink):
    """A thread that is no daemon, an atexit handler, a temporary folder, a finalizer, an object with ``__del__``."""

    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        told(self.into, "folder", self.folder.name)
        atexit.register(told, self.into, "atexit")
        weakref.finalize(self, told, self.into, "finalizer")
        self.stop = threading.Event()
        threading.Thread(target=self.wait).start()

    def wait(self):
        self.stop.wait()
        told(self.into, "thread")

    def on_stop(self, ctx):
        threading.Timer(0.1, self.stop.set).start()

    def __del__(self):
        told(self.into, "del")


class Shares(Sink):
    """Shared memory and a semaphore, by name."""

    def begin(self):
        from multiprocessing import Semaphore, shared_memory

        self.memory, self.semaphore = shared_memory.SharedMemory(create=True, size=64), Semaphore(1)
        told(self.into, "memory", self.memory.name)


class Fails(Sink):
    def on_frame(self, frame, ctx):
        raise ValueError("not this one")


class Polls(Sink):
    """Its thread has no end."""

    def begin(self):
        threading.Thread(target=self.poll, name="poller").start()

    def poll(self):
        while True:
            time.sleep(0.1)


class Saves(Sink):
    def begin(self):
        atexit.register(self.save)

    def save(self):
        time.sleep(1000)


class Clings(Sink):
    def __del__(self):
        time.sleep(1000)


class ClingsForItsModule(Sink):
    kept: list[Sink] = []

    def begin(self):
        self.kept.append(self)

    def __del__(self):
        while True:
            pass


class Never:
    """Its task is not to be cancelled."""

    async def on_start(self, ctx):
        self.task = asyncio.create_task(self.never())

    async def never(self):
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)

    async def on_frame(self, frame, ctx):
        """Takes it."""

    async def on_stop(self, ctx):
        return "done"


class Blocks(Never):
    """Its task blocks the event loop when it is cancelled."""

    async def never(self):
        try:
            await asyncio.sleep(1000)
        finally:
            time.sleep(1000)


class Iterates(Never):
    """Its generator does not end when it is closed."""

    async def on_start(self, ctx):
        self.items = self.count()
        await anext(self.items)

    async def count(self):
        try:
            yield 1
        finally:
            await asyncio.sleep(1000)
