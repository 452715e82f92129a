"""The client says hello, ends every call exactly once, and reports what goes wrong as the catalogue's errors."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol import paths
from chronetix.protocol.errors import ChronetixError, RemoteError, error
from chronetix.protocol.framing import encode
from chronetix.protocol.messages import Item, Result, Welcome
from chronetixctl.client import Client, socket_path


def test_a_call_gives_its_result(daemon: Any) -> None:
    daemon.answers["list"] = {"flows": []}

    with Client.connect(daemon.path) as client:
        assert client.call("list") == {"flows": []}
        assert client.welcome is not None
        assert client.welcome.daemon == "fake"

    assert daemon.calls == [("list", {})]


def _queue_is_full(path: Path) -> list[socket.socket]:
    """Clients that nobody accepts, until no further one fits."""
    waiting: list[socket.socket] = []
    while True:
        waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        waiting[-1].setblocking(False)
        try:
            waiting[-1].connect(str(path))
        except BlockingIOError:
            return waiting


def test_a_client_waits_for_a_place_in_the_queue_of_a_daemon_that_has_no_time(tmp_path: Path) -> None:
    path = tmp_path / "busy.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy, ExitStack() as stack:
        busy.bind(str(path))
        busy.listen(0)
        for sock in _queue_is_full(path):
            stack.enter_context(sock)
        with pytest.raises(ChronetixError, match=r"no answer within 0.05 s") as caught:
            Client.connect(path, timeout=0.05)
        assert caught.value.name == "daemon-unreachable"


def test_arguments_that_are_none_are_left_out(daemon: Any) -> None:
    daemon.answers["stop"] = {}

    with Client.connect(daemon.path) as client:
        client.call("stop", flow="x", timeout_ns=None)

    assert daemon.calls == [("stop", {"flow": "x"})]


def test_items_before_the_result_are_handed_on(daemon: Any) -> None:
    daemon.answers["submit"] = [{"state": "starting"}, {"state": "running"}, "done"]
    seen: list[Any] = []

    with Client.connect(daemon.path) as client:
        assert client.call("submit", on_item=seen.append) == "done"

    assert [item["state"] for item in seen] == ["starting", "running"]


def test_a_stream_gives_its_items_and_ends(daemon: Any) -> None:
    daemon.answers["logs"] = [1, 2, 3, None]

    with Client.connect(daemon.path) as client:
        assert list(client.stream("logs", follow=True)) == [1, 2, 3]


def test_a_failure_is_raised_with_its_hint(daemon: Any) -> None:
    daemon.answers["describe"] = error("flow-not-found", flow="x", nearest="y")

    with Client.connect(daemon.path) as client, pytest.raises(RemoteError) as caught:
        client.call("describe", flow="x")

    assert caught.value.name == "flow-not-found"
    assert "chronetixctl ls" in caught.value.hint


def test_a_stream_that_is_left_is_cancelled_and_the_connection_stays_good(daemon: Any, stays_open: object) -> None:
    daemon.answers |= {"logs": [1, 2, stays_open], "list": "still here"}

    with Client.connect(daemon.path) as client:
        items = client.stream("logs")
        assert next(items) == 1
        items.close()

        assert client.call("list") == "still here"

    assert daemon.cancelled == ["logs"]


def test_a_call_that_takes_too_long_is_cancelled_and_the_connection_stays_good(daemon: Any, stays_open: object) -> None:
    daemon.answers |= {"stop": [stays_open], "list": "still here"}

    with Client.connect(daemon.path) as client:
        with pytest.raises(ChronetixError) as caught:
            client.call("stop", timeout=0.01)
        assert client.call("list") == "still here"

    assert caught.value.name == "timed-out"
    assert daemon.cancelled == ["stop"]


def test_two_streams_on_one_connection_do_not_mix(daemon: Any) -> None:
    daemon.answers |= {"logs": ["a", "b", None], "events": [1, 2, None]}

    with Client.connect(daemon.path) as client:
        logs, events = client.stream("logs"), client.stream("events")
        assert list(zip(logs, events, strict=True)) == [("a", 1), ("b", 2)]


def test_a_refusal_is_raised_as_it_came(daemon: Any) -> None:
    daemon.refusal = error("version-unsupported", offered=[1], supported=[2, 3]).failure()

    with pytest.raises(RemoteError) as caught:
        Client.connect(daemon.path)

    assert caught.value.details["supported"] == [2, 3]


@pytest.mark.parametrize("kind", ["missing", "stale", "silent", "closing"])
def test_nobody_who_answers_is_daemon_unreachable(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind != "missing":
            listener.bind(str(path))
        if kind == "silent":
            listener.listen()
        if kind == "closing":
            listener.listen(1)
            listener.shutdown(socket.SHUT_RDWR)

        with pytest.raises(ChronetixError) as caught:
            Client.connect(path, timeout=0.05)

    assert caught.value.name == "daemon-unreachable"
    assert str(path) in caught.value.message


def over(received: bytes) -> tuple[Client, socket.socket]:
    """A client on a socketpair, with what its daemon is going to have said."""
    ours, theirs = socket.socketpair()
    theirs.sendall(received)
    client = Client(ours, "pair")
    client.welcome = Welcome(protocol=1, daemon="pair")
    return client, theirs


def test_a_daemon_that_goes_away_is_connection_lost() -> None:
    client, theirs = over(encode(Item(id=1, value="x")))
    theirs.shutdown(socket.SHUT_WR)

    with client, theirs:
        items = client.stream("logs")
        assert next(items) == "x"
        with pytest.raises(ChronetixError) as caught:
            next(items)

    assert caught.value.name == "connection-lost"


def test_a_frame_cut_short_is_a_protocol_error() -> None:
    client, theirs = over(encode(Result(id=1, value="long enough to cut"))[:-3])
    theirs.shutdown(socket.SHUT_WR)

    with client, theirs, pytest.raises(ChronetixError) as caught:
        client.call("list")

    assert caught.value.name == "connection-cut"


def test_garbage_is_a_protocol_error() -> None:
    client, theirs = over(b"\x00\x00\x00\x03abc")

    with client, theirs, pytest.raises(ChronetixError) as caught:
        client.call("list")

    assert 1000 <= caught.value.code < 2000


def test_a_user_without_a_daemon_turns_to_the_machine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = tmp_path / "machine.sock"
    monkeypatch.setattr(paths, "SYSTEM_SOCKET", str(machine))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("CHRONETIX_SOCKET", raising=False)
    own = tmp_path / "chronetix" / "control.sock"
    assert socket_path() == str(own)
    machine.touch()
    assert socket_path() == str(machine)
    assert socket_path("/named") == "/named"
    own.parent.mkdir()
    own.touch()
    assert socket_path() == str(own)


def _make_file(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_make_file, "it is a regular file, no socket"),
        (Path.mkdir, "it is a directory, no socket"),
        (os.mkfifo, "it is a named pipe, no socket"),
        (lambda path: path.symlink_to("/dev/null"), "it is a device, no socket"),
    ],
)
def test_what_is_no_socket_is_called_what_it_is(make: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    make(path)
    with pytest.raises(ChronetixError, match=words) as caught:
        Client.connect(path)
    assert caught.value.name == "daemon-unreachable"


def test_a_socket_of_another_kind_is_no_daemons(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "s.sock"))
        with pytest.raises(ChronetixError, match="no stream socket"):
            Client.connect(tmp_path / "s.sock")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChronetixError, match=f"there is no folder {tmp_path}/none"):
        Client.connect(tmp_path / "none" / "s.sock")


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChronetixError, match="a part of its path is a file and not a folder"):
        Client.connect(tmp_path / "file" / "s.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(
    ("folder_mode", "make", "words"),
    [
        (0o700, None, "this user may not enter .* or a folder above it"),
        (0o755, None, r"connect to .*/s.sock \[not-allowed"),
        (0o755, _make_file, "which is a regular file and no socket"),
    ],
)
def test_who_may_not_connect_is_told_what_bars_him(folder_mode: int, make: Any, words: str) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "s.sock"
        make(path) if make else listener.bind(str(path))
        path.chmod(0o600)
        os.chmod(folder, folder_mode)
        os.seteuid(65534)
        try:
            with pytest.raises(ChronetixError, match=words) as caught:
                Client.connect(path)
        finally:
            os.seteuid(0)
    assert caught.value.name == "not-allowed"


def test_a_time_limit_of_years_is_waited_for_in_parts(daemon: Any, monkeypatch: Any) -> None:
    daemon.answers["list"] = {"flows": []}
    read, waits = Client._read, [TimeoutError(), TimeoutError()]

    def patient(client: Client) -> Any:
        if waits:
            raise waits.pop()
        return read(client)

    with Client.connect(daemon.path) as client:
        monkeypatch.setattr(Client, "_read", patient)
        assert client.call("list", timeout=3e9) == {"flows": []}
    assert not waits
