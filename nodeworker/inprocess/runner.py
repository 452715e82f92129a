"""What the command of this package does: read a compiled flow, run it, print what came of it."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from chronetix.nodeworker import _clone
from chronetix.nodeworker.api.context import Level
from chronetix.nodeworker.api.errors import Interrupted
from chronetix.nodeworker.api.tracebacks import told
from chronetix.nodeworker.inprocess.deployment import Deployment
from chronetix.nodeworker.inprocess.member import FlowFailed
from chronetix.protocol import cbor
from chronetix.protocol.configure import configure, unsupported
from chronetix.protocol.contract import Flow, Problem, parse_flow
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.json_text import json_text

COLUMNS = ("committed", "bytes", "credits", "would_block", "p50_ns", "p99_ns")
"""What the table shows of each route's counters; ``-o json`` has all."""

FINISHED = 0
FAILED = 1
INTERRUPTED = 130
"""Exit codes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow that the command line names; the exit code."""
    options = _options(arguments)
    try:
        flow, base_dir = read_flow(options.flow, dict(options.bind), options.base_dir)
        return run(flow, base_dir, options.output)
    except ChronetixError as reason:
        print(f"error: {reason.message}\n{reason.hint}", file=sys.stderr)
        for problem in reason.details.get("problems", ()):
            print(f"  {problem}", file=sys.stderr)
        return FAILED
    except Interrupted:
        return INTERRUPTED


def read_flow(source: str, bindings: Mapping[str, str], base_dir: str = "") -> tuple[Flow, str]:
    """The flow in the file ``source`` (- for stdin; JSON or CBOR) and the folder its relative paths start from.

    Raises ChronetixError ``flow-unreadable``, ``flow-invalid``.
    """
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        raw = msgspec.json.decode(data) if data.lstrip()[:1] == b"{" else cbor.loads(data)
    except (OSError, msgspec.DecodeError, cbor.CborError) as reason:
        raise error("flow-unreadable", source=source, reason=str(reason)) from None
    validation = parse_flow(raw, bindings=bindings)
    problems, warnings = list(validation.problems), list(validation.warnings)
    if validation.flow is not None:
        refused, without_effect = unsupported(validation.flow)
        problems += refused + _needs_processes(validation.flow)
        warnings += without_effect
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if validation.flow is None or problems:
        first = str(problems[0]) if problems else "nothing in it"
        texts = [str(problem) for problem in problems]
        raise error("flow-invalid", flow=source, count=len(problems), first=first, problems=texts)
    folder = base_dir or ("." if source == "-" else str(Path(source).parent))
    return validation.flow, str(Path(folder).resolve())


def _needs_processes(flow: Flow) -> list[Problem]:
    """Nodes that cannot run inside this process."""
    problems = []
    for at, manifest in enumerate(flow.manifests):
        if manifest.artifact.kind != "Python" and not manifest.artifact.uri.startswith("builtin://"):
            text = f"node {manifest.node} is of kind {manifest.artifact.kind}, which needs a process of its own"
            problems.append(Problem(f"manifests[{at}].artifact.kind", text, "run the flow with chronetixd"))
    return problems


def run(flow: Flow, base_dir: str, output: str = "table") -> int:
    """Run ``flow`` to its end and print what came of it; the exit code."""
    name = flow.name or "flow"
    deployment = Deployment(configure(flow, name, base_dir), on_log=_print_log)
    asked: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise Interrupted("told twice to stop")
        print("stopping: sources end now, the rest finishes what is there (again to stop at once)", file=sys.stderr)
        deployment.drain()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        _clone.ring_on_signal(number, deployment.bell.eventfd)
    try:
        deployment.run()
        _print_results(name, flow, deployment, output)
        sys.stdout.flush()
    except FlowFailed as failure:
        if failure.__cause__ is not None:
            print(told(failure.__cause__), end="", file=sys.stderr)
        print(f"error: {failure}", file=sys.stderr)
        return FAILED
    finally:
        deployment.close()
        _clone.ring_on_signal(signal.SIGINT, -1)
        for number, handler in before.items():
            signal.signal(number, handler)
    return INTERRUPTED if signal.SIGINT in asked else FINISHED


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chronetix.nodeworker.inprocess.command", description="Run a compiled flow in one process."
    )
    parser.add_argument("flow", help="a CompileOutput, JSON or CBOR; - for stdin")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument(
        "--base-dir", default="", help="where relative artifacts start; default: the flow file's folder"
    )
    parser.add_argument(
        "--bind",
        type=_binding,
        action="append",
        default=[],
        metavar="ENDPOINT=NODE",
        help="which node an endpoint means",
    )
    return parser.parse_args(arguments)


def _binding(text: str) -> tuple[str, str]:
    endpoint, equals, node = text.partition("=")
    if not (endpoint and equals and node):
        raise argparse.ArgumentTypeError(f"{text!r} should read ENDPOINT=NODE")
    return endpoint, node


def _print_log(node: str, level: Level, message: str, fields: dict[str, Any]) -> None:
    shown = "".join(f" {key}={value!r}" for key, value in fields.items())
    print(f"{level:<7} {node}: {message}{shown}", file=sys.stderr)


def _print_results(name: str, flow: Flow, deployment: Deployment, output: str) -> None:
    routes = {route.id: route for route in flow.data_routes}
    snapshots = deployment.snapshots()
    if output == "json":
        described = [
            {"id": id, "from": routes[id].source, "to": routes[id].target, **snapshot}
            for id, snapshot in snapshots.items()
        ]
        print(json_text({"flow": name, "nodes": deployment.results, "routes": described}))
        return
    for node, result in deployment.results.items():
        if result is not None:
            print(f"{node}: {json_text(result, 2)}")
    width = max((len(id) for id in snapshots), default=5)
    print("  ".join(["route".ljust(width), *(column.rjust(12) for column in COLUMNS)]))
    for id, snapshot in snapshots.items():
        counters: Mapping[str, Any] = {**snapshot}
        print("  ".join([id.ljust(width), *(str(counters[column]).rjust(12) for column in COLUMNS)]))
