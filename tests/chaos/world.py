"""The world of a storm: one real daemon on a small file system of its own, and flows that run without end.

Every process in it carries a token in its environment, so that it can be told from all other processes. Orphans become
children of this process, as they would become init's. This file is longer than 400 lines because disk, daemon and flows
begin and end in one order, also when a step before them has failed.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chronetix.protocol.errors import ChronetixError
from chronetixctl.client import Client
from chronetixd.daemon.daemon import EXIT_BROKEN
from tests.chaos import processes
from tests.chaos.flows import FLOWS, PLUGINS, FlowKind
from tests.chaos.ledgers import Arrival, Arrivals, Ledger, Requests, arrival
from tests.chaos.weather import Weather
from tests.e2e.supervisor import Supervisor
from tests.warm import Warm

ROOT = Path(__file__).parents[2]
Map = dict[str, Any]
DISK = "16m"
"""The size of the file system with the state folder."""
LONGEST_S = 60.0
"""How long any wait may take: a watchdog, not a measurement."""
SETTINGS = {
    "spares": "4",
    "log_file_bytes": "200000",
    "connect_rate": "100000",
    "frame_timeout": "0.5",
    "hello_timeout": "0.5",
}


class Violation(Exception):
    """An invariant does not hold."""


@dataclass
class Watch:
    """A running flow, with what its ledgers have shown so far."""

    kind: FlowKind
    ledgers: list[Ledger]
    arrivals: dict[str, Arrivals]
    requests: Requests
    last: dict[str, Arrival] = field(default_factory=dict)

    def read(self) -> list[Arrival]:
        """Read new lines of the ledgers, and return the frames in them."""
        frames = []
        for ledger in self.ledgers:
            for words in ledger.news():
                if words[0] == "F":
                    frame = arrival(words)
                    self.arrivals[frame.route].arrive(frame)
                    self.last[frame.route] = frame
                    frames.append(frame)
                elif words[0] == "B":
                    for arrivals in self.arrivals.values():
                        if arrivals.promise.node == ledger.path.name.split(".")[1]:
                            arrivals.begin()
                else:
                    self.requests.line(words)
        return frames

    @property
    def complaints(self) -> list[str]:
        """What violates the flow's guarantees."""
        found = [text for arrivals in self.arrivals.values() for text in arrivals.complaints]
        return [f"{self.kind.name}: {text}" for text in [*found, *self.requests.complaints]]


@dataclass(frozen=True)
class Kill:
    """A worker that was killed, whose recovery is measured."""

    flow: str
    node: str
    life: int
    at_ns: int


