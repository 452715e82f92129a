"""Makes a flow's plan from its contract: what each node is told and how it is started. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from chronetix.protocol import configure
from chronetix.protocol.contract import Flow, Manifest, Restart
from chronetix.protocol.messages import Configure
from chronetixd.core.liveness import Probe
from chronetixd.core.restart import Policy, Rule, Strategy
from chronetixd.dataplane.wiring import DataRoute
from chronetixd.flows import dylib
from chronetixd.flows.artifacts import BUILTIN, program, python_of
from chronetixd.startpath import SAFE

WORKER = "chronetix.nodeworker.process.worker"
"""The module of a Python worker that is started as a program."""

MS = 1_000_000
"""Nanoseconds."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """The plan of one node. ``argv`` is empty for a node that a Python worker runs. ``attach``: the name by which the
    node's worker attaches, which starts by itself; empty for a node that the daemon starts."""

    manifest: Manifest
    configure: Configure
    argv: tuple[str, ...]
    attach: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A flow that can be run under ``name``."""

    name: str
    flow: Flow
    base_dir: str
    nodes: dict[str, NodePlan]
    data_routes: tuple[DataRoute, ...]

    @property
    def rules(self) -> dict[str, Rule]:
        """The restart rule of each node."""
        return {node: _rule(plan.manifest.restart) for node, plan in self.nodes.items()}

    @property
    def probes(self) -> dict[str, Probe]:
        """The liveness probes of the nodes that have one."""
        found = {node: plan.manifest.liveness for node, plan in self.nodes.items()}
        return {
            node: Probe(each.limit_ms * MS, each.period_ms * MS, each.delay_ms * MS, each.failures)
            for node, each in found.items()
            if each is not None
        }

    @property
    def strategy(self) -> Strategy:
        """The strategy that determines which nodes are restarted along with a node."""
        return Strategy(self.flow.strategy)


def make_plan(name: str, flow: Flow, base_dir: str) -> Plan:
    """Return the plan of a flow without problems."""
    told = configure.configure(flow, name, base_dir)
    nodes = {
        manifest.node: NodePlan(manifest, message, _argv(manifest, base_dir), manifest.artifact.attach)
        for manifest, message in zip(flow.manifests, told, strict=True)
    }
    routes = tuple(DataRoute(route.id, route.source, route.target, route.policy) for route in flow.data_routes)
    return Plan(name, flow, base_dir, nodes, routes)


def _rule(restart: Restart) -> Rule:
    return Rule(
        policy=Policy(restart.policy),
        max=restart.max,
        window_ns=restart.window_ms * MS,
        backoff_ns=restart.backoff_ms * MS,
        backoff_max_ns=restart.backoff_max_ms * MS,
        jitter_pct=restart.jitter_pct,
    )


def _argv(manifest: Manifest, base_dir: str) -> tuple[str, ...]:
    artifact = manifest.artifact
    if artifact.python_env:
        return (python_of(manifest, base_dir), SAFE, "-m", WORKER)
    if artifact.uri.startswith(BUILTIN) or artifact.attach:
        return ()
    if artifact.kind == "Dylib":
        return (dylib.host() or dylib.HOST, program(manifest, base_dir))
    if artifact.kind != "Process":
        return ()
    return (program(manifest, base_dir), *(artifact.args or manifest.params.get("args") or ()))
