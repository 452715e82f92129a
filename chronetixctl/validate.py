"""``validate`` and ``compile``: check or compile a flow's text without running it and without a daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from chronetix.protocol.contract import Flow, parse_flow
from chronetix.protocol.json_text import json_text
from chronetixctl import exits, output
from chronetixctl.app import Session
from chronetixctl.flowfile import load_flow, print_problems, print_warnings, read_flow, with_artifacts
from chronetixctl.options import command, file_argument, settling_options
from chronetixd.compile import CompileError, SourceProblem
from chronetixd.flows.validation import problem_maps
from chronetixd.flows.validation import validate as check


@command(
    """
chronetixctl validate flow.yaml
chronetixctl validate flow.json -o json
chronetixctl validate flow.json --remote
"""
)
@file_argument
@settling_options
@click.option("--remote", is_flag=True, help="Let the daemon look for files and modules: it may see others than you.")
def validate(session: Session, file: str, bindings: dict[str, str], artifacts: dict[str, str], remote: bool) -> int:
    """Check the flow in FILE (- for stdin) and list everything that is wrong with it.

    The checks are those that `submit` makes before it starts anything: the fields, and whether the files, modules and
    objects that the flow names are there.
    """
    try:
        flow = with_artifacts(read_flow(file), artifacts, bindings)
    except CompileError as reason:
        return _conclude(session, file, _verdict(reason.problems, (), 0, 0))
    checked = parse_flow(flow.flow, bindings=bindings) if remote else check(flow.flow, bindings, flow.base_dir)
    problems = tuple(flow.placed(each) for each in problem_maps(checked.problems))
    told = problem_maps(checked.warnings)
    lists = (flow.flow.get(each) for each in ("manifests", "routes"))
    nodes, routes = (len(each) if isinstance(each, list) else 0 for each in lists)
    if remote and not problems:
        with session.connect() as client:
            answer = client.call("validate", flow=flow.flow, bindings=bindings or None, base_dir=flow.base_dir)
        problems = tuple(flow.placed(each) for each in answer["problems"])
        told = answer["warnings"]
    warnings = flow.warnings + flow.further(told)
    return _conclude(session, flow.source, _verdict(problems, warnings, nodes, routes))


@command(
    """
chronetixctl compile flow.yaml > flow.json
chronetixctl compile flow.yaml -o yaml
chronetixctl compile out.json --bind timer-1=timer-source --artifact http-client=python://client.py:Client
""",
    name="compile",
)
@file_argument
@settling_options
def compile_(session: Session, file: str, bindings: dict[str, str], artifacts: dict[str, str]) -> int:
    """Compile the DSL in FILE (- for stdin) and print the CompileOutput: JSON, or YAML with -o yaml.

    A CompileOutput is checked, and printed with the node_id of every node, which its routes name from then on.
    """
    flow = load_flow(file, artifacts, bindings)
    checked = parse_flow(flow.flow, bindings=bindings)
    if checked.flow is None:
        print_problems(tuple(flow.placed(each) for each in problem_maps(checked.problems)))
        return exits.FAILED
    print_warnings(flow.further(problem_maps(checked.warnings)))
    compiled = with_nodes(flow.flow, checked.flow)
    output.show(compiled, session.output, lambda: json_text(compiled, indent=2))
    return exits.OK


def with_nodes(compiled: Mapping[str, Any], read: Flow) -> dict[str, Any]:
    """Return a compiled flow in which every manifest has its node_id and every route names its ends by them, as they
    were ``read``."""
    named = {
        "manifests": [
            {"node_id": manifest.node} | dict(raw) | {"node_id": manifest.node}
            for raw, manifest in zip(compiled["manifests"], read.manifests, strict=True)
        ],
        "routes": [
            {**raw, "from": route.source, "to": route.target}
            for raw, route in zip(compiled.get("routes") or (), read.routes, strict=True)
        ],
    }
    return {**compiled, **{key: value for key, value in named.items() if value or key in compiled}}


def _verdict(
    problems: tuple[SourceProblem, ...], warnings: tuple[SourceProblem, ...], nodes: int, routes: int
) -> dict[str, Any]:
    return {"valid": not problems, "problems": problems, "warnings": warnings, "nodes": nodes, "routes": routes}


def _conclude(session: Session, source: str, verdict: dict[str, Any]) -> int:
    if session.output == "table":
        print_warnings(verdict["warnings"])
        if verdict["problems"]:
            print_problems(verdict["problems"])
        else:
            click.echo(f"{source}: valid, {verdict['nodes']} nodes, {verdict['routes']} routes")
    else:
        plain = {**verdict, **{key: [_plain(item) for item in verdict[key]] for key in ("problems", "warnings")}}
        output.show(plain, session.output, str)
    return exits.OK if verdict["valid"] else exits.FAILED


def _plain(problem: SourceProblem) -> dict[str, Any]:
    return {
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "kind": problem.kind,
        "message": problem.message,
        "suggestion": problem.suggestion,
    }