class World:
    """The daemon and all flows, in a private mount namespace if this user may make one. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(8)
        self.socket = folder / "control.sock"
        self.state = folder / "state"
        self.log = folder / "daemon.log"
        self.weather = Weather(folder)
        self.programs = Warm(["chronetixctl"])
        self.no_disk = ""
        """Why there is no small file system; empty if there is one."""
        self.supervisor: Supervisor | None = None
        self.daemon: subprocess.Popen[bytes] | None = None
        self.watches: dict[str, Watch] = {}
        self.kills: list[Kill] = []
        self.recoveries: dict[str, list[float]] = {}
        """Milliseconds from the kill to the first frame, by what was killed."""
        self.renewed = self.broken = 0
        self.crowded = False
        """Whether documents of many items were sent to this daemon or to one before it."""
        self.failed: list[str] = []
        """Flows that have failed as their scenario allows."""

    # -- begin and end ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Mount the file system, start the daemon, submit the flows."""
        processes.become_reaper()
        self._mount()
        settings = {f"CHRONETIX_{name.upper()}": value for name, value in SETTINGS.items()}
        self.supervisor = Supervisor(self.folder, settings | self.weather.environment | {processes.TOKEN: self.token})
        self.start_daemon()
        with self.client() as client:
            for kind in FLOWS.values():
                self.submit(client, kind)
        self.settle()

    def end(self) -> None:
        """Drain all flows and stop the daemon. Raises Violation."""
        with self.client() as client:
            for name in list(self.watches):
                self.drain(client, name)
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGTERM)
        try:
            code = self.daemon.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            raise Violation("the daemon does not end on SIGTERM") from None
        if code != 0:
            raise Violation(f"the daemon ended with {code} on SIGTERM")
        self.daemon = None

    def close(self) -> None:
        """End and remove everything of the storm, whatever has happened. Idempotent."""
        self.weather.refuse_memory(0)
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon = None
        while left := processes.of_token(self.token) - {os.getpid()}:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            processes.reap(0)
            time.sleep(0.01)
        processes.reap(0)
        self.programs.close()
        self.weather.close()
        if self.supervisor is not None:
            self.supervisor.close()
            self.supervisor = None
        if not self.no_disk and self.state.exists():
            shutil.copytree(self.state, self.folder / "left", ignore=shutil.ignore_patterns("filler"))
            subprocess.run(["umount", str(self.state)], check=True, capture_output=True)
            self.no_disk = "it is over"

    def _mount(self) -> None:
        """Mount a small file system that only this process and its children see."""
        self.state.mkdir(mode=0o700)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(0x00020000) != 0:
                raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
            subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "chronetix-storm", str(self.state)]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as reason:
            self.no_disk = f"no file system can be mounted here: {reason}"

    # -- the daemon --------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The daemon's pid."""
        assert self.daemon is not None
        return self.daemon.pid

    def start_daemon(self) -> None:
        """Start the daemon as systemd would, with all descriptors that it stores. Raises Violation when it does not get
        ready."""
        assert self.supervisor is not None
        try:
            self.daemon = self.supervisor.start(LONGEST_S).process
        except AssertionError as reason:
            raise Violation(f"the daemon did not start: {str(reason)[-2000:]}") from None

    def begin_daemon(self) -> None:
        """As :meth:`start_daemon`, without waiting for it."""
        assert self.supervisor is not None
        self.daemon = self.supervisor.begin().process

    def await_daemon(self) -> None:
        """Wait until the daemon that was begun is ready. Raises Violation."""
        assert self.supervisor is not None
        try:
            self.supervisor.await_ready(self.supervisor.started[-1], LONGEST_S)
        except AssertionError as reason:
            raise Violation(f"the daemon did not start: {str(reason)[-2000:]}") from None

    def cut_short(self, last: int) -> None:
        """Start a daemon and kill it when it has sent ``last`` notifications to its service manager, or is ready."""
        assert self.supervisor is not None
        self.supervisor.cut_short(last)

    def kill_daemon(self) -> None:
        """Kill the daemon, as a crash would."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()

    def upgrade(self) -> None:
        """Upgrade the daemon in place to the same release. Raises Violation."""
        with self.client() as client:
            try:
                client.call("upgrade", timeout=LONGEST_S)
            except ChronetixError as reason:
                if reason.name not in ("daemon-upgrading", "connection-lost"):
                    raise Violation(f"the daemon is not replaced: {reason}") from None
        with self.client() as client:
            told = client.call("version", timeout=LONGEST_S)
        if told["pid"] != self.pid or told["upgraded"] is None or told["upgraded"]["failed"]:
            raise Violation(f"it was not replaced in place: {told}")

    def forget_kept(self) -> None:
        """Close the stored descriptors, as when a service without a descriptor store is restarted by hand."""
        assert self.supervisor is not None
        self.supervisor.forget_all()

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Return a new client. Raises Violation when no daemon answers."""
        try:
            connected = Client.connect(self.socket, timeout=LONGEST_S)
        except ChronetixError as reason:
            raise Violation(f"the daemon does not answer: {reason}; {self._how_it_is()}") from None
        with connected:
            yield connected

    def _how_it_is(self) -> str:
        assert self.daemon is not None
        code = self.daemon.poll()
        return "it lives" if code is None else f"it ended with {code}"

    # -- flows -------------------------------------------------------------------------------------------------

    def submit(self, client: Client, kind: FlowKind) -> None:
        """Submit ``kind``, with new ledgers."""
        for old in self.folder.glob(f"{kind.name}.*.ledger"):
            old.unlink()
        contract = kind.contract(self.folder)
        client.call("submit", flow=contract, name=kind.name, base_dir=str(PLUGINS), wait="running", timeout=LONGEST_S)
        ledgers = [Ledger(kind.ledger(self.folder, node)) for node in kind.nodes]
        arrivals = {each.route: Arrivals(each, not kind.survives) for each in kind.promises}
        self.watches[kind.name] = Watch(kind, ledgers, arrivals, Requests())

    def drain(self, client: Client, name: str) -> None:
        """Stop a flow by draining it; all frames that were sent have then arrived. Raises Violation."""
        answer = client.call("stop", flow=name, timeout=LONGEST_S)
        if answer["state"] != "stopped" or answer.get("reason"):
            raise Violation(f"{name} did not stop in good order: {answer}")
        watch = self.watches[name]
        watch.read()
        described = client.call("describe", flow=name)
        for route in described["routes"]:
            stats = route["stats"]
            lost = sum(stats["drops"].values()) if stats else 0
            if stats is None or stats["outstanding"] or (route["policy"] == "block" and lost):
                raise Violation(f"{name} is drained, but route {route['id']} says {stats}")
            if route["policy"] == "block" and stats["committed"] != stats["returned"]:
                raise Violation(f"{name} is drained, but route {route['id']} says {stats}")
        if watch.complaints:
            raise Violation("; ".join(watch.complaints))
        del self.watches[name]

    def renew(self, names: tuple[str, ...]) -> None:
        """Drain flows and submit them anew."""
        with self.client() as client:
            for name in names:
                self.drain(client, name)
                self.submit(client, FLOWS[name])
                self.renewed += 1

    def workers(self, client: Client) -> dict[tuple[str, str], Map]:
        """Return the description of each node, by flow and node."""
        return {
            (flow, node["node"]): node
            for flow in self.watches
            for node in client.call("describe", flow=flow, timeout=LONGEST_S)["nodes"]
        }

    def pids(self) -> dict[tuple[str, str], int]:
        """Return the pids of living workers."""
        with self.client() as client:
            return {key: node["pid"] for key, node in self.workers(client).items() if node["state"] == "started"}

    def known(self) -> dict[tuple[str, str], Map]:
        """Note the present nodes, for a time when the daemon cannot be asked."""
        with self.client() as client:
            return self.workers(client)

    def kill_workers(self, victims: list[tuple[str, str]], known: dict[tuple[str, str], Map] | None = None) -> None:
        """Kill workers by SIGKILL, all at once."""
        known = self.known() if known is None else known
        for victim in victims:
            node = known[victim]
            if node["state"] == "started":
                self.kills.append(Kill(*victim, node["incarnation"], time.monotonic_ns()))
                with suppress(ProcessLookupError):
                    os.kill(node["pid"], signal.SIGKILL)

    def spares(self) -> list[int]:
        """Return the pids of the spare workers."""
        with self.client() as client:
            return list(client.call("version")["spares"]["pids"])

    def launcher(self) -> int:
        """Return the launcher's pid; 0 if none runs."""
        with self.client() as client:
            known = {node["pid"] for node in self.workers(client).values()}
            known |= set(client.call("version")["spares"]["pids"])
        return self.launcher_beside(known)

    def launcher_beside(self, known: set[int]) -> int:
        """As :meth:`launcher`; ``known`` are the pids of workers and spare workers."""
        command = f"{sys.executable}\0-P\0-m\0chronetix.nodeworker.process.launcher\0".encode()
        for pid in sorted(set(processes.children(self.pid)) - known):
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes() == command and os.getsid(pid) == pid:
                    return pid
        return 0

    # -- after a storm -----------------------------------------------------------------------------------------

    def settle(self, may_fail: tuple[str, ...] = (), measured: bool = False, may_break: bool = False) -> None:
        """Wait until all flows run and frames arrive at every sink. Raises Violation. ``may_fail`` are parts of reasons
        for which a flow may have failed; it is then submitted anew. ``measured``: the recovery of killed workers
        counts. ``may_break``: the daemon may have ended by itself after logging why."""
        assert self.daemon is not None
        if may_break and self.daemon.poll() == EXIT_BROKEN:
            self.broken += 1
            self.start_daemon()
        if not measured:
            self.kills.clear()
        begun = time.monotonic_ns()
        state: list[str] = []

        def settled() -> bool:
            processes.reap(self.pid)
            self._measure()
            state[:] = self._unsettled(begun, may_fail)
            return not state

        if not self.wait(settled):
            raise Violation(f"after {LONGEST_S:.0f} s: {'; '.join(state)}")
        self.kills.clear()

    def _unsettled(self, begun: int, may_fail: tuple[str, ...]) -> list[str]:
        waits = []
        with self.client() as client:
            if trouble := client.call("version", timeout=LONGEST_S)["journal"]["trouble"]:
                waits.append(trouble)  # until it is complete, flows need not go on when the daemon is killed
            listed = {flow["name"]: flow for flow in client.call("list", timeout=LONGEST_S)["flows"]}
            for name, watch in list(self.watches.items()):
                flow = listed.get(name)
                if flow is None or flow["state"] in ("failed", "stopped"):
                    self._ended(client, name, flow, may_fail)
                    waits.append(f"{name} was submitted anew")
                    continue
                if flow["state"] != "running":
                    waits.append(f"{name} is {flow['state']}")
                    continue
                nodes = client.call("describe", flow=name, timeout=LONGEST_S)["nodes"]
                waits += [f"{name}/{each['node']} is {each['state']}" for each in nodes if each["state"] != "started"]
                for route in watch.arrivals:
                    if route not in watch.last or watch.last[route].monotonic_ns < begun:
                        waits.append(f"{name}: nothing arrives by {route}")
        return waits

    def _ended(self, client: Client, name: str, flow: Map | None, may_fail: tuple[str, ...]) -> None:
        reason = "it is not listed" if flow is None else f"{flow['state']}: {flow['reason']}"
        if flow is None or not any(allowed in reason for allowed in may_fail):
            raise Violation(f"flow {name} has ended, which it may not: {reason}")
        self.failed.append(f"{name}: {reason}")
        watch = self.watches[name]
        watch.read()
        if watch.complaints:
            raise Violation("; ".join(watch.complaints))
        self.submit(client, FLOWS[name])

    def _measure(self) -> None:
        """Read the ledgers, and note for each killed worker when the first frame came through its successor."""
        for name, watch in self.watches.items():
            for frame in watch.read():
                for kill in tuple(self.kills):
                    if kill.flow == name and frame.monotonic_ns > kill.at_ns and self._through(watch, frame, kill):
                        self.kills.remove(kill)
                        part = "sink" if any(kill.node == each.node for each in watch.kind.promises) else kill.node
                        ms = (frame.monotonic_ns - kill.at_ns) / 1e6
                        self.recoveries.setdefault("map" if part in ("left", "right") else part, []).append(ms)

    @staticmethod
    def _through(watch: Watch, frame: Arrival, kill: Kill) -> bool:
        """Return whether ``frame`` went through a later incarnation of the killed node."""
        source, mapped, sink = frame.lives
        if kill.node == "source":
            return source > kill.life
        if any(each.node == kill.node and each.route == frame.route for each in watch.kind.promises):
            return sink > kill.life
        return frame.route.startswith(f"{kill.node}-") and mapped > kill.life

    @staticmethod
    def wait(condition: Callable[[], bool], seconds: float = LONGEST_S) -> bool:
        """Wait until ``condition``. Returns False when that takes too long."""
        give_up = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > give_up:
                return False
            time.sleep(0.02)
        return True
