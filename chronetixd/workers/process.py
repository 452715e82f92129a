"""One worker's process: its control socket, its pipes, its pidfd, and the tree of processes that it has started.

This class moves bytes, descriptors and signals, and decides nothing. What the worker wrote before it died is delivered
before its exit, and its exit is reported only when nothing is left of its tree. Socket, pipes and tree are one class
because of that order: each of them may be the last to end.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from chronetix.protocol.contract.types import ResourceClaims
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.messages import MAX_FRAME, SHARED_PROCESS, Assign, Log, Reattached, WireMessage, WorkerMessage
from chronetixd.core.death import ExitRecord, HeldFrames, OutOfMemory, last_lines, out_of_memory
from chronetixd.core.deliveries import Deliveries
from chronetixd.core.token_bucket import TokenBucket
from chronetixd.core.worker import Exit
from chronetixd.linux import proc
from chronetixd.linux.cgroups import Leaf
from chronetixd.linux.pidfd import Process, Usage
from chronetixd.linux.pipes import pipes_again, two_pipes
from chronetixd.loop.connection import Connection, PackedConnection
from chronetixd.loop.inspector import harmless
from chronetixd.loop.shares import ShareOwner
from chronetixd.packing import Bag, Packed, Unbag
from chronetixd.records.log_record import LINES_A_SECOND, LINES_AT_ONCE
from chronetixd.records.logs import Logs
from chronetixd.workers.launcher import Launcher, SpawnRequest
from chronetixd.workers.orphans import Marks, PackedMarks
from chronetixd.workers.output import TELL_NS, Output, PackedOutput
from chronetixd.workers.pool import OutputPipes, Spare, open_streams
from chronetixd.workers.sandbox import Sandboxes
from chronetixd.workers.tree import Tree, discard, marks_of

SILENT_EXIT_S = 10.0
"""How long a worker may live on after it has closed its control socket. When many workers end at once, unmapping memory
takes a busy machine seconds, and a worker that ends properly must not be killed for that."""

MAX_LAUNCHERS_LOST = 3
"""How many launchers may end while they are asked for one worker, before that worker counts as the cause."""

CANCELLED = "its start was cancelled"


class PackedProcess(Packed, frozen=True):
    """A worker's process. Without ``pidfd`` there is no process: it has ended or, with ``asked``, was not started
    yet."""

    pid: int = 0
    asked: bool = False
    attached: bool = False
    incarnation: int = 0
    started_unix_ns: int = 0
    born_ns: int = 0
    features: tuple[str, ...] = ()
    fault: dict[str, Any] | None = None
    progress: dict[str, int] | None = None
    pidfd: int | None = None
    leaf: str | None = None
    marks: PackedMarks | None = None
    oom_before: int | None = None
    killed_with: str = ""
    unlogged: tuple[int, int] = (0, 0)
    connection: PackedConnection | None = None
    stdout: PackedOutput | None = None
    stderr: PackedOutput | None = None


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What a worker process reports. ``on_exit`` is the last call: everything that the worker sent was delivered
    before, and no process that it started lives."""

    on_spawned: Callable[[str, int], None]
    on_spawn_failed: Callable[[str, str], None]
    on_message: Callable[[str, WireMessage, list[int]], None]
    on_end: Callable[[str, ChronetixError | None], None]
    on_exit: Callable[[str, Exit], None]


MAX_LOG_ITEMS = 4096
"""Up to how many items the fields of a log record may have; larger fields are left out."""


