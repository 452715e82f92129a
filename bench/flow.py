"""``python -m bench.flow``: a flow as its author writes it (generator, function, sink) beside the same flow on rivals.

Rules:

* The three plugins (``bench/flow_nodes.py``) are the same for all; each runs in a process of its own. chronetix runs
  them under its daemon with default settings; a rival carries frames between them (``bench/flow_peers.py``).
* As many frames may be under way on a route of chronetix as on a rival's (``cells.window``); ``chronetix_64`` is the
  same flow with routes of 64 frames, which is what a flow gets that does not say.
* The source yields for some seconds. The clock runs in the sink, from one second after its first frame to the end of
  the stream: until then memory is used for the first time, and processes are still starting.
* All peers are measured in turn in each round; a ratio is that of one round, and the median of the rounds counts.
* ``edges``: a numpy filter over pictures of 1080p in place of the function that returns its frame, beside the same
  filter called in a loop in one process (``alone``); ``edges_in_place`` writes its result into the next frame. Their
  routes have a buffer of two pictures, as live pictures want it; with more of them each picture is read from memory
  that no cache holds any more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from bench import flow_nodes
from bench.cells import window
from bench.flow_peers import PEERS, ROLES
from bench.machine import describe_machine, own_version, progress
from bench.report import aligned, number_text, size_text
from bench.start import ROOT, daemon
from chronetixctl.client import Client

SIZES = (64, 4096, 1 << 20, 6_220_800)
"""Bytes; the last one is a picture of 1080p."""
PICTURES = 2
DEFAULT_BUFFER = 64
SECONDS = 4.0
ROUNDS = 3
OCTETS = "application/octet-stream"
TARGETS = ((64, "pyzmq", 4.0), (64, "dora", 150.0), (SIZES[-1], "pyzmq", 4.0))
"""Size, rival, and how many times as many frames a second chronetix is to move."""
ALONE_TARGET = 0.9


@dataclass(frozen=True, slots=True)
class FlowRow:
    """One line of the JSON file: a peer's flow in one round."""

    peer: str
    version: str
    function: str
    size: int
    sent: int
    received: int
    frames_per_second: float
    cpu_s_per_million: tuple[float, ...] = ()
    """Seconds of processor a million frames of source, map and sink, from the start of each process to its end; of
    chronetix only."""


Run = Callable[[Mapping[str, Any]], tuple[int, Mapping[str, Any]]]
"""Frames sent, and what the sink has counted."""


def compiled(params: Mapping[str, Any], buffer: int) -> dict[str, Any]:
    """Return the flow for the daemon, with room for ``buffer`` frames on each route."""
    artifact = f"python://{ROOT / 'bench' / 'flow_nodes.py'}:"
    nodes = (("source", "blocks"), ("map", params["function"]), ("sink", "Count"))
    return {
        "manifests": [
            {
                "node_id": node,
                "plugin_id": node,
                "version": "1",
                "artifact": {"kind": "Python", "uri": artifact + entry},
                "params": dict(params),
            }
            for node, entry in nodes
        ],
        "routes": [
            {"from": here, "to": there, "plane": "data", "topic": here, "content_type": OCTETS, "buffer": buffer}
            for here, there in (("source", "map"), ("map", "sink"))
        ],
        "schemas": [],
    }


