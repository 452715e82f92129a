"""The program under test: how it is started, and one running process of it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

FD_VARIABLE: Final = "CHRONETIX_FD"
"""Environment variable with the number of the inherited control socket."""

TAIL: Final = 4096
"""The last bytes of stdout and stderr that a failed check shows."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A program and what its author has said about it."""

    argv: Sequence[str]
    timeout_s: float = 5.0
    """How long each single thing may take that is waited for."""
    start_timeout_s: float = 20.0
    """How long its hello, and its ready, may take: the start of its runtime."""
    contents: bool = True
    """A map returns each frame unchanged, a source sends the kit's sequence."""
    input: str = "in"
    output: str = "out"
    content_type: str = "application/octet-stream"
    sample: bytes | None = None
    """What the kit sends as each frame, instead of bytes of its own."""
    folder: Path | None = None
    """Where it is started; by default here."""


class RunningProgram:
    """One process of the program, leader of a session of its own."""

    def __init__(self, subject: Subject, control: socket.socket) -> None:
        """Start it with ``control`` as its inherited socket. Raises OSError."""
        env = {**os.environ, FD_VARIABLE: str(control.fileno())}
        self._process = subprocess.Popen(
            subject.argv,
            pass_fds=[control.fileno()],
            env=env,
            cwd=subject.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            restore_signals=True,
        )
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self._tails: dict[int, bytes] = {}
        self._streams: dict[int, IO[bytes]] = {}
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._streams[stream.fileno()] = stream
            self._tails[stream.fileno()] = b""

    @property
    def streams(self) -> list[int]:
        """Descriptors of its output that are open."""
        return list(self._streams)

    def read(self, fd: int) -> None:
        """Read what is there of its output, and keep the end of it."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        if data:
            self._tails[fd] = (self._tails[fd] + data)[-TAIL:]
        else:
            self._streams.pop(fd).close()

    def close_streams(self) -> None:
        """Stop reading its stdout and stderr: whoever writes there gets EPIPE, and SIGPIPE."""
        while self._streams:
            self._streams.popitem()[1].close()

    @property
    def status(self) -> int | None:
        """Its exit status, or minus the number of the signal that ended it; None while it runs."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal to it alone."""
        self._process.send_signal(number)

    def said(self) -> str:
        """Return the last lines that it printed."""
        for fd in self.streams:
            self.read(fd)
        lines = b"".join(self._tails.values()).decode(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in lines[-3:] if line.strip())

    def cpu_s(self) -> float:
        """Return the processor time that it has used. Raises OSError."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def open_descriptors(self) -> int:
        """Return how many descriptors it has open. Raises OSError."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def end(self) -> None:
        """Kill it and what it has started, and reap it. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self.close_streams()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def await_end(self, timeout_s: float) -> bool:
        """Wait for its end alone; False when the time is up."""
        deadline = time.monotonic() + timeout_s
        while self.status is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([self.pidfd], [], [], left)
        return True