class WorkerProcess:
    """The process of ``node`` of ``flow``. It is a subscriber of the event bus."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        flow: str,
        node: str,
        logs: Logs,
        callbacks: Callbacks,
        sandboxes: Sandboxes,
        claims: ResourceClaims,
        deliveries: Deliveries,
        max_frame: int = MAX_FRAME,
        *,
        attached: bool = False,
    ) -> None:
        self.flow = flow
        self.node = node
        self.deliveries = deliveries
        """What the event bus counts for the node."""
        self.attached = attached
        """Whether the process starts by itself and attaches. It has no control group, and its output is its own."""
        self.pid = 0
        self.started_unix_ns = 0
        self.incarnation = 0
        """How many workers its node had before this one."""
        self.features: tuple[str, ...] = ()
        """The features that the worker named in its hello."""
        self.fault: dict[str, Any] | None = None
        self.progress: dict[str, int] | None = None
        self._loop = loop
        self._logs = logs
        self._callbacks = callbacks
        self._sandboxes = sandboxes
        self._claims = claims
        self.exit_pending = False
        """Whether the worker's exit, or the failure of its start, is still to be reported."""
        self._request: tuple[Launcher, SpawnRequest] | None = None
        self._spawn_again: Callable[[], None] = lambda: None
        """Makes the request to the launcher once more."""
        self._launchers_lost = 0
        """How many launchers have ended while they were asked for this worker."""
        self._cancelled = False
        """Whether the worker is to end before it was started."""
        self._process: Process | None = None
        self._leaf: Leaf | None = None
        self._tree: Tree | None = None
        self._pipes: tuple[int, int] = (-1, -1)
        self._started_ns = time.monotonic_ns()
        self._oom_before: int | None = None
        self._killed_with = ""
        self._usage: Usage | None = None
        self._out_of_memory: OutOfMemory = "unknown"
        self._connection: Connection | None = None
        self._stdout: Output | None = None
        self._stderr: Output | None = None
        self._max_frame = max_frame
        self._pace = TokenBucket(LINES_A_SECOND, LINES_AT_ONCE, time.monotonic_ns())
        self._unlogged = (0, 0)
        """Characters and records that were dropped because the plugin logged too fast, and that are not reported
        yet."""
        self._unlogged_told = 0

    def spawn(self, launcher: Launcher, argv: Sequence[str], env: Mapping[str, str], cwd: str, user: str = "") -> None:
        """Ask ``launcher`` to start the process. Raises OSError when descriptors or control groups have run out, or the
        kernel refuses the limits; then nothing is left."""
        streams, (control, stdout, stderr) = open_streams()
        try:
            self._leaf, group = self._sandboxes.new_cgroup(self._claims)
        except OSError:
            streams.close()
            for fd in (control, stdout, stderr):
                os.close(fd)
            raise
        self._connect(streams)
        self.exit_pending = True
        self._spawn_again = partial(self.spawn, launcher, argv, env, cwd, user)
        request = SpawnRequest(
            name=self.node,
            argv=argv,
            env=env,
            cwd=cwd,
            user=user,
            control=control,
            stdout=stdout,
            stderr=stderr,
            on_spawned=self._spawned,
            on_failed=self._spawn_failed,
            on_lost=self._launcher_lost,
            group=group,
            data_limit=self._sandboxes.data_limit(self._claims),
        )
        self._request = launcher, request
        launcher.spawn(request)

    def adopt(self, spare: Spare, env: Mapping[str, str], cwd: str) -> None:
        """Make ``spare`` this worker. The spare worker has sent hello already, so the message that follows is sent at
        once. Raises OSError when the kernel refuses the limits; then the caller still owns the spare worker."""
        self._sandboxes.limit(spare.process.pid, spare.leaf, self._claims)
        self._leaf = spare.leaf
        self._connect(spare.streams)
        self.send(Assign(name=self.node, env=dict(env), cwd=cwd))
        spare.process.on_exit = self._exited
        self._begin(spare.process)
        self.read_arrived()

    def await_attach(self) -> None:
        """Wait for the process, which starts by itself, until :meth:`attach` or :meth:`signal` is called."""
        self.exit_pending = True

    def attach(self, sock: socket.socket, pid: int, pidfd: int) -> None:
        """Take over ``sock``, on which process ``pid`` has connected, and its ``pidfd``. Nothing is read before
        :meth:`start_reading`."""
        self._connection = self._connection_on(sock)
        self._watch(self._process_of(pid, pidfd), ())

    def start_reading(self) -> None:
        """Read what an attached worker sends."""
        assert self._connection is not None
        self._connection.start()

    def release(self) -> None:
        """End an attached worker, whose process may live on, by closing its connection. Does nothing if the process has
        ended: then its exit is being reported."""
        process, tree = self._process, self._tree
        if process is None or tree is None or process.exited:
            return
        self.read_arrived()
        process.release()
        self._process = None
        self._out_of_memory = "no"
        tree.end(partial(self._gone, Exit(attached=True)))

    def _process_of(self, pid: int, pidfd: int) -> Process:
        return Process(self._loop, pid, pidfd, self._exited, ours=not self.attached)

    @property
    def asked(self) -> bool:
        """Whether the process is to be started, or to attach, and has not done so."""
        return self.exit_pending and self._tree is None

    @property
    def ending(self) -> bool:
        """Whether the process has ended, and processes that it started have not."""
        return self.exit_pending and self._tree is not None and self._process is None

    def packed(self, bag: Bag) -> PackedProcess:
        """Return all of the state; descriptors go into ``bag``. The worker must not be ``ending``. For a worker that is
        only ``asked`` for nothing else is packed: the next image asks for it again."""
        told = PackedProcess(
            pid=self.pid,
            asked=self.asked,
            attached=self.attached,
            incarnation=self.incarnation,
            started_unix_ns=self.started_unix_ns,
            born_ns=self._started_ns,
            features=self.features,
            fault=self.fault,
            progress=self.progress,
            oom_before=self._oom_before,
            killed_with=self._killed_with,
            unlogged=self._unlogged,
        )
        if self.asked:
            return told
        outputs = {
            name: output.packed(bag)
            for name, output in (("stdout", self._stdout), ("stderr", self._stderr))
            if output is not None
        }
        if self._process is None or self._tree is None:
            return msgspec.structs.replace(told, **outputs)
        return msgspec.structs.replace(
            told,
            pidfd=bag.put(self._process.pidfd),
            leaf=None if self._leaf is None else str(self._leaf.path),
            marks=self._tree.marks.packed(),
            connection=self._connection.packed(bag) if self._connection and not self._connection.closed else None,
            **outputs,
        )

    def unpack(self, packed: PackedProcess, bag: Unbag) -> None:
        """Take over the state of ``packed``. Raises OSError, ValueError."""
        self.pid, self.incarnation, self.started_unix_ns = packed.pid, packed.incarnation, packed.started_unix_ns
        self.features, self.fault, self.progress = packed.features, packed.fault, packed.progress
        self._unlogged = packed.unlogged
        self.attached = packed.attached
        if packed.connection is not None:
            self._connection = self._connection_on(socket.socket(fileno=bag.take(packed.connection.fd)))
            self._connection.unpack(packed.connection, bag)
        self._stdout = self._unpacked("stdout", packed.stdout, bag)
        self._stderr = self._unpacked("stderr", packed.stderr, bag)
        self.exit_pending = packed.pidfd is not None
        if packed.pidfd is not None and packed.marks is not None:
            self._leaf = self._sandboxes.groups.leaf_at(packed.leaf)
            marks = Marks.of(self.flow, self.node, packed.marks)
            self._follow(self._process_of(packed.pid, bag.take(packed.pidfd)), marks)
            self._started_ns, self._oom_before, self._killed_with = (
                packed.born_ns,
                packed.oom_before,
                packed.killed_with,
            )

    def _unpacked(self, stream: str, packed: PackedOutput | None, bag: Unbag) -> Output | None:
        if packed is None:
            return None
        output = self._output(stream, -1 if packed.fd is None else bag.take(packed.fd))
        output.unpack(packed)
        return output

    def expect(self, pid: int, pidfd: int) -> None:
        """Watch the process ``pid``, which an earlier daemon has started and which will connect by itself. Takes over
        ``pidfd``."""
        self._leaf = None if self.attached else self._sandboxes.groups.leaf_of(pid)
        self._watch(self._process_of(pid, pidfd), ())
        age_ns = proc.age_ns(pid)
        self.started_unix_ns -= age_ns
        self._started_ns -= age_ns

    def connect(self, sock: socket.socket, pipes: Sequence[int] = ()) -> None:
        """Use ``sock``, on which the worker has connected, and take it over. The worker continues with ``pipes``, the
        reading ends of its stdout and stderr, or gets new ones. Raises OSError when descriptors have run out; then the
        caller still owns the socket. The pipes stay the caller's in any case."""
        if self.attached:
            self._reconnect_attached(sock)
            return
        out, out_theirs, err, err_theirs = pipes_again(*pipes) if pipes else two_pipes()
        self._connect(OutputPipes(sock, out, err))
        assert self._connection is not None
        assert self._tree is not None
        self._tree.marks.pipes |= {os.fstat(fd).st_ino for fd in (out, err)}
        self._connection.send(Reattached(), [out_theirs, err_theirs], give=True)
        self._connection.start()

    def _reconnect_attached(self, sock: socket.socket) -> None:
        """Use ``sock`` for an attached worker: stdout and stderr stay its own, and what it gets for them is
        /dev/null."""
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._connection = self._connection_on(sock)
        self._connection.send(Reattached(), [null, os.dup(null)], give=True)
        self._connection.start()

    def _connect(self, streams: OutputPipes) -> None:
        self._pipes = streams.stdout, streams.stderr
        self._stdout = self._output("stdout", streams.stdout)
        self._stderr = self._output("stderr", streams.stderr)
        self._connection = self._connection_on(streams.control)

    def _connection_on(self, control: socket.socket) -> Connection:
        return Connection(
            self._loop,
            control,
            WorkerMessage,
            on_message=self._received,
            on_end=self._disconnected,
            max_frame=self._max_frame,
            who=ShareOwner("worker", self.flow),
        )

    def set_callbacks(self, callbacks: Callbacks) -> None:
        """Report to ``callbacks`` from now on."""
        self._callbacks = callbacks

    @property
    def backlog(self) -> int:
        """How many bytes wait to be sent to the worker."""
        return self._connection.backlog if self._connection else 0

    @property
    def alive(self) -> bool:
        """Whether there is a process that is not reaped."""
        return self._process is not None

    @property
    def pidfd(self) -> int:
        """The pidfd of the process, which must be alive. This object keeps owning it."""
        assert self._process is not None
        return self._process.pidfd

    @property
    def stderr_tail(self) -> list[str]:
        """The last lines of the worker's stderr."""
        return list(self._stderr.tail) if self._stderr else []

    def send(self, message: WireMessage, descriptors: Sequence[int] = (), *, give: bool = False) -> None:
        """Queue ``message``. With ``give`` its descriptors are closed once sent; otherwise the caller keeps owning
        them."""
        if self._connection is not None:
            self._connection.send(message, descriptors, give=give)
        elif give:
            for fd in descriptors:
                os.close(fd)

    def logged(self, record: Log) -> None:
        """Log ``record`` of the plugin. Records beyond the rate that holds for printed lines are dropped, counted and
        reported."""
        now = time.monotonic_ns()
        if not self._pace.left(now):
            size, count = self._unlogged
            self._unlogged = size + len(record.message), count + 1
            return
        self._pace.take(1)
        if now - self._unlogged_told >= TELL_NS:
            self._unlogged_told = now
            self._tell_unlogged()
        fields, items = record.fields, self._connection.items if self._connection is not None else 0
        if items > MAX_LOG_ITEMS:  # measuring them would already take too long
            fields = {"left_out": f"fields of {items} items"}
        self._logs.logged(self.flow, self.node, self.pid, record.level, record.message, record.unix_ns, fields)

    def _tell_unlogged(self) -> None:
        (size, count), self._unlogged = self._unlogged, (0, 0)
        if count:
            self._logs.dropped(self.flow, self.node, "log", size, count)

    def read_arrived(self) -> None:
        """Deliver all messages that have arrived by now."""
        if self._connection is not None:
            self._connection.drain_input()

    def signal(self, *, kill: bool) -> None:
        """Send SIGTERM to the worker's process group or, with ``kill``, SIGKILL to its whole tree. A worker that is not
        started yet is cancelled: it ends now, or as soon as the launcher that was asked for it has answered. Of an
        attached worker only the process itself is signalled; if that is shared with other work, or has no connection to
        this daemon, the worker ends without a signal."""
        if self._tree is not None and self.attached and not self._may_be_signalled:
            self._end_shared(kill=kill)
        elif self._tree is not None:
            self._killed_with = "SIGKILL" if kill else "SIGTERM"
            self._tree.signal(kill=kill)
        elif self._request is not None:
            self._cancelled = True
            launcher, request = self._request
            if launcher.withdraw(request):
                self._spawn_failed(CANCELLED)
        elif self.asked and self.attached:
            self._spawn_failed(CANCELLED)

    @property
    def _may_be_signalled(self) -> bool:
        connected = self._connection is not None and not self._connection.closed
        return connected and SHARED_PROCESS not in self.features

    def _end_shared(self, *, kill: bool) -> None:
        """End an attached worker without a signal: tell it by the end of its connection's other direction, or close the
        connection with ``kill``."""
        if kill or self._connection is None or self._connection.closed:
            self.release()
        else:
            self._connection.end_output()

    def _received(self, message: WireMessage, descriptors: list[int]) -> None:
        if descriptors and self._tree is not None:
            self._tree.marks.memory.update(os.fstat(fd).st_ino for fd in descriptors if harmless(fd))
        self._callbacks.on_message(self.node, message, descriptors)

    def _disconnected(self, fault: ChronetixError | None) -> None:
        self._callbacks.on_end(self.node, fault)

    def _launcher_lost(self, reason: str) -> None:
        """Ask the next launcher. A process that the ended launcher may have forked is killed. Sockets and control group
        are made anew, because the killed process may have written into them."""
        self._launchers_lost += 1
        if self._cancelled or self._launchers_lost >= MAX_LAUNCHERS_LOST:
            lost = f"{MAX_LAUNCHERS_LOST} launchers ended before they had started it; of the last one: {reason}"
            self._spawn_failed(CANCELLED if self._cancelled else lost)
            return
        self._close()
        discard(self._leaf)
        self._leaf = None
        try:
            self._spawn_again()
        except OSError as refused:
            self._spawn_failed(str(refused))

    def _spawned(self, pid: int, pidfd: int) -> None:
        self._begin(Process(self._loop, pid, pidfd, self._exited))

    def _begin(self, process: Process) -> None:
        self._watch(process, self._pipes)
        self._callbacks.on_spawned(self.node, process.pid)
        if self._connection is not None:
            self._connection.start()

    def _watch(self, process: Process, pipes: Sequence[int]) -> None:
        self.pid = process.pid
        self.exit_pending = True
        self.started_unix_ns = time.time_ns()
        self._started_ns = time.monotonic_ns()
        self._oom_before = self._sandboxes.oom_kills.recent()
        self._follow(process, marks_of(self.flow, self.node, process.pid, *pipes))

    def _follow(self, process: Process, marks: Marks) -> None:
        self._process = process
        orphans = None if self.attached else self._sandboxes.orphans
        self._tree = Tree(self._loop, orphans, process, self._leaf, marks)

    def _spawn_failed(self, reason: str) -> None:
        self.exit_pending = False
        self._request = None
        self._close()
        discard(self._leaf)
        self._callbacks.on_spawn_failed(self.node, reason)

    def _exited(self) -> None:
        self._sandboxes.turns.add(self._settle)

    def _settle(self) -> None:
        """Deliver what the worker wrote before it died, reap it, and end the processes that it has started."""
        process, tree = self._process, self._tree
        assert process is not None
        assert tree is not None
        self.read_arrived()
        ended = process.reap(with_group=False)._replace(attached=self.attached)
        self._process = None
        self._usage = process.usage
        suspect = ended.signal == "SIGKILL" and self._killed_with != "SIGKILL"
        kills = (tree.oom_kills, self._sandboxes.oom_kills.now()) if suspect else (None, None)
        self._out_of_memory = out_of_memory(ended, self._killed_with, kills[0], self._oom_before, kills[1])
        tree.end(partial(self._gone, ended))

    def exit_record(self, ended: Exit, held: Sequence[HeldFrames]) -> ExitRecord:
        """Return the record of the worker's exit, for ``on_exit``."""
        fault = self.fault or {}
        usage = self._usage or Usage(0, 0)
        return ExitRecord(
            flow=self.flow,
            node=self.node,
            incarnation=self.incarnation,
            unix_ns=time.time_ns(),
            pid=self.pid,
            **ended._asdict(),
            killed_with=self._killed_with,
            out_of_memory=self._out_of_memory,
            fault=f"{fault['phase']}: {fault['error']}: {fault['message']}" if fault else "",
            stderr=last_lines(self.stderr_tail),
            held=list(held),
            uptime_ns=time.monotonic_ns() - self._started_ns,
            cpu_ns=usage.cpu_ns,
            max_rss_bytes=usage.max_rss_bytes,
        )

    def _gone(self, ended: Exit) -> None:
        self.exit_pending = False
        self._close()
        self._callbacks.on_exit(self.node, ended)

    def _close(self) -> None:
        self._tell_unlogged()
        for output in (self._stdout, self._stderr):
            if output is not None:
                output.finish()
        if self._connection is not None:
            self._connection.close()

    def _output(self, stream: Any, fd: int) -> Output:
        return Output(
            self._loop,
            fd,
            lambda line: self._printed(stream, line),
            self._cut,
            pump=self._sandboxes.pump,
            on_dropped=lambda size, lines: self._logs.dropped(self.flow, self.node, stream, size, lines),
        )

    def _printed(self, stream: Any, line: str) -> None:
        self._logs.printed(self.flow, self.node, self.pid, stream, line)

    def _cut(self) -> None:
        self._logs.cut_lines += 1
