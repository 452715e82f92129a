"""The launcher: a small process that has everything imported and forks workers from it.

The daemon starts it first (``python -P -m chronetix.nodeworker.process.launcher``, control socket in CHRONETIX_FD) and
asks it for workers with ``Spawn``. A worker becomes the daemon's own child; the launcher hands over its pidfd and
forgets it. Rules:

* one thread, always: forking is raw clone3, which libc's other threads would not survive;
* a new process is in its control group, if it has one, before its first instruction;
* it has its control socket, stdin (/dev/null), stdout and stderr, and no other descriptor; its own
  session; no signal handler or mask of ours; it dies with the daemon;
* little between fork and plugin: what is imported here is shared by all workers, and frozen so that collecting garbage
  does not copy it.

When its socket ends, the launcher ends.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import pwd
import select
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import msgspec

from chronetix.nodeworker import _clone
from chronetix.nodeworker.engine import ending
from chronetix.nodeworker.process import native_threads, worker
from chronetix.nodeworker.process.link import ControlLink
from chronetix.nodeworker.process.rehearsal import rehearse
from chronetix.protocol.messages import (
    PROTOCOL_VERSIONS,
    Assign,
    Fault,
    Hello,
    LauncherReady,
    Spawn,
    Spawned,
    SpawnFailed,
    ToWorker,
)

PRELOADED = ("numpy", "pyarrow", "pyarrow.ipc", "traceback", "importlib.util", "inspect", "difflib", "pkgutil")
"""Imported before the first fork if installed: what nearly every plugin imports, and what a worker needs late."""


def main() -> NoReturn:
    """Serve until the socket ends."""
    launcher = ForkServer(worker.inherited_socket(), os.getppid())
    launcher.prepare()
    launcher.serve()
    sys.exit(0)


REHEARSALS = 12
"""Enough for the interpreter to specialise what a worker runs."""

BATCH = 8
"""Spawns that are answered together: more would keep the daemon waiting for the first."""


class ForkServer:
    """Forks workers on request. ``daemon`` is the pid that they become children of."""

    def __init__(self, sock: socket.socket, daemon: int) -> None:
        self._sock = sock
        self._daemon = daemon
        self._link: ControlLink[Spawn] = ControlLink(sock, Spawn)

    def prepare(self) -> None:
        """Import, check, freeze; then tell the daemon that forks are cheap now."""
        with native_threads.single():
            for name in PRELOADED:
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(name)
        threads = os.listdir("/proc/self/task")
        if len(threads) != 1:
            names = ", ".join(_thread_name(thread) for thread in threads)
            raise RuntimeError(f"the launcher must have one thread to fork safely, an import started more: {names}")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.close(null)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        worker.catch_signals()  # workers inherit it; here a terminal's ^C means nothing: it is for the daemon
        rehearse(REHEARSALS)
        ending.share()
        gc.collect()
        gc.disable()
        gc.freeze()
        self._link.send(LauncherReady(pid=os.getpid()))

    def serve(self) -> None:
        """Answer each ``Spawn``. Returns when the daemon closes the socket; in a new worker never.

        What has arrived together is read together, then forked, then answered: whatever runs between two forks copies
        its pages once more.
        """
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        while True:
            try:
                batch = [self._link.receive()]
                while len(batch) < BATCH and poll.poll(0):
                    batch.append(self._link.receive())
            except EOFError:
                return
            answers = [self._spawn(spawn, descriptors) for spawn, descriptors in batch]
            for answer, pidfds in answers:
                self._link.send(answer, pidfds)
                _close(pidfds)

    def _spawn(self, spawn: Spawn, descriptors: list[int]) -> tuple[Spawned | SpawnFailed, list[int]]:
        """The answer, with the pidfd that goes with it."""
        try:
            program, identity = _program(spawn), _identity(spawn.user)
            pid, pidfd = _clone.fork(True, descriptors[3] if spawn.cgroup else -1)
        except OSError as reason:
            _close(descriptors)
            text = f"{reason.strerror}: {reason.filename or ('clone3 into its cgroup' if spawn.cgroup else 'clone3')}"
            return SpawnFailed(id=spawn.id, errno=reason.errno or 0, message=text), []
        if pid == 0:
            self._sock.detach()
            _become(spawn, program, identity, descriptors, self._daemon)
        _close(descriptors)
        return Spawned(id=spawn.id, pid=pid), [pidfd]


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _thread_name(thread: str) -> str:
    with open(f"/proc/self/task/{thread}/comm") as comm:
        return comm.read().strip()


def _program(spawn: Spawn) -> str:
    """The file to execute, "" for a warm fork. Raises FileNotFoundError or PermissionError before anything is
    forked."""
    if not spawn.argv:
        return ""
    name = spawn.argv[0]
    path = os.path.join(spawn.cwd, name) if os.path.dirname(name) else name
    found = shutil.which(path, path=spawn.env.get("PATH", os.environ.get("PATH")))
    if found is not None:
        return os.path.abspath(found)
    if os.path.exists(path):
        raise PermissionError(13, "not executable", path)
    raise FileNotFoundError(2, "no such program", path)


class Identity(NamedTuple):
    """A user that a process becomes."""

    uid: int
    gid: int
    groups: list[int]
    env: dict[str, str]

    def assume(self, parent: int) -> None:
        """Become this user for good. Raises OSError."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        _clone.hang_on(parent)


