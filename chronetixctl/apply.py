"""``apply``: changes a running flow into the one in a file; and the options and functions that it shares with ``rollout
undo``."""

from __future__ import annotations

from typing import Any

import click

from chronetix.protocol.errors import ChronetixError
from chronetixctl import exits, output
from chronetixctl.app import Session, problem_line
from chronetixctl.diff import lines
from chronetixctl.flowfile import FlowFile, load_flow, print_warnings
from chronetixctl.options import FLOW_NAME, SPAN, command, file_argument, settling_options
from chronetixctl.progress import Progress
from chronetixctl.submit import report_refusal

ready_option = click.option(
    "--ready-timeout",
    "ready",
    type=SPAN,
    help="How long new workers may take to get ready; then it is rolled back.  [default: as when a flow starts]",
)
wait_option = click.option(
    "--no-wait", "wait", is_flag=True, flag_value=False, default=True, help="Return when the roll-out has begun."
)


@command(
    """
chronetixctl apply flow.yaml
chronetixctl apply flow.yaml --name nightly --ready-timeout 10s
chronetixctl apply flow.yaml --replace parse
chronetixctl apply flow.yaml --no-wait -o json
"""
)
@file_argument
@click.option("--name", type=FLOW_NAME, help="The flow to change.  [default: the file's]")
@settling_options
@click.option("--replace", metavar="NODE", multiple=True, help="Replace this node even if it does not differ.")
@ready_option
@wait_option
def apply(
    session: Session,
    file: str,
    name: str | None,
    bindings: dict[str, str],
    artifacts: dict[str, str],
    replace: tuple[str, ...],
    ready: float | None,
    wait: bool,
) -> int:
    """Change a running flow into the one in FILE (- for stdin).

    Only the nodes and routes that differ are changed (`diff` lists them); no frame is lost or delivered twice. New
    workers are started first: if one is not ready in time, the flow runs on unchanged.
    """
    flow = load_flow(file, artifacts, bindings)
    arguments = {
        "flow": flow.flow,
        "name": name,
        "bindings": bindings or None,
        "base_dir": flow.base_dir,
        "replace": list(replace) or None,
    }
    try:
        return roll_out(session, "apply", arguments, ready, wait, flow)
    except ChronetixError as reason:
        report_refusal(reason, flow)
        return exits.exit_code(reason.code, reason.name)


def roll_out(
    session: Session,
    verb: str,
    arguments: dict[str, Any],
    ready: float | None,
    wait: bool,
    file: FlowFile | None = None,
) -> int:
    """Begin a roll-out by calling ``verb``, show its progress and its end, and return the exit code. ``ready`` is in
    seconds. ``file``: where the new flow comes from, if from a file. Raises ChronetixError."""
    progress = Progress(_text)
    with session.connect() as client:
        try:
            ready_ns = None if ready is None else int(ready * 1e9)
            result = client.call(verb, on_item=progress.show, ready_ns=ready_ns, wait=wait, **arguments)
        except KeyboardInterrupt:
            progress.end()
            _goes_on(progress.flow)
            return exits.INTERRUPTED
        finally:
            progress.end()
    if file is not None:
        print_warnings(file.further(result.get("warnings") or ()))
    for warning in () if file is not None else result.get("warnings") or ():
        output.say(f"{click.style('warning:', fg='yellow')} {problem_line(warning)}")
    output.show(result, session.output, lambda: "\n".join(_lines(result)))
    return exits.OK


def _lines(result: dict[str, Any]) -> list[str]:
    flow = output.printable(result["flow"])
    if result["step"] == "same":
        return [f"{flow} is that already: nothing differs"]
    took = f", {result['cut_ns'] / 1e6:.0f} ms from the first worker that left" if result.get("cut_ns") else ""
    ended = f"{flow} roll-out {result['number']} {output.state(result['step'])}{took}"
    return [*(lines(result["change"]) if result["step"] == "done" else []), ended]


def _text(item: dict[str, Any]) -> str:
    waits = f", waits for {', '.join(item['waits_for'])}" if item.get("waits_for") else ""
    return f"{item.get('step', '')}{waits}"


def _goes_on(flow: str) -> None:
    """Print that Ctrl-C ended only the wait: the roll-out goes on."""
    if flow:
        name = output.printable(flow)
        output.say(f"interrupted; the roll-out of {name} goes on")
        hint = f"`chronetixctl rollout status {name}` tells how far it is, `chronetixctl rollout undo {name}` goes back"
        output.say(f"{click.style('hint:', fg='cyan')} {hint}")
    else:
        output.say(
            "interrupted before the daemon had answered; `chronetixctl rollout status FLOW` shows if it was begun"
        )
