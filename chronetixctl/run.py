"""``run --inproc``: runs a whole flow in this one process, without a daemon and with the same semantics.

Rules: the command replaces itself by the runner (exec), so that exit code and signals are the runner's own; the runner
reads the compiled flow from stdin, which is a memfd: no temporary file is left behind, and no pipe can fill up.
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
@click.option("--inproc", is_flag=True, help="Required: run all nodes in this process. `submit` runs them in workers.")
def run(session: Session, file: str, bindings: dict[str, str], inproc: bool) -> int:
    """Run the flow in FILE (- for stdin) to its end in this one process.

    For trying out and debugging plugins: breakpoints work, and no process is left behind. Ctrl-C ends the sources and
    lets the other nodes finish; a second Ctrl-C stops at once. The exit code is 130 after Ctrl-C, else the flow's.
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
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))  # until the runner unblocks it: no traceback at start-up
    os.execv(sys.executable, [sys.executable, SAFE, "-m", "chronetix.nodeworker.inprocess.command", *options, "-"])
