"""What the command of this package does: read a compiled flow, run it, print what came of it."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import msgspec

from chronetix.nodeworker import _clone
from chronetix.nodeworker.api.context import Level
from chronetix.nodeworker.api.errors import Interrupted
from chronetix.nodeworker.api.tracebacks import told
from chronetix.nodeworker.engine import children, ending
from chronetix.nodeworker.engine.end_watch import EndWatch
from chronetix.nodeworker.inprocess.deployment import END_S, Deployment
from chronetix.nodeworker.inprocess.member import EndTimeout, FlowFailed
from chronetix.protocol import cbor
from chronetix.protocol.configure import configure, unsupported
from chronetix.protocol.contract import Flow, Problem, parse_flow
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.json_text import json_text

COLUMNS = ("committed", "bytes", "credits", "would_block", "dropped", "unread", "p50_ns", "p99_ns")
"""What the table shows of each route's counters; ``-o json`` has all."""

FINISHED = 0
FAILED = 1
INTERRUPTED = 130
NOBODY_READS = 141
"""Exit codes; the last is that of a program which SIGPIPE ends."""

STOPPING = b"stopping: sources end now, the rest finishes what is there (again to stop at once)\n"
"""What the first signal says, whatever is under way."""

AT_ONCE_S = 2.0
"""After the second signal: how long the nodes' ``on_stop`` may take; the daemon's ``terminate_timeout``."""

HELD_UP = b"chronetix: the flow did not end within 2 s after the second signal and was ended\n"

EXITS: Final = {
    FINISHED: "The flow has finished, perhaps because of SIGTERM.",
    FAILED: "A node failed, the flow is not valid, or the process did not end in time; a message says which.",
    2: "The command line is wrong.",
    INTERRUPTED: "Ctrl-C ended the flow.",
    NOBODY_READS: "A node failed because nobody reads stdout any more (`| head -1`). No message tells it. Results that "
    "nobody reads are no failure.",
}
"""What each exit code means."""


def main(arguments: Sequence[str] | None = None, end_s: float = END_S) -> int:
    """Run the flow that the command line names; the exit code."""
    options = _options(arguments)
    try:
        source = options.flow if options.descriptor is None else options.descriptor
        flow, base_dir = read_flow(source, dict(options.bind), options.base_dir, options.source)
        return run(flow, base_dir, options.output, end_s)
    except ChronetixError as reason:
        print(f"error: {reason.message}\n{reason.hint}", file=sys.stderr)
        for problem in reason.details.get("problems", ()):
            print(f"  {problem}", file=sys.stderr)
        return FAILED
    except Interrupted:
        return INTERRUPTED


def read_flow(source: str | int, bindings: Mapping[str, str], base_dir: str = "", called: str = "") -> tuple[Flow, str]:
    """The flow in the file ``source`` (- for stdin, a number for a descriptor, which is closed; JSON or CBOR) and the
    folder its relative paths start from. Errors call it ``called``, by default ``source``.

    Raises ChronetixError ``flow-unreadable``, ``flow-invalid``, ``flow-needs-processes``.
    """
    called = called or ("<stdin>" if source == "-" else str(source))
    try:
        data = _content(source)
        raw = msgspec.json.decode(data) if data.lstrip()[:1] == b"{" else cbor.loads(data)
    except (OSError, msgspec.DecodeError, cbor.CborError) as reason:
        raise error("flow-unreadable", source=called, reason=str(reason)) from None
    validation = parse_flow(raw, bindings=bindings)
    problems, warnings = list(validation.problems), list(validation.warnings)
    several: list[Problem] = []
    if validation.flow is not None:
        refused, without_effect = unsupported(validation.flow)
        problems += refused
        several = _needs_processes(validation.flow) + _differ(validation.flow)
        warnings += without_effect
        warnings += _without_users(validation.flow)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if validation.flow is None or problems or several:
        name = "flow-invalid" if validation.flow is None or problems else "flow-needs-processes"
        texts = [str(problem) for problem in problems + several]
        first = texts[0] if texts else "nothing in it"
        raise error(name, flow=called, count=len(texts), first=first, problems=texts)
    folder = base_dir or (str(Path(source).parent) if isinstance(source, str) and source != "-" else ".")
    return validation.flow, str(Path(folder).resolve())


def _content(source: str | int) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read()
    with open(source, "rb") as file:
        return file.read()


def _needs_processes(flow: Flow) -> list[Problem]:
    """Nodes that cannot run inside this process."""
    problems = []
    for at, manifest in enumerate(flow.manifests):
        if manifest.artifact.attach:
            text = f"node {manifest.node} waits for a worker that attaches to a daemon"
            problems.append(Problem(f"manifests[{at}].artifact.uri", text, "run the flow with chronetixd"))
        elif manifest.artifact.python_env:
            text = f"node {manifest.node} runs in the Python of another environment"
            problems.append(Problem(f"manifests[{at}].artifact.python_env", text, "run the flow with chronetixd"))
        elif manifest.artifact.kind != "Python" and not manifest.artifact.uri.startswith("builtin://"):
            text = f"node {manifest.node} is of kind {manifest.artifact.kind}, which needs a process of its own"
            problems.append(Problem(f"manifests[{at}].artifact.kind", text, "run the flow with chronetixd"))
    return problems


