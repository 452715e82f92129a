"""Workers that start by themselves: which node a process that attaches is to become the worker of.

A flow has one attach token, a secret that its submitter may read and hand on. It is made when it is first asked for,
and stays the same for later runs of the flow, so that a supervisor which starts the worker can keep it. A worker that
attaches names the token, and the name in the node's ``attach://NAME``. Each refusal names the next step.
"""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence

from chronetix.protocol import messages as wire
from chronetix.protocol.errors import error
from chronetix.protocol.nearest import nearest
from chronetixd.core.access import Peer
from chronetixd.core.worker import WorkerState
from chronetixd.flows.artifacts import folder
from chronetixd.flows.run import FlowRun

TOKEN_BYTES = 16


class AttachTokens:
    """The attach tokens of all listed flows."""

    def __init__(self) -> None:
        self._flows: dict[str, str] = {}

    def add(self, flow: str, token: str) -> None:
        """Add the token of ``flow``; an empty one is none."""
        if token:
            self._flows[token] = flow

    def remove(self, token: str) -> None:
        """Remove a token, if there is such a one."""
        self._flows.pop(token, None)

    def flow(self, token: str) -> str:
        """Return the flow that ``token`` belongs to. Raises ChronetixError ``attach-token-unknown``."""
        flow = self._flows.get(token)
        if flow is None:
            raise error("attach-token-unknown")
        return flow

    @staticmethod
    def make() -> str:
        """Return a new token."""
        return secrets.token_hex(TOKEN_BYTES)


def names(run: FlowRun) -> dict[str, str]:
    """Return the nodes of ``run`` whose workers attach, with the names that these have to give."""
    return {node: plan.attach for node, plan in run.plan.nodes.items() if plan.attach}


def find_node(run: FlowRun, hello: wire.Hello, peer: Peer) -> str:
    """Return the node of ``run`` that waits for the worker that has sent ``hello``. Raises ChronetixError
    ``attach-name-unknown``, ``attach-wrong-user``, ``attach-not-awaited``."""
    known = names(run)
    node = next((each for each, name in known.items() if name == hello.attach), None)
    if node is None:
        raise error(
            "attach-name-unknown", flow=run.name, name=hello.attach, nearest=nearest(hello.attach, known.values())
        )
    if peer.uid != os.geteuid():
        raise error("attach-wrong-user", flow=run.name, node=node, uid=peer.uid, own=os.geteuid())
    if run.machine.ended:
        raise error("attach-not-awaited", flow=run.name, node=node, reason=f"the flow is {run.state}")
    if run.recovery is not None:
        reason = "the flow is being recovered after the death of a daemon"
        raise error("attach-not-awaited", flow=run.name, node=node, reason=reason)
    state = run.machine.workers[node].state if node in run.machine.workers else WorkerState.SPAWNING
    if state is not WorkerState.WAITING:
        worker = run.workers.get(node)
        living = worker is not None and worker.alive
        reason = f"process {worker.pid} is its worker" if living and worker is not None else f"it is {state}"
        raise error("attach-not-awaited", flow=run.name, node=node, reason=reason)
    return node


def described(run: FlowRun, socket: str) -> Iterator[dict[str, str]]:
    """Yield what a person needs to start each worker of ``run`` that attaches: its node, name and state, and the
    command line."""
    for node, name in names(run).items():
        subject = run.machine.workers.get(node)
        state = str(subject.state) if subject is not None else str(WorkerState.SPAWNING)
        yield {"node": node, "name": name, "state": state, "command": command(run, node, socket)}


def command(run: FlowRun, node: str, socket: str) -> str:
    """Return the command line that starts the worker of ``node``, for a shell."""
    manifest = run.plan.nodes[node].manifest
    where = folder(manifest, run.plan.base_dir)
    return command_line(run.name, socket, manifest.artifact.args, manifest.env, where)


def command_line(flow: str, socket: str, args: Sequence[str], env: Mapping[str, str], folder: str) -> str:
    """Return the command line for a worker of ``flow``. Without ``args`` the program is left for the reader to fill
    in."""
    own = {"CHRONETIX_SOCKET": socket, **env}
    token = f'CHRONETIX_ATTACH_TOKEN="$(chronetixctl attach-token {shlex.quote(flow)})"'
    program = shlex.join(args) or "PROGRAM"
    line = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in own.items()), token, program])
    return f"cd {shlex.quote(folder)} && {line}" if folder else line