def _identity(user: str) -> Identity | None:
    """Who ``user`` is, None if that is this process's own user. Raises FileNotFoundError, PermissionError."""
    if not user:
        return None
    try:
        found = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise FileNotFoundError(2, "no such user", user) from None
    if found.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise PermissionError(1, "only a daemon of root runs nodes as other users", user)
    env = {"HOME": found.pw_dir, "USER": found.pw_name, "LOGNAME": found.pw_name}
    return Identity(found.pw_uid, found.pw_gid, os.getgrouplist(found.pw_name, found.pw_gid), env)


def _become(spawn: Spawn, program: str, identity: Identity | None, descriptors: Sequence[int], daemon: int) -> NoReturn:
    """The new process: from the launcher's copy to a worker. Never returns; a worker that has come to its end leaves by
    SystemExit, through all that the launcher was doing."""
    try:
        ending.forked()
        control, out, err = descriptors[:3]
        sock = socket.socket(fileno=_clone.settle(control, out, err, daemon, spawn.name))
        if spawn.data_limit:
            _clone.limit_data(spawn.data_limit, not program)
        if identity is not None:
            identity.assume(daemon)
            spawn = msgspec.structs.replace(spawn, env={**identity.env, **spawn.env})
        if program:
            _execute(spawn, program, sock)
        else:
            _work(spawn, sock)
    except SystemExit as asked:
        if ending.begun():
            raise
        os._exit(asked.code if isinstance(asked.code, int) else worker.FAILED)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    os._exit(worker.FAILED)


def _work(spawn: Spawn, sock: socket.socket) -> NoReturn:
    """A Python worker: at once the one that was asked for, or a spare that learns later which it is."""
    gc.enable()
    if spawn.spare:
        rehearse()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # or all workers would draw the same numbers
    worker.main(sock, worker.SPARE if spawn.spare else Assign(name=spawn.name, env=spawn.env, cwd=spawn.cwd))


def _execute(spawn: Spawn, program: str, sock: socket.socket) -> None:
    """Returns, after it has told the daemon, only if the kernel does not take the folder or the file."""
    try:
        if spawn.cwd:
            os.chdir(spawn.cwd)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored, signal.SIG_DFL)  # the interpreter ignores them; a new program should not
        sock.set_inheritable(True)
        env = {**native_threads.environment(spawn.env), worker.FD_VARIABLE: str(sock.fileno())}
        os.execve(program, list(spawn.argv), env)
    except OSError as reason:
        _report(sock, reason)


def _refusal(reason: OSError) -> str:
    """Why a program could not be executed. The kernel reports a missing interpreter as if the program itself were
    missing."""
    program = str(reason.filename)
    if reason.errno == errno.ENOEXEC:
        return f"{program} is no program for this machine, and its first line names no interpreter (#!)"
    if reason.errno == errno.ENOENT and os.path.exists(program):
        with open(program, "rb") as file:
            first = file.read(256).partition(b"\n")[0]
        words = os.fsdecode(first[2:]).split()
        if first.startswith(b"#!") and words:
            return f"the interpreter {words[0]}, which the first line of {program} names, is not there"
        return f"{program} needs a loader or a library that is not there"
    return f"{reason.strerror}: {program}"


def _report(sock: socket.socket, reason: OSError) -> None:
    """The process is there, so the daemon will see it end; this tells it why."""
    link: ControlLink[ToWorker] = ControlLink(sock, ToWorker)
    text = _refusal(reason)
    print(f"chronetix worker: {text}", file=sys.stderr)
    link.send(Hello(protocol=list(PROTOCOL_VERSIONS), role="worker", pid=os.getpid()))
    link.send(Fault(phase="load", error=type(reason).__name__, message=text))


if __name__ == "__main__":
    main()
