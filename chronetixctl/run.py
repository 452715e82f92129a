"""``run --inproc``: runs a whole flow in this one process, without a daemon and with the same semantics.

Rules: the command replaces itself by the runner (exec), so that exit code and signals are the runner's own; the runner
reads the compiled flow from a memfd: no temporary file is left behind, no pipe can fill up, and stdin stays the
terminal's, for ``breakpoint()``. If stdin was the flow's text, stdin is the terminal from then on, if there is one.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

import click

from chronetix.protocol import cbor
from chronetixctl.app import Session
from chronetixctl.flowfile import load_flow
from chronetixctl.options import command, file_argument, settling_options
from chronetixd.startpath import SAFE


@command(
    """
chronetixctl run --inproc flow.yaml
chronetixctl compile flow.yaml | chronetixctl run --inproc -
"""
)
@file_argument
@settling_options
@click.option("--inproc", is_flag=True, help="Required: run all nodes in this process. `submit` runs them in workers.")
def run(session: Session, file: str, bindings: dict[str, str], artifacts: dict[str, str], inproc: bool) -> int:
    """Run the flow in FILE (- for stdin) to its end in this one process.

    For trying out and debugging plugins: breakpoints work, and no process is left behind. Ctrl-C ends the sources and
    lets the other nodes finish; a second Ctrl-C stops at once. The exit code is 130 after Ctrl-C, else the flow's.
    """
    if not inproc:
        raise click.UsageError("run needs --inproc; to run a flow in processes of its own: chronetixctl submit FILE")
    if session.output == "yaml":
        raise click.UsageError("run prints its results as a table or, with -o json, as JSON")
    flow = load_flow(file, artifacts, bindings)
    if file == "-":
        _read_from_terminal()
    bound = [f"--bind={endpoint}={node}" for endpoint, node in bindings.items()]
    shown = [f"--source={flow.source}", f"--output={session.output}"]
    _become_runner(cbor.dumps(flow.flow), [f"--base-dir={flow.base_dir}", *shown, *bound])


def _become_runner(document: bytes, options: list[str]) -> NoReturn:
    memory = os.memfd_create("flow", 0)
    with os.fdopen(os.dup(memory), "wb") as stream:
        stream.write(document)
    os.lseek(memory, 0, os.SEEK_SET)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))  # until the runner unblocks it: no traceback at start-up
    runner = [sys.executable, SAFE, "-m", "chronetix.nodeworker.inprocess.command"]
    os.execv(sys.executable, [*runner, *options, f"--descriptor={memory}"])


def _read_from_terminal() -> None:
    """Make the controlling terminal stdin. Without a terminal stdin stays as it is: at its end."""
    with suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(terminal, 0)
        os.close(terminal)
