"""From the contract to what runs: what each node is told, how it is started, and what cannot be run. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chronetixd.artifacts import BUILTIN, program
from chronetixd.wiring import DataRoute
from protocol import configure
from protocol.contract import Flow, Manifest, Problem
from protocol.messages import Configure


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node. ``argv`` is empty for what a Python worker runs."""

    manifest: Manifest
    configure: Configure
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A flow that can be run under ``name``."""

    name: str
    flow: Flow
    base_dir: str
    nodes: dict[str, NodePlan]
    data_routes: tuple[DataRoute, ...]


def unsupported(flow: Flow) -> tuple[list[Problem], list[Problem]]:
    """What of the flow this daemon refuses, and what it accepts without effect: (problems, warnings)."""
    problems, warnings = configure.unsupported(flow)
    for index, manifest in enumerate(flow.manifests):
        if manifest.artifact.kind == "Process" and not _is_text_list(manifest.params.get("args")):
            problems.append(Problem(f"manifests[{index}].params.args", "must be a list of texts", 'as in ["-v", "3"]'))
    return problems, warnings


def make_plan(name: str, flow: Flow, base_dir: str) -> Plan:
    """The plan of a flow without problems."""
    told = configure.configure(flow, name, base_dir)
    nodes = {
        manifest.node: NodePlan(manifest, message, _argv(manifest, base_dir))
        for manifest, message in zip(flow.manifests, told, strict=True)
    }
    routes = tuple(DataRoute(route.id, route.source, route.target) for route in flow.data_routes)
    return Plan(name, flow, base_dir, nodes, routes)


def _argv(manifest: Manifest, base_dir: str) -> tuple[str, ...]:
    if manifest.artifact.kind != "Process" or manifest.artifact.uri.startswith(BUILTIN):
        return ()
    return (program(manifest, base_dir), *(manifest.params.get("args") or ()))


def _is_text_list(args: Any) -> bool:
    """Fit for a command line; None is."""
    return args is None or (isinstance(args, list) and all(isinstance(arg, str) and "\0" not in arg for arg in args))
