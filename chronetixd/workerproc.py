"""One worker's process: its control socket, its pipes, its pidfd.

Moves bytes, descriptors and signals; decides nothing. What the worker wrote before it died is handed on before its
exit.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from chronetixd.connection import Connection
from chronetixd.core.worker import Exit
from chronetixd.launch import Launcher, Request
from chronetixd.logs import Logs
from chronetixd.output import Output
from chronetixd.pidfd import Process
from protocol.errors import ChronetixError
from protocol.messages import MAX_FRAME, Message, WorkerMessage


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Whom a worker process tells. ``on_exit`` is the last call; everything it said before was handed on by then."""

    on_spawned: Callable[[str, int], None]
    on_spawn_failed: Callable[[str, str], None]
    on_message: Callable[[str, Message, list[int]], None]
    on_end: Callable[[str, ChronetixError | None], None]
    on_exit: Callable[[str, Exit], None]


class WorkerProcess:
    """The process of ``node`` of ``flow``. It is a subscriber of the bus."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        flow: str,
        node: str,
        logs: Logs,
        callbacks: Callbacks,
        max_frame: int = MAX_FRAME,
    ) -> None:
        self.flow = flow
        self.node = node
        self.pid = 0
        self.started_unix_ns = 0
        self.fault: dict[str, Any] | None = None
        self.progress: dict[str, int] | None = None
        self._loop = loop
        self._logs = logs
        self._callbacks = callbacks
        self._process: Process | None = None
        self._connection: Connection | None = None
        self._stdout: Output | None = None
        self._stderr: Output | None = None
        self._max_frame = max_frame

    def spawn(self, launcher: Launcher, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> None:
        """Ask ``launcher`` for it. Raises OSError when descriptors have run out; nothing is left then."""
        opened: list[int] = []
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            opened += (ours.detach(), theirs.detach())
            opened += os.pipe()
            opened += os.pipe()
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        control, remote, out_read, out_write, err_read, err_write = opened
        self._stdout = self._output("stdout", out_read)
        self._stderr = self._output("stderr", err_read)
        self._connection = Connection(
            self._loop,
            socket.socket(fileno=control),
            WorkerMessage,
            on_message=partial(self._callbacks.on_message, self.node),
            on_end=partial(self._callbacks.on_end, self.node),
            max_frame=self._max_frame,
        )
        launcher.spawn(
            Request(
                name=self.node,
                argv=argv,
                env=env,
                cwd=cwd,
                control=remote,
                stdout=out_write,
                stderr=err_write,
                on_spawned=self._spawned,
                on_failed=self._spawn_failed,
            )
        )

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent to it."""
        return self._connection.backlog if self._connection else 0

    @property
    def alive(self) -> bool:
        """It has a process that was not reaped."""
        return self._process is not None

    @property
    def stderr_tail(self) -> list[str]:
        """The last lines of its stderr."""
        return list(self._stderr.tail) if self._stderr else []

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Queue ``message``; the descriptors stay the caller's and must stay open until the flow ends."""
        if self._connection is not None:
            self._connection.send(message, descriptors)

    def signal(self, *, kill: bool) -> None:
        """SIGTERM, or SIGKILL if ``kill``, to its process group; nothing before it was spawned."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL if kill else signal.SIGTERM)

    def _spawned(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.started_unix_ns = time.time_ns()
        self._process = Process(self._loop, pid, pidfd, self._exited)
        self._callbacks.on_spawned(self.node, pid)
        if self._connection is not None:
            self._connection.start()

    def _spawn_failed(self, reason: str) -> None:
        self._close()
        self._callbacks.on_spawn_failed(self.node, reason)

    def _exited(self) -> None:
        """Everything it wrote before it died is in our buffers: read that first, then tell of its end."""
        process = self._process
        assert process is not None
        if self._connection is not None:
            self._connection.drain_input()
        ended = process.reap()
        self._process = None
        self._close()
        self._callbacks.on_exit(self.node, ended)

    def _close(self) -> None:
        for output in (self._stdout, self._stderr):
            if output is not None:
                output.finish()
        if self._connection is not None:
            self._connection.close()

    def _output(self, stream: Any, fd: int) -> Output:
        return Output(self._loop, fd, lambda line: self._printed(stream, line), self._cut)

    def _printed(self, stream: Any, line: str) -> None:
        self._logs.printed(self.flow, self.node, self.pid, stream, line)

    def _cut(self) -> None:
        self._logs.cut_lines += 1