def _differ(flow: Flow) -> list[Problem]:
    """Nodes that want other surroundings than others, of which one process has one."""
    cure = "run the flow with chronetixd (chronetixctl submit), or give all nodes the same"
    problems = []
    folders = {manifest.cwd for manifest in flow.manifests}
    for at, manifest in enumerate(flow.manifests):
        if len(folders) > 1 and manifest.cwd:
            text = f"node {manifest.node} runs in another folder than others, and one process has one"
            problems.append(Problem(f"manifests[{at}].cwd", text, cure))
        for name, value in manifest.env.items():
            others = [each.node for each in flow.manifests if each.env.get(name, value) != value]
            if others:
                text = f"node {others[0]} has another value than node {manifest.node}, and one process has one"
                problems.append(Problem(f"manifests[{at}].env.{name}", text, cure))
    return problems


def _without_users(flow: Flow) -> list[Problem]:
    text = "has no effect in one process, which is yours"
    return [Problem(f"manifests[{at}].user", text) for at, each in enumerate(flow.manifests) if each.user]


def _enter(flow: Flow, base_dir: str) -> None:
    """The surroundings of the flow's nodes, which do not :func:`_differ`. Raises ChronetixError."""
    for manifest in flow.manifests:
        os.environ.update(manifest.env)
    time.tzset()
    folder = str(Path(base_dir, flow.manifests[0].cwd if flow.manifests else ""))
    try:
        os.chdir(folder)
    except OSError as reason:
        raise error("flow-unreadable", source=folder, reason=str(reason)) from None


def run(flow: Flow, base_dir: str, output: str = "table", end_s: float = END_S) -> int:
    """Run ``flow`` to its end, in the folder where its workers would run, and print what came of it; the exit code.
    ``end_s``: how long cancelled tasks may take to end."""
    name = flow.name or "flow"
    _enter(flow, base_dir)
    deployment = Deployment(configure(flow, name, base_dir), on_log=_print_log)
    asked: list[int] = []
    hangs = False

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            _clone.limit_end(AT_ONCE_S, INTERRUPTED, -1, b"", HELD_UP)
            raise Interrupted("told twice to stop")
        with suppress(OSError):
            os.write(2, STOPPING)  # print() may be under way in what this interrupts
        deployment.drain()

    before = {number: children.handle(number, stop) for number in children.STOPPING}
    children.ring_on(children.STOPPING, deployment.bell.eventfd)
    try:
        with _noticing_exits():
            deployment.run()
    except FlowFailed as failure:
        if isinstance(failure.__cause__, BrokenPipeError) and _nobody_reads_stdout():
            return NOBODY_READS
        if failure.__cause__ is not None:
            print(told(failure.__cause__), end="", file=sys.stderr)
        print(f"error: {failure}", file=sys.stderr)
        return FAILED
    else:
        with suppress(BrokenPipeError):  # what of the results is not read is no failure of the flow
            _print_results(name, flow, deployment, output)
            sys.stdout.flush()
    finally:
        watch = EndWatch(end_s + ending.DEAF_S, partial(_exit_blocked, end_s))
        try:
            deployment.close(end_s)
        except EndTimeout as late:
            print(f"error: {late}", file=sys.stderr)
            hangs = True
        finally:
            watch.stop()
        children.ring_on(children.STOPPING, -1)
        for number, handler in before.items():
            children.put_back(number, handler)
    if hangs:
        return FAILED
    return INTERRUPTED if signal.SIGINT in asked else FINISHED


def _exit_blocked(end_s: float, what: str) -> None:
    """End the process, for ``what`` keeps the flow from ending; in a thread of its own."""
    print(f"error: the flow did not end within {end_s:.3g} s and was ended: {what}", file=sys.stderr, flush=True)
    os._exit(FAILED)


@contextmanager
def _noticing_exits() -> Iterator[None]:
    """``os._exit`` within this block fails the flow: in one process nobody else is left who could tell that the flow
    did not come to its end."""
    exit_at_once, owner = os._exit, children.Owner()

    def noticed(status: int) -> NoReturn:
        if owner.is_here:
            text = f"error: a plugin called os._exit({status}), which ends the whole flow: use ctx.finish()\n"
            os.write(2, text.encode())
            status = status or FAILED
        exit_at_once(status)

    os._exit = noticed
    try:
        yield
    finally:
        os._exit = exit_at_once


def _nobody_reads_stdout() -> bool:
    """The other end of the pipe is closed, as that of ``| head -1``."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chronetix.nodeworker.inprocess.command", description="Run a compiled flow in one process."
    )
    parser.add_argument("flow", nargs="?", default="-", help="a CompileOutput, JSON or CBOR; - for stdin")
    parser.add_argument("--descriptor", type=int, help="an open descriptor with it, which is closed")
    parser.add_argument("--source", default="", help="what errors call the flow")
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
        counters: Mapping[str, Any] = {**snapshot, **snapshot["drops"]}
        print("  ".join([id.ljust(width), *(str(counters[column]).rjust(12) for column in COLUMNS)]))
