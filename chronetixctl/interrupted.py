"""What ``stop`` and ``restart`` print after Ctrl-C: it ends only the wait, and the daemon goes on ending the flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from chronetixctl import exits, output
from chronetixctl.app import PROGRAM
from chronetixctl.progress import Progress


def progress() -> Progress:
    """Return the progress line of a flow that ends or starts: its state, and what it waits for."""
    return Progress(_text)


def while_stopping(flow: str, left: Sequence[str], *, answered: bool) -> int:
    """Print what has become of ``flow``, which was to stop, and of those that were ``left``, and return the exit
    code."""
    name = output.printable(flow)
    if answered:
        output.say(f"interrupted; the flow {name} goes on ending")
        _hint(f"`{PROGRAM} stop {name} --now` ends it at once, `{PROGRAM} restart {name}` starts it again")
    else:
        _unanswered(name)
    if left:
        output.say(f"not told to stop: {', '.join(map(output.printable, left))}")
    return exits.INTERRUPTED


def while_restarting(flow: str, *, answered: bool, started: bool) -> int:
    """Print what has become of ``flow``, which was to be restarted, and return the exit code."""
    name = output.printable(flow)
    if started:
        output.say(f"interrupted; the flow {name} was submitted again and goes on")
        _hint(f"`{PROGRAM} stop {name}` stops it")
    elif answered:
        output.say(f"interrupted; the flow {name} ends and is not started again")
        _hint(f"`{PROGRAM} ls` shows whether it has ended, `{PROGRAM} restart {name}` starts it again")
    else:
        _unanswered(name)
    return exits.INTERRUPTED


def _unanswered(name: str) -> None:
    output.say(f"interrupted before the daemon had answered; `{PROGRAM} describe {name}` shows whether the flow ends")


def _hint(text: str) -> None:
    output.say(f"{click.style('hint:', fg='cyan')} {text}")


def _text(item: dict[str, Any]) -> str:
    waits = f", waits: {item['waits_for']}" if item.get("waits_for") else ""
    return f"{item.get('flow', '')} {item.get('state', '')}{waits}"
