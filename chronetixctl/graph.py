"""``graph``: draws the flow in a file as text, or in the language of Mermaid or Graphviz, or as SVG."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from typing import Any

import click

from chronetix.protocol.contract import Flow, Route, parse_flow
from chronetixctl import exits, output
from chronetixctl.app import Session
from chronetixctl.flowfile import load_flow, print_problems
from chronetixctl.options import command, file_argument, settling_options
from chronetixd.flows.validation import problem_maps


@command(
    """
chronetixctl graph flow.yaml
chronetixctl graph flow.yaml --as mermaid
chronetixctl graph flow.yaml --as svg > flow.svg
chronetixctl graph flow.yaml -o json
"""
)
@file_argument
@settling_options
@click.option(
    "--as",
    "language",
    type=click.Choice(("text", "mermaid", "dot", "svg")),
    default="text",
    show_default=True,
    help="What to print. svg takes the program dot of Graphviz.",
)
def graph(session: Session, file: str, bindings: dict[str, str], artifacts: dict[str, str], language: str) -> int:
    """Draw the flow in FILE (- for stdin): its nodes in the order in which data passes them, and their routes.

    Data routes show their content type and buffer, control routes, which are dashed, their topic. A flow with problems
    is not drawn. Whether its artifacts exist is not looked at.
    """
    if language != "text" and session.output != "table":
        raise click.UsageError(f"-o {session.output} prints nodes and routes; leave out --as {language}")
    source = load_flow(file, artifacts, bindings)
    checked = parse_flow(source.flow, bindings=bindings)
    flow = checked.flow
    if flow is None:
        print_problems(tuple(source.placed(each) for each in problem_maps(checked.problems)))
        return exits.FAILED
    output.show(_plain(flow), session.output, lambda: DRAWN[language](flow))
    return exits.OK


def _plain(flow: Flow) -> dict[str, Any]:
    """Return nodes in order, and routes, for programs."""
    manifests = {manifest.node: manifest for manifest in flow.manifests}
    nodes = [
        {"node": node, "role": manifests[node].role, "artifact": manifests[node].artifact.uri}
        for node in in_order(flow)
    ]
    routes = [
        {"id": route.id, "from": route.source, "to": route.target, "plane": route.plane, **_carries(route)}
        for route in flow.routes
    ]
    return {"name": flow.name, "nodes": nodes, "routes": routes}


def _carries(route: Route) -> dict[str, Any]:
    if route.plane == "control":
        return {"topic": route.topic}
    return {"content_type": route.content_type, "buffer": route.buffer, "policy": route.policy}


def in_order(flow: Flow) -> list[str]:
    """Return the nodes so that each stands behind all that send data to it, else as in the file."""
    before: dict[str, list[str]] = {manifest.node: [] for manifest in flow.manifests}
    for route in flow.data_routes:
        before[route.target].append(route.source)
    return list(TopologicalSorter(before).static_order())


def label(route: Route) -> str:
    """Return what a route carries, in a few words."""
    if route.plane == "control":
        return route.topic
    policy = "" if route.policy == "block" else f", {route.policy}"
    return f"{route.content_type.removeprefix('application/')}, {route.buffer}{policy}"


def as_text(flow: Flow) -> str:
    """Return one paragraph a node: what it is, and where it sends."""
    return "\n".join(_lines(flow))


def _lines(flow: Flow) -> Iterator[str]:
    manifests = {manifest.node: manifest for manifest in flow.manifests}
    leaving: dict[str, list[Route]] = {}
    for route in flow.routes:
        leaving.setdefault(route.source, []).append(route)
    for node in in_order(flow):
        manifest = manifests[node]
        about = ", ".join(output.printable(each) for each in (manifest.role, manifest.artifact.uri) if each)
        yield f"{click.style(output.printable(node), bold=True)} ({about})"
        for route in leaving.get(node, ()):
            arrow = "──>" if route.plane == "data" else "╌╌>"
            yield f"  {arrow} {output.printable(route.target)}  {output.printable(label(route))}"


def as_mermaid(flow: Flow) -> str:
    """Return the flow as a flowchart of Mermaid."""
    numbers = {manifest.node: f"n{number}" for number, manifest in enumerate(flow.manifests)}
    lines = ["flowchart LR"]
    lines += [f'    {number}["{_for_mermaid(node)}"]' for node, number in numbers.items()]
    for route in flow.routes:
        arrow = "-->" if route.plane == "data" else "-.->"
        text = _for_mermaid(label(route))
        lines.append(f'    {numbers[route.source]} {arrow}|"{text}"| {numbers[route.target]}')
    return "\n".join(lines)


def _for_mermaid(text: str) -> str:
    """Return a text whose characters mean nothing to Mermaid: those that could are written by their numbers."""
    return "".join(char if char.isalnum() or char in " -_./%,:*" else f"#{ord(char)};" for char in text)


def as_dot(flow: Flow) -> str:
    """Return the flow as a directed graph of Graphviz."""
    lines = ["digraph flow {", "    rankdir=LR;", "    node [shape=box];"]
    lines += [f"    {_for_dot(node)};" for node in in_order(flow)]
    for route in flow.routes:
        style = "" if route.plane == "data" else ", style=dashed"
        ends = f"{_for_dot(route.source)} -> {_for_dot(route.target)}"
        lines.append(f"    {ends} [label={_for_dot(label(route))}{style}];")
    return "\n".join([*lines, "}"])


def _for_dot(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def as_svg(flow: Flow) -> str:
    """Return the flow drawn by Graphviz. Raises click.UsageError without its program dot."""
    program = shutil.which("dot")
    if program is None:
        raise click.UsageError(
            "--as svg takes the program dot: install graphviz, or draw what --as dot prints elsewhere"
        )
    drawn = subprocess.run([program, "-Tsvg"], input=as_dot(flow), capture_output=True, text=True, check=True)
    return drawn.stdout


DRAWN: dict[str, Callable[[Flow], str]] = {"text": as_text, "mermaid": as_mermaid, "dot": as_dot, "svg": as_svg}
