"""``submit``: submits a flow to the daemon and waits until the flow is accepted, runs, or has stopped."""

from __future__ import annotations

from typing import Any

import click

from chronetix.protocol.errors import ChronetixError
from chronetixctl import exits, output
from chronetixctl.app import Session, report, say_failed
from chronetixctl.flowfile import FlowFile, load_flow, print_warnings
from chronetixctl.options import FLOW_NAME, SPAN, command, file_argument, settling_options
from chronetixctl.progress import Progress

_SLACK_S = 5.0
"""How much longer than the daemon the client waits, because the error that the daemon sends at its time-out says
more."""


@command(
    """
chronetixctl submit flow.yaml
chronetixctl submit flow.json --name nightly --wait stopped --timeout 10m
chronetixctl submit out.json --bind timer-1=timer-source
chronetixctl submit out.json --artifact http-client=python://client.py:Client
some-compiler | chronetixctl submit -
"""
)
@file_argument
@click.option("--name", type=FLOW_NAME, help="The flow's name.  [default: the file's, else flow-N]")
@settling_options
@click.option(
    "--wait",
    type=click.Choice(("accepted", "running", "stopped")),
    default="running",
    show_default=True,
    help="How far the flow must come before this returns.",
)
@click.option("--timeout", type=SPAN, help="How long to wait for that; the flow goes on when the time is over.")
def submit(
    session: Session,
    file: str,
    name: str | None,
    bindings: dict[str, str],
    artifacts: dict[str, str],
    wait: str,
    timeout: float | None,
) -> int:
    """Submit the flow in FILE (- for stdin) and wait until it runs.

    FILE is YAML or JSON, in the DSL or already compiled, or a compiled flow as CBOR; its content tells which. If the
    flow is invalid, nothing is started and every problem is listed.
    """
    flow = load_flow(file, artifacts, bindings)
    progress = Progress(_text)
    with session.connect() as client:
        try:
            result = client.call(
                "submit",
                timeout=None if timeout is None else timeout + _SLACK_S,
                on_item=progress.show,
                flow=flow.flow,
                name=name,
                bindings=bindings or None,
                base_dir=flow.base_dir,
                wait=wait,
                timeout_ns=None if timeout is None else int(timeout * 1e9),
            )
        except KeyboardInterrupt:
            progress.end()
            _goes_on(progress.flow)
            return exits.INTERRUPTED
        except ChronetixError as reason:
            progress.end()
            report_refusal(reason, flow)
            return exits.exit_code(reason.code, reason.name)
        finally:
            progress.end()
    print_warnings(flow.further(result.get("warnings") or ()))
    output.show(result, session.output, lambda: f"{output.printable(result['flow'])} {output.state(result['state'])}")
    if result["state"] == "failed":
        return say_failed(result)
    return exits.OK


def report_refusal(reason: ChronetixError, flow: FlowFile) -> None:
    """Print an error, with the place in the file for each problem of the flow that it lists."""
    problems = reason.details.get("problems")
    if flow.compiled is not None and isinstance(problems, list):
        placed = [{**problem, "path": _placed(problem, flow)} for problem in problems if isinstance(problem, dict)]
        reason.details = {**reason.details, "problems": placed}
    report(reason)


def _placed(problem: dict[str, Any], flow: FlowFile) -> str:
    path = str(problem.get("path") or "")
    return f"{flow.where(path)}: {path}" if path else flow.where(path)


def _goes_on(flow: str) -> None:
    """Print that Ctrl-C ended only the wait: the flow goes on."""
    if flow:
        name = output.printable(flow)
        output.say(f"interrupted; the flow {name} goes on")
        output.say(f"{click.style('hint:', fg='cyan')} `chronetixctl stop {name}` stops it")
    else:
        output.say("interrupted before the daemon had answered; `chronetixctl ls` shows whether the flow was accepted")


def _text(item: dict[str, Any]) -> str:
    of = f" {item['ready']}/{item['total']} ready" if item.get("total") else ""
    waits = f", waits: {item['waits_for']}" if item.get("waits_for") else ""
    return f"{item.get('state', '')}{of}{waits}"
