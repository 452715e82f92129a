"""``run --inproc``: the whole flow in this one process, no daemon, same semantics.

Rules: the command becomes the runner (exec), so its exit code and signals are the runner's own; the compiled
flow reaches it on stdin through a memfd: no temporary file, and no pipe that could fill up.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import click

from chronetix.protocol import cbor
from chronetixctl.app import Session
from chronetixctl.flowfile import load_flow
from chronetixctl.options import bind_option, command, file_argument
from chronetixd.startpath import SAFE


@command(
    """
chronetixctl run --inproc flow.yaml
chronetixctl compile flow.yaml | chronetixctl run --inproc -
"""
)
@file_argument
@bind_option
@click.option("--inproc", is_flag=True, help="In this process. The only way so far: for workers of their own, submit.")
def run(session: Session, file: str, bindings: dict[str, str], inproc: bool) -> int:
    """Run the flow in FILE (- for stdin) to its end in this one process.

    For trying out and debugging plugins: breakpoints work, and nothing is left behind. Ctrl-C ends the sources and lets
    the rest finish, a second one stops at once; the exit code is 130 then, else the flow's.
    """
    if not inproc:
        raise click.UsageError("run needs --inproc; to run a flow in processes of its own: chronetixctl submit FILE")
    if session.output == "yaml":
        raise click.UsageError("run prints its results as a table or, with -o json, as JSON")
    flow = load_flow(file)
    bound = [f"--bind={endpoint}={node}" for endpoint, node in bindings.items()]
    _become_runner(cbor.dumps(flow.flow), [f"--base-dir={flow.base_dir}", f"--output={session.output}", *bound])


def _become_runner(document: bytes, options: list[str]) -> NoReturn:
    memory = os.memfd_create("flow", 0)
    with os.fdopen(os.dup(memory), "wb") as stream:
        stream.write(document)
    os.lseek(memory, 0, os.SEEK_SET)
    os.dup2(memory, 0)
    os.close(memory)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))  # a new interpreter would show a traceback; it waits
    os.execv(sys.executable, [sys.executable, SAFE, "-m", "chronetix.nodeworker.inprocess.command", *options, "-"])
