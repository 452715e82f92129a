"""A disk that does not answer: what runs goes on, everybody is answered, and only who submits waits."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chronetixctl.client import Client
from tests.e2e.conftest import ROOT, Daemon, start_daemon
from tests.e2e.surviving import PLUGINS, Flow, succeeded


class Disk:
    """Answers no fsync while it is ``stuck``."""

    def __init__(self, folder: Path) -> None:
        self._mark = folder / "stuck"
        library = folder / "slow_sync.so"
        source = ROOT / "bench" / "native" / "slow_sync.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        self.environment = {
            "LD_PRELOAD": str(library),
            "SLOW_SYNC_MS": str(10**9),
            "SLOW_SYNC_ON": str(self._mark),
        }

    def stick(self) -> None:
        self._mark.touch()

    def answer(self) -> None:
        self._mark.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


@pytest.fixture
def daemon(tmp_path: Path, settings: dict[str, str], disk: Disk) -> Iterator[Daemon]:
    running = start_daemon(tmp_path, settings | disk.environment)
    yield running
    disk.answer()
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGTERM)
    assert running.process.wait() == 0, running.log.read_text()


class Submission(threading.Thread):
    """A submission of another flow, by somebody who waits for it."""

    def __init__(self, daemon: Daemon, raw: dict[str, Any]) -> None:
        super().__init__()
        self._path, self._raw = daemon.socket, raw
        self.answered = threading.Event()
        self.start()

    def run(self) -> None:
        with Client.connect(self._path) as client:
            client.call("submit", flow=self._raw, name="g", base_dir=str(PLUGINS))
            self.answered.set()


@pytest.mark.parametrize("loss", ["stop", "survive"])
def test_what_runs_goes_on_and_only_who_submits_waits(
    loss: str, daemon: Daemon, client: Client, disk: Disk, tmp_path: Path
) -> None:
    flow = Flow(tmp_path)
    before = flow.submit(client, loss=loss)
    disk.stick()
    (tmp_path / "other").mkdir()
    submission = Submission(daemon, Flow(tmp_path / "other").raw(loss="stop"))
    for _ in range(100):
        client.call("version")
    os.kill(before["map"], signal.SIGKILL)
    succeeded(client, "map", before["map"])
    flow.grows(client)
    assert not submission.answered.is_set()
    assert [each["name"] for each in client.call("list")["flows"]] == ["f"], "it is not there before it is written"
    disk.answer()
    submission.join()
    assert submission.answered.is_set()
    assert {each["name"] for each in client.call("list")["flows"]} == {"f", "g"}
    for name in ("f", "g"):
        client.call("stop", flow=name, mode="now")


def test_a_submission_whose_client_has_gone_is_one(daemon: Daemon, client: Client, disk: Disk, tmp_path: Path) -> None:
    disk.stick()
    raw = Flow(tmp_path).raw(loss="stop")
    with pytest.raises(Exception, match="within"), Client.connect(daemon.socket) as other:
        other.call("submit", flow=raw, name="f", base_dir=str(PLUGINS), timeout=0.1)
    assert client.call("list")["flows"] == []
    with pytest.raises(Exception, match="is there already"):
        client.call("submit", flow=raw, name="f", base_dir=str(PLUGINS))
    disk.answer()
    while not client.call("list")["flows"]:
        pass
    client.call("stop", flow="f", mode="now")
