"""Warm forks: whose children they are, what they inherit, how their end is seen."""

from __future__ import annotations

import errno
import os
import pwd
import socket
import sys
from pathlib import Path

import pytest

from chronetix.nodeworker.process import launcher
from chronetix.nodeworker.process.rehearsal import rehearse
from chronetix.protocol.framing import MessageDecoder, encode
from chronetix.protocol.messages import Spawned, SpawnFailed, Start, WorkerMessage

LIST = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')), flush=True)"


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    os.close(read)


def read_all(descriptor: int) -> str:
    text = b""
    while chunk := os.read(descriptor, 65536):
        text += chunk
    return text.decode()


def spawn(launcher, pipe, **fields):
    """A worker whose stdout and stderr are the pipe: our end of its control socket, and the answer."""
    ours, theirs = socket.socketpair()
    with theirs:
        answer, descriptors = launcher.spawn(theirs, pipe[1], pipe[1], **fields)
    os.close(pipe[1])
    return ours, answer, descriptors


class TestAWorkerOfTheLauncher:
    def test_is_a_child_of_who_started_the_launcher(self, launcher, pipe, reap):
        control, answer, (pidfd,) = spawn(launcher, pipe, argv=["/bin/sh", "-c", "echo $PPID; exit 7"])
        with control:
            assert isinstance(answer, Spawned)
            assert int(read_all(pipe[0])) == os.getpid()
            assert reap(pidfd) == 7

    def test_shows_its_end_by_signal(self, launcher, pipe, reap):
        control, _, (pidfd,) = spawn(launcher, pipe, argv=["/bin/sh", "-c", "kill -9 $$"])
        with control:
            assert reap(pidfd) == -9

    def test_inherits_its_socket_and_standard_streams_and_nothing_else(self, launcher, pipe, reap):
        control, _, (pidfd,) = spawn(launcher, pipe, argv=["/bin/sh", "-c", "ls /proc/$$/fd; echo fd=$CHRONETIX_FD"])
        with control:
            lines = read_all(pipe[0]).split()
            assert lines[-1] == "fd=3"
            assert {"0", "1", "2", "3"} <= set(lines)
            # the shell itself may open one above 9 to save something, never one that was ours
            assert not {str(number) for number in range(4, 10)} & set(lines)
            assert reap(pidfd) == 0

    def test_has_a_session_a_name_and_default_signals(self, launcher, pipe, reap, tmp_path):
        script = tmp_path / "look.sh"
        script.write_text(
            "#!/bin/sh\ncut -d' ' -f6 /proc/$$/stat; grep -E 'Sig(Ign|Blk)' /proc/self/status; pwd; echo $X\n"
        )
        script.chmod(0o755)
        control, answer, (pidfd,) = spawn(
            launcher, pipe, name="a-node", argv=["./look.sh"], cwd=str(tmp_path), env={"X": "hello"}
        )
        with control:
            session, _, blocked, _, ignored, folder, value = read_all(pipe[0]).split()
            assert int(session) == answer.pid
            of_libc = 0b11 << 31  # signals 32 and 33, which no program can set
            assert int(blocked, 16) == int(ignored, 16) & ~of_libc == 0
            assert (folder, value) == (str(tmp_path), "hello")
            assert reap(pidfd) == 0

    def test_ends_when_its_control_socket_does(self, launcher, pipe, reap):
        control, _, (pidfd,) = spawn(launcher, pipe)
        control.close()
        assert reap(pidfd) == 70
        assert "daemon" in read_all(pipe[0])


class TestAProgramThatCannotBeStarted:
    def test_is_reported_before_anything_is_forked_when_it_is_not_there(self, launcher, pipe):
        control, answer, descriptors = spawn(launcher, pipe, argv=["/nowhere/program"])
        with control:
            assert isinstance(answer, SpawnFailed)
            assert not descriptors
            assert answer.errno == 2
            assert "/nowhere/program" in answer.message

    def test_is_reported_when_it_may_not_be_executed(self, launcher, pipe, tmp_path: Path):
        (tmp_path / "data.txt").write_text("no program")
        control, answer, _ = spawn(launcher, pipe, argv=["./data.txt"], cwd=str(tmp_path))
        with control:
            assert isinstance(answer, SpawnFailed)
            assert answer.errno == 13

    def test_says_so_over_its_own_socket_when_the_kernel_refuses_the_file(
        self, launcher, pipe, reap, tmp_path: Path, daemon
    ):
        script = tmp_path / "broken"
        script.write_bytes(b"\x7fELF but not really")
        script.chmod(0o755)
        control, _, (pidfd,) = spawn(launcher, pipe, argv=[str(script)])
        fault = daemon.fault(daemon.adopt(None, control, 0, lambda: 0))
        assert (fault.phase, fault.error) == ("load", "OSError")
        assert str(script) in fault.message
        assert reap(pidfd) == 1


