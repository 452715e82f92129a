"""A daemon that inherits odd things serves, drains and says what it found."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chronetixd.conftest import ROOT, RunningDaemon

ODD = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD])
for each in (signal.SIGCHLD, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(each, signal.SIG_IGN)
os.umask(0o777)
os.close(0)
os.close(1)
os.execv(sys.executable, [sys.executable, "-m", "chronetixd", *sys.argv[1:]])
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts a daemon by a program of the test's own, with standard error as given, and waits until it is ready."""
    processes = []

    def run(command: list[str], stderr: Any) -> RunningDaemon:
        paths = tmp_path / "c.sock", tmp_path / "state", tmp_path / "log"
        notify_path = tmp_path / "notify"
        arguments = ["--socket", str(paths[0]), "--state-dir", str(paths[1])]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "NOTIFY_SOCKET": str(notify_path),
            "CHRONETIX_SPARES": "0",
        }
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(notify_path))
            process = subprocess.Popen([*command, *arguments], env=environment, stderr=stderr)
            processes.append(process)
            pidfd = os.pidfd_open(process.pid)
            while notify in select.select([notify, pidfd], [], [])[0]:
                if b"READY=1" in notify.recv(4096):
                    break
            else:
                pytest.fail(f"the daemon ended with {process.wait()}")
            os.close(pidfd)
        return RunningDaemon(process, *paths)

    yield run
    for process in processes:
        process.kill()
        process.wait()


def test_signals_streams_and_umask_are_put_right_and_told(start: Any, scripted: Any, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        daemon = start([sys.executable, "-c", ODD], log)
    with daemon.connect() as peer:
        peer.call("submit", flow=scripted("good"), name="f", wait="running")
        daemon.process.send_signal(signal.SIGHUP)
        assert peer.call("describe", flow="f")["state"] == "running"
        daemon.process.terminate()
        assert daemon.process.wait() == 0, "SIGTERM drains"
    told = [record["event"] for record in daemon.records() if record["level"] == "warning"]
    assert told[:5] == [
        "standard input was closed, and is /dev/null now",
        "standard output was closed, and is /dev/null now",
        "SIGCHLD, SIGHUP, SIGTERM were blocked, and come through now",
        "SIGCHLD, SIGHUP, SIGQUIT were ignored, and have their default now",
        "the umask was 777, and is 022 now",
    ]


def test_a_log_that_nobody_reads_holds_nobody_up(start: Any) -> None:
    reads, writes = os.pipe()
    daemon = start([sys.executable, "-m", "chronetixd"], writes)
    os.close(writes)
    with daemon.connect() as peer:
        for _ in range(1200):  # some 170 bytes each: the pipe takes 64 KiB, and as much is kept
            daemon.process.send_signal(signal.SIGUSR1)
            peer.call("version")
        text = b""
        while b"log lines were lost" not in text:
            text += os.read(reads, 1 << 16)
            daemon.process.send_signal(signal.SIGUSR2)
            peer.call("version")
        daemon.process.terminate()
        assert daemon.process.wait() == 0
    os.close(reads)
    assert b'"SIGUSR1"' in text
    assert b'"SIGUSR2"' in text
