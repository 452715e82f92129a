"""``run --inproc``: the whole flow in this one process, no daemon, same semantics.

Rules: the command becomes the runner (exec), so its exit code and signals are the runner's own; the compiled
flow reaches it on stdin through a memfd: no temporary file, and no pipe that could fill up.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from chronetixd.cli import output
from chronetixd.cli.app import Session
from chronetixd.cli.flowfile import load_flow
from chronetixd.cli.options import command, file_argument


@command(
    """
chronetixctl run --inproc flow.yaml
chronetixctl compile flow.yaml | chronetixctl run --inproc -
"""
)
@file_argument
@click.option("--inproc", is_flag=True, help="In this process. The only way so far: for workers of their own, submit.")
def run(_: Session, file: str, inproc: bool) -> int:
    """Run the flow in FILE (- for stdin) to its end in this one process.

    For trying out and debugging plugins: breakpoints work, and nothing is left behind. The exit code is the
    flow's.
    """
    if not inproc:
        raise click.UsageError("run needs --inproc; to run a flow in processes of its own: chronetixctl submit FILE")
    flow = load_flow(file)
    _become_runner(output.to_json(flow.flow).encode(), flow.base_dir)


def _become_runner(document: bytes, base_dir: str) -> NoReturn:
    memory = os.memfd_create("flow", 0)
    with os.fdopen(os.dup(memory), "wb") as stream:
        stream.write(document)
    os.lseek(memory, 0, os.SEEK_SET)
    os.dup2(memory, 0)
    os.close(memory)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "nodeworker.inproc", "--base-dir", base_dir, "-"])
