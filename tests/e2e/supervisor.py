"""A supervisor for tests: it keeps descriptors as systemd does, and starts the daemon again with all of them."""

from __future__ import annotations

import math
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.e2e.conftest import ROOT, Daemon
from tests.warm import Process, Warm

START = """
import fcntl, os, sys
count = int(sys.argv[1])
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 1000) for number in sys.argv[2 : 2 + count]]
for at, fd in enumerate(high, 3):
    os.dup2(fd, at)
    os.close(fd)
os.closerange(3 + count, 1000)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "chronetixd", *sys.argv[2 + count :]])
"""
"""A daemon that starts cold, whose descriptors 3, 4, … are those told; with pid and numbers put right, as systemd does.
"""


class Supervisor:
    """Of one daemon at a time, in ``folder``. ``store`` has the kept descriptors by name; ``limit`` as
    FileDescriptorStoreMax; ``told`` counts what the present daemon has said."""

    def __init__(self, folder: Path, settings: dict[str, str], warm: Warm | None = None, limit: int = 8192) -> None:
        self.folder = folder
        self.limit = limit
        self.store: dict[str, list[int]] = {}
        self.started: list[Daemon] = []
        self._settings = settings
        self._warm = warm
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(folder / "notify.sock"))
        self._ready = threading.Event()
        self._heard = threading.Event()
        self._changed = threading.Condition()
        self._process: SimpleQueue[subprocess.Popen[bytes] | Process] = SimpleQueue()
        self._last = 0
        self.told = 0
        self._over, self._end = os.pipe()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def start(self, patience_s: float = math.inf) -> Daemon:
        """The next daemon, once it is ready. AssertionError when it ends, or is not ready in time."""
        daemon = self.begin()
        self.await_ready(daemon, patience_s)
        return daemon

    def await_ready(self, daemon: Daemon, patience_s: float = math.inf) -> None:
        """As :meth:`start`, of one that was begun."""
        give_up = time.monotonic() + patience_s
        while not self._is_ready_or_ended(daemon):
            assert time.monotonic() < give_up, f"not ready after {patience_s:g} s: {daemon.log.read_text()}"
        assert self._ready.is_set(), daemon.log.read_text()

    def cut_short(self, last: int) -> None:
        """The next daemon, killed when it has told ``last`` things, or is ready: whatever comes first."""
        daemon = self.begin(last)
        while not self._is_ready_or_ended(daemon):
            pass
        daemon.process.kill()
        daemon.process.wait()

    def until(self, holds: Callable[[], object]) -> None:
        """Wait until ``holds``, which may look at all that is kept."""
        with self._changed:
            self._changed.wait_for(holds)

    def _is_ready_or_ended(self, daemon: Daemon) -> bool:
        """Waits a moment for it. Its exit status is left."""
        pidfd = os.pidfd_open(daemon.process.pid)
        ended = bool(select.select([pidfd], [], [], 0)[0])
        os.close(pidfd)
        return self._ready.wait(0.05) or ended

    def begin(self, last: int = 0) -> Daemon:
        """The next daemon, which is killed when it has told ``last`` things (0: it is not)."""
        self._hear_out()
        files = self.folder / "control.sock", self.folder / "state", self.folder / "daemon.log"
        self._ready.clear()
        self.told, self._last, self._process = 0, last, SimpleQueue()
        names = [name for name, kept in self.store.items() for _ in kept]
        descriptors = [fd for kept in self.store.values() for fd in kept]
        environment = (
            os.environ
            | self._settings
            | {
                "NOTIFY_SOCKET": str(self.folder / "notify.sock"),
                "PYTHONPATH": str(ROOT),
                "FDSTORE": str(self.limit),
                "LISTEN_FDS": str(len(descriptors)),
                "LISTEN_FDNAMES": ":".join(names),
            }
        )
        place = ["--socket", str(files[0]), "--state-dir", str(files[1])]
        process: subprocess.Popen[bytes] | Process
        with files[2].open("ab") as log:
            if self._warm is not None:
                given: dict[str, Any] = {"pass_fds": descriptors, "first_fd": 3}
                process = self._warm.start(
                    "chronetixd", place, env=environment, cwd=ROOT, stdout=log, stderr=log, **given
                )
            else:
                numbers = [str(len(descriptors)), *map(str, descriptors)]
                command = [sys.executable, "-c", START, *numbers, *place]
                process = subprocess.Popen(command, env=environment, pass_fds=descriptors, stdout=log, stderr=log)
        self.started.append(Daemon(process, *files))
        if last:
            self._process.put(process)
        return self.started[-1]

    def _hear_out(self) -> None:
        """Wait until everything is heard that was said, also by a daemon that is dead."""
        self._heard.clear()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"BARRIER=1", str(self.folder / "notify.sock"))
        self._heard.wait()

    def close(self) -> None:
        """Keep nothing, hear nothing more."""
        os.write(self._end, b"x")
        self._thread.join()
        self.forget_all()
        for fd in (self._over, self._end):
            os.close(fd)
        self._sock.close()
        (self.folder / "notify.sock").unlink()

    def forget_all(self) -> None:
        """Drop everything that is kept."""
        for name in list(self.store):
            self._forget(name)

    def _listen(self) -> None:
        while self._over not in select.select([self._over, self._sock], [], [])[0]:
            data, descriptors, _, _ = socket.recv_fds(self._sock, 65_536, 253)
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            name = fields.get("FDNAME", "stored")
            with self._changed:
                if "FDSTOREREMOVE" in fields:
                    self._forget(name)
                elif "FDSTORE" in fields:
                    descriptors = self._keep(name, descriptors)
                self._changed.notify_all()
            for fd in descriptors:
                os.close(fd)
            if "BARRIER" in fields:
                self._heard.set()
                continue
            self.told += 1
            if self.told == self._last:
                self._process.get().kill()
            if "READY" in fields:
                self._ready.set()

    def _keep(self, name: str, descriptors: list[int]) -> list[int]:
        """Those that are not kept: too many, or there already, be it under another name."""
        left = []
        for fd in descriptors:
            kept = [other for each in self.store.values() for other in each]
            if len(kept) < self.limit and not any(os.path.sameopenfile(fd, other) for other in kept):
                self.store.setdefault(name, []).append(fd)
            else:
                left.append(fd)
        return left

    def _forget(self, name: str) -> None:
        for fd in self.store.pop(name, []):
            os.close(fd)
