"""Whoever connects to a path that another user could have put there says nothing before it knows who listens."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from chronetix.nodeworker.process.link import ControlLink
from chronetix.nodeworker.process.reattach import Reattachment
from chronetix.protocol import trust
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.messages import ToWorker
from chronetixctl.client import Client
from tests.chronetixctl.conftest import ROOT

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
VICTIM, ATTACKER = 7101, 7102

IMPOSTOR = """
import os, socket, sys
os.setgroups([]); os.setgid({uid}); os.setuid({uid}); os.umask(0)
listener = socket.socket(socket.AF_UNIX)
listener.bind({path!r})
listener.listen()
print(flush=True)
while sys.stdin.readline():
    sock, _ = listener.accept()
    sock.settimeout(60)
    print(len(sock.recv(65536)), flush=True)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place where everyone may make files, as /tmp."""
    made = Path(tempfile.mkdtemp(prefix="chronetix-trust-"))
    made.chmod(0o1777)
    yield made
    shutil.rmtree(made)


@contextmanager
def listening(path: Path, uid: int) -> Iterator[subprocess.Popen[str]]:
    """Another user's process that listens at ``path``; for each line it says how many bytes its next client sent."""
    program = [sys.executable, "-c", IMPOSTOR.format(path=str(path), uid=uid)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        yield process
        process.stdin.close()


@needs_root
class TestAnotherUsersSocket:
    def test_is_told_nothing_and_the_error_says_what_to_do(self, folder: Path) -> None:
        path = folder / "control.sock"
        with listening(path, ATTACKER) as impostor:
            assert impostor.stdin is not None
            assert impostor.stdout is not None
            impostor.stdin.write("\n")
            impostor.stdin.flush()
            with pytest.raises(ChronetixError, match=f"user {ATTACKER} listens on {path}") as caught:
                Client.connect(path)
            assert impostor.stdout.readline() == "0\n"
        assert caught.value.name == "server-not-trusted"
        assert f"CHRONETIX_DAEMON_USER={ATTACKER}" in caught.value.hint

    def test_the_command_line_ends_with_it(self, folder: Path) -> None:
        path = folder / "control.sock"
        with listening(path, ATTACKER):
            command = [sys.executable, "-m", "chronetixctl", "--socket", str(path), "ls"]
            ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert ended.returncode != 0
        assert "server-not-trusted" in ended.stderr
        assert "CHRONETIX_DAEMON_USER" in ended.stderr

    @pytest.mark.parametrize("named", [str(ATTACKER), "nobody"])
    def test_is_believed_when_it_is_named(self, named: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = folder / "control.sock"
        uid = ATTACKER if named.isdecimal() else trust._user(named, "")
        monkeypatch.setenv("CHRONETIX_DAEMON_USER", named)
        with listening(path, uid), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            trust.check(sock, str(path), named)

    def test_a_name_that_nobody_has_is_told(self, folder: Path) -> None:
        path = folder / "control.sock"
        with listening(path, ATTACKER), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            with pytest.raises(ChronetixError, match="names no-such-user, and there is no such user"):
                trust.check(sock, str(path), "no-such-user")


@needs_root
def test_a_worker_that_comes_back_shows_another_user_nothing(folder: Path) -> None:
    path = folder / "control.sock"
    ours, theirs = socket.socketpair()
    link: ControlLink[object] = ControlLink(ours, ToWorker)

    def describe() -> NoReturn:
        pytest.fail("nobody is there who may see it")

    reattachment = Reattachment(str(path), link, describe)  # type: ignore[arg-type]
    with theirs, listening(path, ATTACKER) as impostor:
        assert impostor.stdin is not None
        assert impostor.stdout is not None
        impostor.stdin.write("\n")
        impostor.stdin.flush()
        assert not reattachment._attempt()
        assert impostor.stdout.readline() == "0\n"
    reattachment.give_up()
    reattachment.close()
    link.close()


class TestRootsAndOnesOwn:
    def test_own_socket_is_believed(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as sock:
            server.bind(str(tmp_path / "s"))
            server.listen()
            sock.connect(str(tmp_path / "s"))
            assert trust.listener(sock) == os.geteuid()
            trust.check(sock, str(tmp_path / "s"))


@needs_root
class TestTheFolderOnTheWay:
    """Root gives a folder to a user: what listens in it is that user's."""

    @pytest.fixture
    def given(self) -> Iterator[Path]:
        parent = Path("/run") if os.access("/run", os.W_OK) else Path("/var")
        folder = Path(tempfile.mkdtemp(prefix="chronetix-trust-", dir=parent))
        os.chown(folder, ATTACKER, ATTACKER)
        folder.chmod(0o755)
        yield folder
        shutil.rmtree(folder)

    def test_who_was_given_it_is_believed(self, given: Path) -> None:
        path = given / "control.sock"
        assert trust.heir(str(path)) == ATTACKER
        with listening(path, ATTACKER), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            trust.check(sock, str(path))

    def test_but_not_where_everyone_may_write(self, given: Path) -> None:
        given.chmod(0o1777)
        assert trust.heir(str(given / "control.sock")) is None

    def test_nor_below_such_a_place(self, folder: Path) -> None:
        inside = folder / "chronetix"
        inside.mkdir()
        os.chown(inside, ATTACKER, ATTACKER)
        assert trust.heir(str(inside / "control.sock")) is None

    def test_nor_by_a_link_from_there(self, given: Path, folder: Path) -> None:
        (given / "link").symlink_to(folder)
        assert trust.heir(str(given / "link" / "control.sock")) is None

    def test_nor_where_a_group_may_write_into_roots_folder(self, given: Path) -> None:
        os.chown(given, 0, ATTACKER)
        given.chmod(0o775)
        (given / "x").mkdir()
        os.chown(given / "x", ATTACKER, ATTACKER)
        assert trust.heir(str(given / "x" / "control.sock")) is None

    def test_nor_of_somebody_elses_folder_in_it(self, given: Path) -> None:
        (given / "x").mkdir()
        os.chown(given / "x", VICTIM, VICTIM)
        assert trust.heir(str(given / "x" / "control.sock")) is None