def test_the_launcher_goes_on_after_a_failure(launcher, reap):
    for argv, kind in ((["/nowhere"], SpawnFailed), (["/bin/true"], Spawned)):
        pipe = os.pipe()
        control, answer, descriptors = spawn(launcher, pipe, argv=argv)
        os.close(pipe[0])
        control.close()
        assert isinstance(answer, kind)
        for pidfd in descriptors:
            assert reap(pidfd) == 0


class TestASpare:
    def test_says_hello_and_ends_quietly_when_nobody_needs_it(self, launcher, pipe, reap):
        control, answer, (pidfd,) = spawn(launcher, pipe, spare=True)
        control.settimeout(60)
        (hello,) = MessageDecoder(WorkerMessage).feed(control.recv(4096))
        assert hello.pid == answer.pid
        control.close()
        assert reap(pidfd) == 0
        assert read_all(pipe[0]) == ""

    def test_refuses_what_is_no_assignment(self, launcher, pipe, reap, daemon):
        control, _, (pidfd,) = spawn(launcher, pipe, spare=True)
        control.sendall(encode(Start()))
        fault = daemon.fault(daemon.adopt(None, control, 0, lambda: 0))
        assert fault.error == "unexpected-message"
        assert reap(pidfd) == 1


def test_a_rehearsal_leaves_nothing_behind():
    modules, path = set(sys.modules), sys.path[:]
    rehearse(2)
    assert (set(sys.modules), sys.path) == (modules, path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"#!/no/such/python -u\n", "the interpreter /no/such/python, which the first line of"),
        (b"\x7fELF", "needs a loader or a library that is not there"),
        (None, "No such file or directory"),
    ],
)
def test_a_missing_interpreter_is_not_called_a_missing_program(
    content: bytes | None, says: str, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    if content is not None:
        program.write_bytes(content)
    told = launcher._refusal(FileNotFoundError(errno.ENOENT, "No such file or directory", str(program)))
    assert says in told
    assert str(program) in told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes as other users")
class TestAnotherUser:
    NOBODY = pwd.getpwnam("nobody")

    def test_is_that_of_a_program_with_its_groups_and_home(self, launcher, pipe, reap):
        show = 'id -u; id -ru; id -g; id -G; echo "$HOME $USER $LOGNAME $X"; cat /proc/self/status'
        control, _, (pidfd,) = spawn(launcher, pipe, argv=["/bin/sh", "-c", show], env={"X": "x"}, user="nobody")
        with control:
            uid, real, gid, groups, variables, *status = read_all(pipe[0]).splitlines()
            assert reap(pidfd) == 0
        user = self.NOBODY
        assert (uid, real, gid) == (str(user.pw_uid), str(user.pw_uid), str(user.pw_gid))
        assert set(map(int, groups.split())) == set(os.getgrouplist("nobody", user.pw_gid))
        assert variables == f"{user.pw_dir} nobody nobody x"
        assert {line.split()[1] for line in status if line.startswith(("CapPrm", "CapEff"))} == {"0" * 16}

    def test_is_that_of_a_warm_fork(self, launcher, pipe, reap):
        control, answer, (pidfd,) = spawn(launcher, pipe, user=str(self.NOBODY.pw_uid), env={"HOME": "/own"})
        control.settimeout(60)
        (hello,) = MessageDecoder(WorkerMessage).feed(control.recv(4096))
        status = Path(f"/proc/{answer.pid}/status").read_text()
        assert hello.pid == answer.pid
        assert f"Uid:\t{self.NOBODY.pw_uid}\t{self.NOBODY.pw_uid}" in status
        assert os.stat(f"/proc/{answer.pid}/comm").st_uid == self.NOBODY.pw_uid, "it can be looked at by its user"
        control.close()
        assert reap(pidfd) == 70

    @pytest.mark.parametrize("user", ["no-such-user", "4000000000"])
    def test_that_is_not_there_is_told_before_anything_is_forked(self, launcher, pipe, user):
        control, answer, descriptors = spawn(launcher, pipe, argv=["/bin/true"], user=user)
        with control:
            assert isinstance(answer, SpawnFailed)
            assert not descriptors
            assert answer.message == f"no such user: {user}"

    def test_that_is_the_launchers_own_changes_nothing(self, launcher, pipe, reap):
        control, _, (pidfd,) = spawn(launcher, pipe, argv=["/usr/bin/id", "-u"], user="root")
        with control:
            assert read_all(pipe[0]) == "0\n"
            assert reap(pidfd) == 0
