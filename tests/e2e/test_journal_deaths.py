"""The daemon is killed right before and right after each commit to its journal; the next one ends up consistent."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from tests.e2e.conftest import ROOT, Daemon
from tests.e2e.surviving import PLUGINS, Flow, lives, pids, succeeded
from tests.warm import Warm

DYING = """
import os, signal, sys
from chronetixd.store.journal import Journal
from chronetixd.main import main

at, when, commit, seen = int(sys.argv.pop(1)), sys.argv.pop(1), Journal._commit, 0

def dying(self, statements):
    global seen
    seen += 1
    if seen == at and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    commit(self, statements)
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)

Journal._commit = dying
main()
"""
"""A daemon that dies at a commit of its journal. Nothing of this is in the daemon itself."""


LEAST = 6
"""Commits that there are at least; some that are not urgent come together."""


def dying_daemon(folder: Path, settings: dict[str, str], warm: Warm, at: int, when: str) -> Daemon:
    files = folder / "control.sock", folder / "state", folder / "daemon.log"
    arguments = [str(at), when, "--socket", str(files[0]), "--state-dir", str(files[1])]
    env = os.environ | settings | {"PYTHONPATH": str(ROOT)}
    with files[2].open("ab") as log:
        process = warm.start("chronetixd", arguments, code=DYING, env=env, stdout=log, stderr=log, cwd=folder)
    return Daemon(process, *files)


def play(daemon: Daemon, flow: Flow, seen: set[int], done: list[str]) -> None:
    """Submit, run, have a node restarted, stop; ``done`` is what was acknowledged."""
    with Client.connect(daemon.socket) as client:
        client.call("submit", flow=flow.raw(), name="f", base_dir=str(PLUGINS), wait="running")
        done.append("submitted")
        flow.grows(client)
        before = pids(client)
        seen |= set(before.values())
        os.kill(before["map"], signal.SIGKILL)
        seen.add(succeeded(client, "map", before["map"]))
        flow.grows(client)
        client.call("stop", flow="f")
        done.append("stopped")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_daemon_that_dies_at_a_commit(
    at: int,
    when: str,
    start: Callable[[], Any],
    flow: Flow,
    tmp_path: Path,
    settings: dict[str, str],
    warm_programs: Warm,
) -> None:
    dying = dying_daemon(tmp_path, settings, warm_programs, at, when)
    seen: set[int] = set()
    done: list[str] = []
    try:
        while not dying.socket.exists():
            assert dying.process.poll() is None
        with suppress(ChronetixError, OSError, EOFError):
            play(dying, flow, seen, done)
            assert "stopped" in done
            assert at > LEAST, "a commit was not reached"
    finally:
        dying.process.kill()
        dying.process.wait()
    first = start()
    with Client.connect(first.socket) as client:
        flows = client.call("list")["flows"]
        assert len(flows) <= 1
        if "stopped" in done:
            assert flows[0]["state"] == "stopped"
        elif "submitted" in done:
            assert flows, "it was acknowledged"
        if flows and flows[0]["state"] not in ("stopped", "failed"):
            size = flow.size()
            while flow.size() <= size and client.call("list")["flows"][0]["state"] not in ("stopped", "failed"):
                pass  # it grows, unless the stop that was asked for is what it goes on with
            seen |= set(pids(client).values())
            with suppress(ChronetixError):  # it may have ended by itself
                client.call("stop", flow="f")
        (told,) = client.call("list")["flows"] or [{"state": "stopped", "reason": ""}]
    lost = any(how in told["reason"] for how in ("died while no daemon was there", "had not reattached to this daemon"))
    assert told["state"] == "stopped" or lost, told
    runs: list[list[tuple[int, bool]]] = [[]]
    for number, marked in flow.numbers() if flow.ledger.exists() else ():
        if number == 1 and not marked and runs[-1]:
            runs.append([])
        runs[-1].append((number, marked))
    for run in runs:
        last = 0
        for number, marked in run:
            assert number <= last + 1, f"{number} follows {last}: lost"
            assert marked or number == last + 1, f"{number} came again unmarked"
            last = max(last, number)
    assert not [pid for pid in seen - {0} if lives(pid)]


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path)