def on_chronetix(client: Client, buffer: int | None = None) -> Run:
    """Submit the flow and wait for its end. ``buffer`` is that of all routes; by default they have a rival's for
    ``forward``, and two frames for the filters."""

    def run(params: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        name = f"flow-{time.monotonic_ns()}"
        room = buffer or (window(params["size"]) if params["function"] == "forward" else PICTURES)
        client.call("submit", flow=compiled(params, room), name=name)
        give_up = time.monotonic() + params["seconds"] + 60
        while (described := client.call("describe", flow=name))["state"] not in ("stopped", "failed"):
            if time.monotonic() > give_up:
                raise TimeoutError(f"the flow {name} does not end")
            time.sleep(0.05)
        if described["state"] == "failed":
            raise RuntimeError(f"the flow {name} failed")
        counted = next(node["result"] for node in described["nodes"] if node["node"] == "sink")
        sent = next(route["stats"]["committed"] for route in described["routes"] if route["from"] == "source")
        used = {node["node"]: sum(death["cpu_ns"] for death in node["deaths"]) for node in described["nodes"]}
        return sent, counted | {"cpu_ns": [used[role] for role in ROLES]}

    return run


def on_rival(play: Callable[[Path, Mapping[str, Any]], None]) -> Run:
    """Run a rival's flow in a folder of its own."""

    def run(params: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="bench-flow-") as name:
            folder = Path(name)
            (folder / "params.json").write_text(json.dumps(params))
            play(folder, params)
            sent, counted = (json.loads((folder / f"{role}.json").read_text()) for role in ("source", "sink"))
        return sent["frames"], counted

    return run


def alone(params: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """Call the function in a loop, in this process."""
    function = getattr(flow_nodes, params["function"])
    count, ctx = flow_nodes.Count(), flow_nodes.Context(params)
    for block in flow_nodes.blocks(ctx):
        count.on_frame(function(block, ctx), ctx)
    return count.frames, count.on_stop(ctx)


def row(peer: str, version: str, params: Mapping[str, Any], run: Run) -> FlowRow:
    """Measure once."""
    progress(f"{params['function']} {size_text(params['size'])} {peer}")
    sent, counted = run(params)
    rate = counted["counted"] / counted["seconds"] if counted["seconds"] else 0.0
    frames = max(1, counted["frames"])
    cpu = tuple(used / frames / 1000 for used in counted.get("cpu_ns", ()))
    return FlowRow(peer, version, params["function"], params["size"], sent, counted["frames"], rate, cpu)


def ratios(rows: Sequence[FlowRow], function: str, size: int, rival: str) -> list[float]:
    """Frames a second of chronetix over the rival's, round by round."""

    def rates(peer: str, function: str) -> list[float]:
        return [
            each.frames_per_second for each in rows if (each.peer, each.function, each.size) == (peer, function, size)
        ]

    same = function.removesuffix("_in_place")
    return [
        ours / theirs for ours, theirs in zip(rates("chronetix", function), rates(rival, same), strict=False) if theirs
    ]


def table(rows: Sequence[FlowRow]) -> list[str]:
    """One line for each peer, function and size: medians, and losses of all rounds together."""
    lines: list[tuple[str, ...]] = [
        ("function", "size", "peer", "frames/s", "GB/s", "lost", "ratio", "CPU s/M source", "map", "sink")
    ]
    for function, size, peer in dict.fromkeys((each.function, each.size, each.peer) for each in rows):
        same = [each for each in rows if (each.function, each.size, each.peer) == (function, size, peer)]
        rate = statistics.median(each.frames_per_second for each in same)
        times = ratios(rows, function, size, peer) if peer != "chronetix" else []
        lines.append(
            (
                function,
                size_text(size),
                peer,
                number_text(rate),
                number_text(rate * size / 1e9),
                str(sum(each.sent - each.received for each in same)),
                f"{number_text(statistics.median(times))}x" if times else "",
                *(
                    number_text(statistics.median(stage))
                    for stage in zip(*(each.cpu_s_per_million for each in same), strict=True)
                ),
            )
        )
    width = len(lines[0])
    return aligned([line + ("",) * (width - len(line)) for line in lines])


def targets(rows: Sequence[FlowRow]) -> list[str]:
    """What this benchmark is to show, and whether it did."""
    wanted = [
        (f"{size_text(size)} at least {limit:g}x {rival}", limit, "forward", size, rival)
        for size, rival, limit in TARGETS
    ]
    wanted += [
        (f"{what} at least {ALONE_TARGET:g}x the filter alone", ALONE_TARGET, function, SIZES[-1], "alone")
        for what, function in (("a filter over 1080p", "edges"), ("the same in place", "edges_in_place"))
    ]
    lines = []
    for text, limit, function, size, rival in wanted:
        found = ratios(rows, function, size, rival)
        if not found:
            lines.append(f"  not measured  {text}")
            continue
        value = statistics.median(found)
        lines.append(f"  {'met' if value >= limit else 'MISSED':12}  {text}: {value:.3g}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.flow", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one JSON object a line")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"default {ROUNDS}")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="S", help=f"of each flow; default {SECONDS:g}"
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, metavar="BYTES", help="default: all four")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="default: all")
    options = parser.parse_args(argv)
    rivals = {name: PEERS[name] for name in options.peers if not PEERS[name][0] or util.find_spec(module(name))}
    missing = [name for name in options.peers if name not in rivals]
    rows: list[FlowRow] = []
    with tempfile.TemporaryDirectory(prefix="bench-flow-") as name, daemon(Path(name)) as client:
        ours, ours_by_default = on_chronetix(client), on_chronetix(client, DEFAULT_BUFFER)
        for _ in range(options.rounds):
            for size in options.sizes:
                params = {"function": "forward", "size": size, "seconds": options.seconds}
                rows.append(row("chronetix", own_version(), params, ours))
                rows.append(row("chronetix_64", own_version(), params, ours_by_default))
                for peer, (distribution, play) in rivals.items():
                    version = metadata.version(distribution) if distribution else sys.version.split()[0]
                    rows.append(row(peer, version, params, on_rival(play)))
            if SIZES[-1] in options.sizes:
                for function in ("edges", "edges_in_place"):
                    params = {"function": function, "size": SIZES[-1], "seconds": options.seconds}
                    rows.append(row("chronetix", own_version(), params, ours))
                rows.append(row("alone", own_version(), params | {"function": "edges"}, alone))
    progress("")
    if options.json is not None:
        options.json.write_text("".join(json.dumps(asdict(each)) + "\n" for each in rows))
    print(f"{describe_machine()}; medians of {options.rounds} round(s) of {options.seconds:g} s", "")
    print("\n".join(["", *table(rows), "", "Targets (median of the ratios of each round)", *targets(rows)]))
    if missing:
        print(f"  not measured: {', '.join(missing)} (not installed: make bench-flow installs them)")
    return 0


def module(peer: str) -> str:
    """Return what a rival is imported as."""
    return {"pyzmq": "zmq"}.get(peer, peer)


if __name__ == "__main__":
    sys.exit(main())
