"""What passes between the daemon and its supervisor: readiness, status, watchdog, time, descriptors, reload."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from chronetixd.systemd import notify
from chronetixd.systemd.activation import CONTROL, receive
from chronetixd.systemd.fdstore import DescriptorStore
from chronetixd.systemd.watchdog import Watchdog, period_s
from tests.chronetixd.conftest import end_what_is_left

ROOT = Path(__file__).parents[3]


class Supervisor:
    """The socket that a supervisor listens on, at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(60)
        self.sock.bind(str(path))

    def hear(self) -> tuple[dict[str, str], list[int]]:
        """The next message's fields and descriptors."""
        data, descriptors, _, _ = socket.recv_fds(self.sock, 65_536, 253)
        return dict(line.split("=", 1) for line in data.decode().splitlines()), descriptors

    def until(self, name: str) -> dict[str, str]:
        """The first message from now on that has ``name``."""
        while name not in (fields := self.hear()[0]):
            pass
        return fields


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """Of this process, and of daemons that are started with :func:`launch`."""
    listening = Supervisor(tmp_path / "supervisor")
    monkeypatch.setenv("NOTIFY_SOCKET", str(listening.path))
    with closing(listening.sock):
        yield listening


@pytest.fixture
def launch(tmp_path: Path, supervisor: Supervisor) -> Iterator[Any]:
    """Start a daemon below ``supervisor``, without waiting for it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, descriptors: tuple[int, ...] = (), **env: str) -> subprocess.Popen[bytes]:
        place = ["--socket", str(tmp_path / "c.sock"), "--state-dir", str(tmp_path / "state")]
        command = [sys.executable, "-m", "chronetixd", *(() if descriptors else place[:2]), *place[2:], *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "CHRONETIX_SPARES": "0"} | env
        if descriptors:
            # The numbers must be 3, 4, … and LISTEN_PID the daemon's own: a shell puts both right, as systemd does.
            names = env.get("LISTEN_FDNAMES", CONTROL)
            moves = " ".join(f"{at}<&{fd}" for at, fd in enumerate(descriptors, 3))
            script = f'exec env LISTEN_PID=$$ LISTEN_FDS={len(descriptors)} LISTEN_FDNAMES={names} "$@" {moves}'
            command = ["bash", "-c", script, "bash", *command]
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, pass_fds=descriptors, stdout=log, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
    end_what_is_left(tmp_path / "state")


class TestALife:
    def test_it_says_when_it_is_ready_what_it_does_and_that_it_stops(
        self, launch: Any, supervisor: Supervisor, tmp_path: Path
    ) -> None:
        daemon = launch()
        ready = supervisor.until("READY")
        assert ready["READY"] == "1"
        assert ready["MAINPID"] == str(daemon.pid)
        assert ready["STATUS"] == "0 flows running, 0 workers, 0 spare"
        daemon.terminate()
        assert supervisor.until("STOPPING")["STOPPING"] == "1"
        assert daemon.wait() == 0

    def test_a_supervisor_that_has_much_to_read_is_told_later_that_it_is_ready(
        self, launch: Any, supervisor: Supervisor, tmp_path: Path
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as talker:
            with suppress(BlockingIOError):
                while True:
                    talker.sendto(b"STATUS=of another", str(supervisor.path))
            daemon = launch()
            while '"event": "ready"' not in (tmp_path / "log").read_text():
                assert daemon.poll() is None
            with Client.connect(tmp_path / "c.sock") as client:
                assert client.call("list") == {"flows": []}
            assert supervisor.until("READY")["READY"] == "1"

    def test_the_status_follows_the_flows(
        self, launch: Any, supervisor: Supervisor, scripted: Any, tmp_path: Path
    ) -> None:
        launch()
        supervisor.until("READY")
        with Client.connect(tmp_path / "c.sock") as client:
            client.call("submit", flow=scripted("good"), name="f", wait="running")
            assert supervisor.until("STATUS")["STATUS"].startswith("1 flow running, 1 workers")
            client.call("stop", flow="f")

    def test_more_time_is_asked_for_while_it_starts_and_while_it_drains(
        self, launch: Any, supervisor: Supervisor
    ) -> None:
        daemon = launch()
        assert int(supervisor.until("EXTEND_TIMEOUT_USEC")["EXTEND_TIMEOUT_USEC"]) >= 10_000_000
        supervisor.until("READY")
        daemon.terminate()
        supervisor.until("STOPPING")
        assert int(supervisor.until("EXTEND_TIMEOUT_USEC")["EXTEND_TIMEOUT_USEC"]) >= 10_000_000
        assert daemon.wait() == 0

    def test_an_upgrade_is_a_reload_of_the_same_process(
        self, launch: Any, supervisor: Supervisor, tmp_path: Path
    ) -> None:
        daemon = launch(WATCHDOG_USEC="300000")
        supervisor.until("READY")
        with Client.connect(tmp_path / "c.sock") as client, pytest.raises(ChronetixError, match="daemon-upgrading"):
            client.call("upgrade")
        assert supervisor.until("RELOADING")["RELOADING"] == "1"
        assert supervisor.until("READY")["MAINPID"] == str(daemon.pid)
        assert supervisor.until("WATCHDOG")["WATCHDOG"] == "1"
        daemon.terminate()
        assert supervisor.until("STOPPING")["STOPPING"] == "1"
        assert daemon.wait() == 0


class TestWatchdog:
    def test_a_daemon_that_is_watched_feeds_the_watchdog(self, launch: Any, supervisor: Supervisor) -> None:
        daemon = launch(WATCHDOG_USEC="300000")
        for _ in range(3):
            assert supervisor.until("WATCHDOG")["WATCHDOG"] == "1"
        daemon.terminate()
        assert daemon.wait() == 0

    def test_a_daemon_that_does_not_run_does_not_feed_it(self, launch: Any, supervisor: Supervisor) -> None:
        daemon = launch(WATCHDOG_USEC="90000")
        supervisor.until("WATCHDOG")
        daemon.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED)
        while select.select([supervisor.sock], [], [], 0)[0]:
            supervisor.hear()
        assert select.select([supervisor.sock], [], [], 0.3)[0] == []
        daemon.send_signal(signal.SIGCONT)
        supervisor.until("WATCHDOG")

    @pytest.mark.parametrize(
        ("env", "period"),
        [
            ({}, None),
            ({"WATCHDOG_USEC": "0"}, None),
            ({"WATCHDOG_USEC": "soon"}, None),
            ({"WATCHDOG_USEC": "3000000"}, 1.0),
            ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 1.0),
            ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, None),
        ],
    )
    def test_only_who_is_meant_feeds(self, env: dict[str, str], period: float | None) -> None:
        assert period_s(env, 7) == period

    def test_a_loop_that_no_longer_polls_does_not_feed_though_its_timers_run(self, loop: Any, until: Any) -> None:
        fed: list[int] = []
        watchdog = Watchdog(loop, 0.001, lambda: fed.append(1))
        watchdog.start()
        until(lambda: len(fed) >= 3)
        assert watchdog._ends is not None
        loop.remove_reader(watchdog._ends[0].fileno())
        before, turns = len(fed), [0]

        def later() -> None:
            turns[0] += 1
            loop.call_later(0.001, later)

        later()
        until(lambda: turns[0] > 20)
        watchdog.stop()
        assert len(fed) == before

    def test_a_callback_that_never_ends_is_not_hidden_by_a_thread(self, loop: Any, run: Any) -> None:
        fed: list[int] = []
        watchdog = Watchdog(loop, 0.001, lambda: fed.append(1))

        async def stuck() -> None:
            watchdog.start()
            before = len(fed)
            select.select([], [], [], 0.05)
            assert len(fed) == before

        run(stuck())
        watchdog.stop()

    def test_nobody_watching_costs_nothing(self, loop: Any) -> None:
        watchdog = Watchdog(loop, None)
        watchdog.start()
        assert watchdog._timer is None
        watchdog.stop()


class TestActivation:
    @pytest.fixture
    def listener(self, tmp_path: Path) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "activated"))
            sock.listen()
            yield sock

    def test_a_daemon_answers_on_the_socket_that_it_was_given_and_leaves_it_there(
        self, launch: Any, supervisor: Supervisor, listener: socket.socket, tmp_path: Path
    ) -> None:
        place = tmp_path / "activated"
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(str(place))
            daemon = launch(descriptors=(listener.fileno(),))
            supervisor.until("READY")
            told = subprocess.run(
                [sys.executable, "-m", "chronetixctl", "version", "--socket", str(place), "-o", "json"],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
            )
            assert told.returncode == 0, told.stderr
            assert f'"socket": "{place}"' in told.stdout
            daemon.terminate()
            assert daemon.wait() == 0
        assert place.exists()

    def test_a_name_that_the_unit_did_not_give_is_systemd_s_own(
        self, launch: Any, supervisor: Supervisor, listener: socket.socket
    ) -> None:
        launch(descriptors=(listener.fileno(),), LISTEN_FDNAMES="chronetixd.socket")
        supervisor.until("READY")

    def test_what_is_no_listening_stream_socket_is_refused_by_name(
        self, launch: Any, supervisor: Supervisor, tmp_path: Path
    ) -> None:
        read, write = os.pipe()
        daemon = launch(descriptors=(read,))
        assert daemon.wait() == 1
        assert "it is no socket" in (tmp_path / "log").read_text()
        os.close(read)
        os.close(write)

    def test_descriptors_for_another_process_are_left_alone(self) -> None:
        env = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "OTHER": "x"}
        received = receive(env, 2)
        assert (received.control, received.stored, env) == (None, {}, {"OTHER": "x"})

    @pytest.mark.parametrize("count", ["", "-1", "many"])
    def test_nonsense_is_nothing(self, count: str) -> None:
        assert receive({"LISTEN_FDS": count, "LISTEN_PID": "2"}, 2).stored == {}


def store() -> DescriptorStore:
    """One that has nothing to wait for."""
    return DescriptorStore(notify.ServiceManager(lambda *_: None))


class TestStore:
    def test_a_descriptor_is_pushed_under_a_name_and_not_polled(self, supervisor: Supervisor) -> None:
        read, write = os.pipe()
        assert store().push("worker-1", write)
        fields, (kept,) = supervisor.hear()
        assert fields == {"FDSTORE": "1", "FDNAME": "worker-1", "FDPOLL": "0"}
        os.write(kept, b"here")
        assert os.read(read, 10) == b"here"
        for fd in (read, write, kept):
            os.close(fd)

    def test_what_is_forgotten_is_told(self, supervisor: Supervisor) -> None:
        assert store().forget("worker-1")
        assert supervisor.hear()[0] == {"FDSTOREREMOVE": "1", "FDNAME": "worker-1"}

    @pytest.mark.parametrize("name", ["", "a:b", "a b", "ä", "x" * 256, CONTROL, "chronetixd.socket"])
    def test_a_name_that_could_not_come_back_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="no name for kept descriptors"):
            store().push(name, 0)

    def test_without_a_supervisor_nothing_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        assert not store().push("worker-1", 0)

    def test_what_was_kept_comes_back_by_its_name(self) -> None:
        """In a process of its own, as its descriptors must be 3 and 4."""
        script = (
            "import os\n"
            "from chronetixd.systemd.activation import receive\n"
            "os.dup2(0, 3); os.dup2(0, 4)\n"
            "env = {'LISTEN_FDS': '2', 'LISTEN_PID': '9', 'LISTEN_FDNAMES': 'w-1:w-1'}\n"
            "got = receive(env, 9)\n"
            "print(got.stored, env, os.get_inheritable(3), os.get_inheritable(4))\n"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == "{'w-1': [3, 4]} {} False False\n", done.stderr


class TestReload:
    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        path = tmp_path / "chronetixd.toml"
        path.write_text('log_level = "info"\n')
        return path

    def last_event(self, tmp_path: Path, kind: str) -> dict[str, Any]:
        with Client.connect(tmp_path / "c.sock") as client:
            return next(item for item in reversed(list(client.stream("events"))) if item["kind"] == kind)

    def test_what_can_be_is_taken_over_and_the_rest_is_named(
        self, launch: Any, supervisor: Supervisor, config: Path, tmp_path: Path
    ) -> None:
        daemon = launch("--config", str(config))
        supervisor.until("READY")
        config.write_text('log_level = "debug"\nmax_clients = 1\nmax_frame = 5000\n')
        daemon.send_signal(signal.SIGHUP)
        assert int(supervisor.until("RELOADING")["MONOTONIC_USEC"]) > 0
        supervisor.until("READY")
        event = self.last_event(tmp_path, "reloaded")
        assert sorted(event["data"]["changed"]) == ["log_level", "max_clients"]
        assert event["data"]["fixed"] == ["max_frame"]

    def test_a_configuration_that_is_wrong_changes_nothing(
        self, launch: Any, supervisor: Supervisor, config: Path, tmp_path: Path
    ) -> None:
        daemon = launch("--config", str(config))
        supervisor.until("READY")
        config.write_text('allow_read = ["*"]\nallow_operate = ["no-such-user"]\n')
        daemon.send_signal(signal.SIGHUP)
        supervisor.until("RELOADING")
        supervisor.until("READY")
        assert "no-such-user" in self.last_event(tmp_path, "reload-failed")["message"]
        assert (tmp_path / "c.sock").stat().st_mode & 0o777 == 0o660

    def test_new_rules_open_the_socket(self, launch: Any, supervisor: Supervisor, config: Path, tmp_path: Path) -> None:
        daemon = launch("--config", str(config))
        supervisor.until("READY")
        config.write_text('allow_read = ["*"]\n')
        daemon.send_signal(signal.SIGHUP)
        supervisor.until("RELOADING")
        supervisor.until("READY")
        assert (tmp_path / "c.sock").stat().st_mode & 0o777 == 0o666


def test_a_supervisor_that_has_gone_is_complained_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    monkeypatch.setattr(notify, "_broken", False)
    with capture_logs() as complaints:
        assert [notify.notify("STATUS=x") for _ in range(3)] == [False] * 3
    assert [record["event"] for record in complaints] == ["the service manager could not be notified"]
