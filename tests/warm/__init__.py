"""Chronetix programs, forked from a process that has imported them already, because imports take most of a start.

What runs is what ``python -m MODULE`` runs, as ``__main__``, in a process of its own that is a child of the test's
process. It has its own arguments, environment, folder and descriptors, and no others. It differs from a cold start in
what comes before its first line: the interpreter's start and the order of imports; and /proc shows the command line of
the process from which it was forked. Tests of these differences start cold: see the mark ``cold``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("server.py")
MODULES = ("chronetixd", "chronetixctl", "chronetix.nodeworker.process.worker")
WALL = 0x40000000
"""__WALL: wait also for children whose end sends no signal."""


class Process:
    """A program that runs, with those methods of ``subprocess.Popen`` that tests use."""

    stdin = stdout = None
    stderr: IO[bytes] | None = None

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code or negative signal; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code or negative signal. Raises TimeoutExpired."""
        if timeout is not None and self.poll() is None:
            alive = os.pidfd_open(self.pid)
            try:
                if not select.select([alive], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(self.args, timeout)
            finally:
                os.close(alive)
        code = self._reap(0)
        assert code is not None
        return code

    def _reap(self, flags: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags | WALL)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal; does nothing if the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm:
    """Starts programs; each kind of program has a process from which it is forked."""

    def __init__(self, modules: Sequence[str] = MODULES) -> None:
        self._servers: dict[str, tuple[socket.socket, subprocess.Popen[bytes]]] = {}
        for module in modules:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [sys.executable, "-P", str(SERVER), module, str(theirs.fileno())]
                env = os.environ | {"PYTHONPATH": str(ROOT)}
                process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            self._servers[module] = ours, process

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        stdin: IO[Any] | None = None,
        pass_fds: Sequence[int] = (),
        first_fd: int | None = None,
        code: str = "",
    ) -> Process:
        """Like ``Popen([sys.executable, "-m", module, *arguments], …)``; a pipe is possible for ``stderr`` only. Passed
        descriptors get the numbers from ``first_fd`` on, and LISTEN_PID is set to the program's pid. ``code`` runs
        instead of the module, with the module's imports done."""
        with ExitStack() as stack:
            pipe = os.pipe() if stderr == subprocess.PIPE else None
            if pipe is not None:
                stack.callback(os.close, pipe[1])
            ends = [stdin, stdout, pipe[1] if pipe is not None else stderr]
            descriptors = [
                own if end is None else end if isinstance(end, int) else end.fileno() for own, end in enumerate(ends)
            ]
            orig = [sys.executable, *(("-c", code) if code else ("-m", module)), *arguments]
            there = list(pass_fds) if first_fd is None else list(range(first_fd, first_fd + len(pass_fds)))
            asked = {"module": module, "argv": orig, "env": dict(env), "cwd": str(cwd), "fds": there}
            sock, _ = self._servers[module]
            socket.send_fds(sock, [json.dumps(asked).encode()], [*descriptors, *pass_fds])
            told = json.loads(sock.recv(1 << 10))
        process = Process(told["pid"], orig)
        if pipe is not None:
            process.stderr = open(pipe[0], "rb")  # noqa: SIM115 - the caller closes the pipe
        return process

    def run(
        self, module: str, *arguments: str, env: Mapping[str, str], cwd: Path, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end. Its output is text."""
        with ExitStack() as stack:
            given, out, err = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3))
            given.write(input or "")
            given.seek(0)
            process = self.start(module, arguments, env=env, cwd=cwd, stdin=given, stdout=out, stderr=err)
            code = process.wait()
            for each in (out, err):
                each.seek(0)
            return subprocess.CompletedProcess(list(process.args), code, out.read(), err.read())

    def close(self) -> None:
        """End the forking processes. Programs that they have started go on."""
        for sock, process in self._servers.values():
            sock.close()
            process.wait()
