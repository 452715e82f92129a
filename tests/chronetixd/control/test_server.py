"""The control socket and the state folder: one daemon at a time, and nothing of a dead one in the way."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from chronetix.protocol.errors import ChronetixError
from chronetixd.control.server import Server
from chronetixd.store.state_dir import StateDir


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "control.sock"


@pytest.fixture
def server(loop: Any, path: Path) -> Iterator[Server]:
    made = Server(loop, path, lambda sock: sock.close())
    yield made
    made.close()


def test_the_socket_may_be_used_by_owner_and_group_only(server: Server, path: Path) -> None:
    server.listen()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_the_socket_is_removed_at_the_end(server: Server, path: Path) -> None:
    server.listen()
    server.close()
    assert not path.exists()


def test_a_socket_that_somebody_else_put_there_since_is_left_alone(server: Server, path: Path) -> None:
    server.listen()
    path.rename(path.with_name("moved"))
    path.write_text("mine")
    server.close()
    assert path.read_text() == "mine"


def test_a_stale_socket_is_replaced(server: Server, path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_live_socket_is_refused_and_left_alone(server: Server, path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        with pytest.raises(ChronetixError, match=f"another daemon listens.*pid {os.getpid()}.*socket-in-use"):
            server.listen()
        assert path.exists()


def test_what_is_no_socket_is_refused_and_left_alone(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ChronetixError, match="no socket"):
        server.listen()
    assert path.read_text() == "precious"


def test_clients_are_accepted(loop: Any, path: Path, until: Any) -> None:
    accepted: list[socket.socket] = []
    server = Server(loop, path, accepted.append)
    server.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        until(lambda: accepted)
    accepted[0].close()
    server.close()


def test_a_state_folder_is_claimed_once(tmp_path: Path) -> None:
    first, second = StateDir(tmp_path / "state"), StateDir(tmp_path / "state")
    first.claim()
    with pytest.raises(ChronetixError) as refused:
        second.claim()
    assert refused.value.name == "daemon-already-running"
    assert refused.value.details["pid"] == str(os.getpid())
    first.release()
    second.claim()
    second.release()


def test_a_pid_that_a_crash_left_behind_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "daemon.pid").write_text("1\n")
    state = StateDir(tmp_path)
    state.claim()
    assert (tmp_path / "daemon.pid").read_text() == f"{os.getpid()}\n"
    state.release()


def test_a_state_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChronetixError, match="state_dir"):
        StateDir(tmp_path / "file" / "state").claim()


class TestAStateFolderThatOthersHaveASayIn:
    def test_one_that_everyone_may_write_to_is_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "state"
        folder.mkdir()
        folder.chmod(0o777)
        with pytest.raises(ChronetixError, match="everyone may write to it"):
            StateDir(folder).claim()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    def test_so_is_another_users(self, tmp_path: Path) -> None:
        folder = tmp_path / "state"
        folder.mkdir()
        os.chown(folder, 7001, 7001)
        with pytest.raises(ChronetixError, match="it belongs to user 7001"):
            StateDir(folder).claim()

    def test_a_lock_that_is_a_link_is_not_followed(self, tmp_path: Path) -> None:
        precious = tmp_path / "precious"
        precious.write_text("all of it")
        (tmp_path / "daemon.pid").symlink_to(precious)
        with pytest.raises(ChronetixError, match="state_dir"):
            StateDir(tmp_path).claim()
        assert precious.read_text() == "all of it"


def test_a_state_folder_that_cannot_be_written_is_told_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(ChronetixError, match="No space left"):
            StateDir(tmp_path).claim()
    state = StateDir(tmp_path)
    state.claim()
    state.release()


class TestASocketThatIsRemoved:
    """While the daemon runs, as by a program that cleans old files."""

    @pytest.fixture
    def accepted(self) -> list[socket.socket]:
        return []

    @pytest.fixture
    def server(self, loop: Any, path: Path, accepted: list[socket.socket]) -> Iterator[Server]:
        made = Server(loop, path, accepted.append)
        made.listen(group=os.getgid())
        made.open_to_all(True)
        yield made
        made.close()
        for sock in accepted:
            sock.close()

    @pytest.fixture
    def turns(self, loop: Any) -> Any:
        """Lets the loop work until something holds."""

        def work(holds: Any) -> None:
            while not holds():
                loop.run_until_complete(asyncio.sleep(0))

        return work

    @staticmethod
    def connect(path: Path) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        return client

    def test_is_made_anew_as_it_was(self, server: Server, path: Path, turns: Any, accepted: list[Any]) -> None:
        path.unlink()
        turns(path.exists)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        with self.connect(path):
            turns(lambda: accepted)
        server.close()
        assert not path.exists(), "it is ours to remove"

    def test_is_made_anew_with_its_folder(self, server: Server, path: Path, turns: Any) -> None:
        shutil.rmtree(path.parent)
        turns(path.exists)
        path.unlink()
        turns(path.exists)

    def test_loses_nobody_who_waits_to_be_accepted(
        self, server: Server, path: Path, turns: Any, accepted: list[Any]
    ) -> None:
        with self.connect(path):
            path.unlink()
            turns(path.exists)
            assert len(accepted) == 1

    def test_is_not_made_in_place_of_something_else(self, server: Server, path: Path, turns: Any) -> None:
        path.unlink()
        path.write_text("mine")
        with pytest.raises(ChronetixError, match="no socket"):
            server.renew()
        with capture_logs() as told:
            turns(lambda: told)
            path.with_name("another").touch()
            path.with_name("another").unlink()
            turns(lambda: True)
        assert [record["event"] for record in told] == ["the control socket was removed, and cannot be made anew"]
        assert path.read_text() == "mine"
        path.unlink()
        turns(lambda: path.is_socket())

    def test_keeps_the_group_that_it_had(self, server: Server, path: Path) -> None:
        group = server.group
        path.unlink()
        assert server.group == group == os.getgid()

    def test_of_the_supervisor_is_the_supervisors_to_make(self, loop: Any, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        handed = socket.socket(socket.AF_UNIX)
        handed.bind(str(path.with_name("handed")))
        handed.listen()
        made = Server(loop, path, lambda sock: sock.close())
        made.listen(handed)
        path.with_name("handed").unlink()
        made.renew()
        assert not path.with_name("handed").exists()
        made.close()
