"""A running daemon while strangers send descriptors whose close waits: everybody else is answered."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol import messages as wire
from chronetix.protocol.framing import encode
from tests.chronetixd.control.test_access import READER, STRANGER, As, connect_as, needs_root, tmp_path
from tests.chronetixd.fuse import file_that_waits, sent_by_a_child
from tests.chronetixd.loop.test_inspection import at_once, lingering

__all__ = ["connect_as", "tmp_path"]

HELLO = encode(wire.Hello(protocol=[1], role="client"))
TAP = encode(wire.Call(id=1, verb="tap", args={"flow": "f", "route": "r"}, descriptors=1))
OLDER = {"CHRONETIX_WITHOUT": "passrights"}
"""As before Linux 6.16, where a socket cannot refuse descriptors."""


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def inspectors(daemon: Any) -> list[str]:
    """Command lines of the daemon's children that take descriptors in."""
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children]
    return [line for line in lines if "inspector.py" in line]


@pytest.fixture
def needs_fuse(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("only root can mount, and /dev/fuse has to be there")


@needs_root
class TestWhoMayNothing:
    def test_can_send_no_descriptor(self, start: Any, connect_as: As, opened: ExitStack) -> None:
        stranger = connect_as(start(CHRONETIX_ALLOW_READ=str(READER)), STRANGER)
        with lingering(opened) as sock:
            with pytest.raises((PermissionError, BrokenPipeError)):  # it may have been sent away already
                socket.send_fds(stranger.sock, [HELLO], [sock.fileno()])
            at_once(sock)

    def test_keeps_nobody_on_an_older_kernel(self, start: Any, connect_as: As, opened: ExitStack) -> None:
        daemon = start(**OLDER, CHRONETIX_ALLOW_READ=str(READER))
        with daemon.connect() as root:
            for _ in range(3):
                stranger = connect_as(daemon, STRANGER)
                with lingering(opened) as sock:
                    try:
                        socket.send_fds(stranger.sock, [HELLO], [sock.fileno()])
                    except BrokenPipeError:
                        at_once(sock)  # it was sent away already
                assert stranger.receive() is not None
                assert root.call("version")["pid"] == daemon.process.pid


class TestWhoMayRead:
    @pytest.mark.parametrize("env", [{}, OLDER], ids=["here", "older kernel"])
    @pytest.mark.parametrize("data", [HELLO, TAP], ids=["of no message", "of a call"])
    def test_loses_the_connection_and_keeps_nobody(
        self, env: dict[str, str], data: bytes, start: Any, opened: ExitStack
    ) -> None:
        daemon = start(**env)
        with daemon.connect() as other, daemon.connect() as reader:
            with lingering(opened) as sock:
                socket.send_fds(reader.sock, [data], [sock.fileno()])
            failure = reader.receive()
            assert failure.name in ("descriptor-refused", "unexpected-message", "unexpected-descriptors")
            assert reader.receive() is None
            assert other.call("version")["pid"] == daemon.process.pid

    def test_nor_with_what_is_never_read(self, start: Any, opened: ExitStack) -> None:
        daemon = start()
        with daemon.connect() as other, daemon.connect() as reader:
            with lingering(opened) as sock:
                for _ in range(2):
                    socket.send_fds(reader.sock, [TAP], [sock.fileno()])
            while reader.receive() is not None:
                pass
            assert other.call("version")["pid"] == daemon.process.pid

    def test_the_daemon_ends_while_they_linger(self, start: Any, opened: ExitStack) -> None:
        daemon = start()
        with daemon.connect() as reader:
            with lingering(opened) as sock:
                socket.send_fds(reader.sock, [TAP], [sock.fileno()])
            assert reader.receive() is not None
            daemon.process.terminate()
            assert daemon.process.wait() == 0

    def test_nor_with_a_file_whose_server_never_answers_its_flush(
        self, start: Any, tmp_path: Path, needs_fuse: None
    ) -> None:
        daemon = start()
        with file_that_waits(tmp_path / "slow") as (path, server):
            with daemon.connect() as other:
                with daemon.connect() as reader:
                    child = sent_by_a_child(path, reader.sock, TAP, 1)
                    assert reader.receive().name in ("descriptor-refused", "unexpected-message")
                assert server.asked.wait(60)
                assert other.call("version")["pid"] == daemon.process.pid
            daemon.process.terminate()
            assert daemon.process.wait() == 0
        os.waitpid(child, 0)

    def test_no_process_is_started_for_calls_that_bring_nothing(self, start: Any) -> None:
        daemon = start()
        with daemon.connect() as reader:
            reader.call("version")
        with daemon.connect() as reader:
            assert inspectors(daemon) == []
