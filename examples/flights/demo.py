"""The main job on real data, end to end: ``make demo`` or ``python -m examples.flights.demo``.

Starts a daemon in a private folder, submits the compiled flow, shows its progress, checks the sink's result against a
computation of its own on the whole table, prints the routes' figures, stops everything and proves that nothing
is left.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chronetixctl.client import Client
from chronetixd.compile import compile_text
from examples.flights.plugins import flights_csv

HERE = Path(__file__).resolve().parent
TOTAL_ROWS = 336_776
out = Console()


def main() -> int:
    """Run the demo; 0 when the flow's result equals the independent one and nothing is left behind."""
    with (
        tempfile.TemporaryDirectory(prefix="chronetix-demo-") as folder,
        daemon(Path(folder)) as (process, client),
    ):
        flow = compile_text((HERE / "flow.yaml").read_text(), str(HERE / "flow.yaml")).output
        began = time.monotonic()
        name = client.call("submit", flow=flow, base_dir=str(HERE), wait="running")["flow"]
        out.print(
            f"flow [bold]{name}[/] is running in {len(flow['manifests'])} worker processes (daemon {process.pid})"
        )
        watch(client, name)
        seconds = time.monotonic() - began
        described = client.call("describe", flow=name)
        if described["state"] != "stopped":
            out.print(f"[red]the flow failed:[/] {described['reason']}", soft_wrap=True)
            return 1
        result = next(node["result"] for node in described["nodes"] if node["node"] == "report")
        workers = [node["pid"] for node in described["nodes"]]
        correct = result == expected()
    show_result(result)
    show_routes(described["routes"], seconds)
    left = [pid for pid in (*workers, process.pid) if os.path.exists(f"/proc/{pid}")]
    left += [folder] if os.path.exists(folder) else []
    out.print(
        f"equal to an independent computation on all {TOTAL_ROWS:,} flights: {'yes' if correct else '[red]NO[/]'}"
    )
    out.print(f"left behind: {left or 'nothing'} (processes, sockets, files)")
    return 0 if correct and not left else 1


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    """A daemon of our own in ``folder`` and a client of it; it is stopped at the end, also on Ctrl-C."""
    control, log = folder / "control.sock", folder / "daemon.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, log.open("wb") as sink:
        notify.bind(f"\0chronetix-demo-{os.getpid()}")
        command = [sys.executable, "-m", "chronetixd", "--socket", str(control), "--state-dir", str(folder / "state")]
        environment = os.environ | {"NOTIFY_SOCKET": f"@chronetix-demo-{os.getpid()}"}
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink, start_new_session=True)
        try:
            await_ready(notify, process, log)
            with Client.connect(control) as client:
                yield process, client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def await_ready(notify: socket.socket, process: subprocess.Popen[bytes], log: Path) -> None:
    """Sleep until the daemon says READY; its log is shown if it ends instead."""
    alive = os.pidfd_open(process.pid)
    try:
        while notify in select.select([notify, alive], [], [])[0]:
            if b"READY=1" in notify.recv(4096):
                return
    finally:
        os.close(alive)
    raise SystemExit(f"the daemon ended with {process.wait()}:\n{log.read_text()}")


def watch(client: Client, name: str) -> None:
    """Show how many frames have reached the sink until the flow has ended."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=out) as progress:
        task = progress.add_task("through the rings", total=None)
        while True:
            (flow,) = client.call("stats", flow=name)["flows"]
            routes = {route["id"]: route for route in flow["routes"]}
            sent = sum(route["committed"] for route in routes.values())
            progress.update(task, completed=sum(route["returned"] for route in routes.values()), total=sent)
            if flow["state"] in ("stopped", "failed"):
                return
            time.sleep(0.05)


def expected() -> dict[str, Any]:
    """The same figures from the whole table at once, row by row, with nothing shared with the flow's code."""
    carriers: dict[str, list[int | None]] = defaultdict(list)
    routes: dict[int, Counter[tuple[str, str]]] = defaultdict(Counter)
    with flights_csv() as stream:
        for row in csv.DictReader(io.TextIOWrapper(stream)):
            delay = row["arr_delay"]
            carriers[row["carrier"]].append(int(float(delay)) if delay not in ("", "NA") else None)
            routes[int(row["month"])][row["origin"], row["dest"]] += 1
    statistics = {}
    for carrier, delays in sorted(carriers.items()):
        known = [delay for delay in delays if delay is not None]
        mean = sum(known) / len(known)
        statistics[carrier] = {
            "flights": len(delays),
            "arrived": len(known),
            "mean": mean,
            "deviation": (sum(delay * delay for delay in known) / len(known) - mean * mean) ** 0.5,
            "longest": max(known),
        }
    busiest = []
    for month, counts in sorted(routes.items()):
        flights, (origin, dest) = max((count, pair) for pair, count in counts.items())
        busiest.append({"month": month, "flights": flights, "from": origin, "to": dest})
    return {"carriers": statistics, "busiest": busiest}


def show_result(result: dict[str, Any]) -> None:
    """The sink's result as two tables."""
    table = Table("carrier", title="arrival delay by carrier (minutes)", title_justify="left")
    for heading in ("flights", "mean", "std dev", "longest"):
        table.add_column(heading, justify="right")
    for carrier, row in result["carriers"].items():
        figures = f"{row['flights']:,}", f"{row['mean']:.1f}", f"{row['deviation']:.1f}", str(row["longest"])
        table.add_row(carrier, *figures)
    busiest = Table("month", "route", title="busiest route by month", title_justify="left")
    busiest.add_column("flights", justify="right")
    for row in result["busiest"]:
        busiest.add_row(str(row["month"]), f"{row['from']} → {row['to']}", f"{row['flights']:,}")
    side_by_side = Table.grid(padding=(0, 4))
    side_by_side.add_row(table, busiest)
    out.print(side_by_side)


def show_routes(routes: list[dict[str, Any]], seconds: float) -> None:
    """What the daemon saw of each route: frames, megabytes, most credits used at once, latency from commit to take."""
    table = Table("route", title=f"data plane, {seconds:.2f} s from submit to the end", title_justify="left")
    for heading in ("frames", "MB", "frames/s", "credits", "WouldBlock", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for route in routes:
        stats = route["stats"]
        table.add_row(
            f"{route['from']} → {route['to']}",
            f"{stats['committed']:,}",
            f"{stats['bytes'] / 1e6:.1f}",
            f"{stats['committed'] / seconds:,.0f}",
            f"{stats['max_outstanding']}/{stats['credits']}",
            f"{stats['would_block']:,}",
            f"{stats['p50_ns'] / 1e6:.1f}",
            f"{stats['p99_ns'] / 1e6:.1f}",
        )
    out.print(table)


def interrupted(number: int, _frame: FrameType | None) -> None:
    """Leave through every ``finally``."""
    sys.exit(128 + number)


if __name__ == "__main__":
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupted)
    sys.exit(main())
