"""``upgrade``: replaces the daemon by another release while all flows run on."""

from __future__ import annotations

import os
import secrets
from typing import Any

import click

from chronetix.protocol.errors import ChronetixError, error
from chronetixctl import exits, output
from chronetixctl.again import UPGRADING
from chronetixctl.app import PROGRAM, Session
from chronetixctl.options import SPAN, command

ARRIVAL_S = 60.0
"""How long the daemon may take to answer after the upgrade, be it the other release or the one from before."""


@command(
    """
chronetixctl upgrade
chronetixctl upgrade --image /opt/chronetix-2/bin/chronetixd --dry-run
chronetixctl upgrade --image /opt/chronetix-2/bin/chronetixd --wait 2m
"""
)
@click.option(
    "--image",
    metavar="PATH",
    type=click.Path(exists=True, dir_okay=False),
    help="The chronetixd of the other release.  [default: the command that the daemon was started with]",
)
@click.option("--dry-run", is_flag=True, help="Only rehearse: the other release checks whether it could take over.")
@click.option("--wait", type=SPAN, default="30s", show_default=True, help="How long to wait until nothing blocks it.")
def upgrade(session: Session, image: str | None, dry_run: bool, wait: float) -> int:
    """Replace the running daemon by another release in place: same process, and every worker runs on.

    The other release rehearses first; if it cannot take over, nothing is changed. If it fails later, the release that
    ran before takes over again. Clients are disconnected and connect again.
    """
    id = secrets.token_hex(8)
    arguments = {
        "id": id,
        "image": None if image is None else os.path.abspath(image),
        "dry_run": dry_run or None,
        "timeout_ns": round(wait * 1e9),
    }
    begun: list[Any] = []
    try:
        with session.connect() as client:
            rehearsed = client.call("upgrade", on_item=begun.append, **arguments)
    except KeyboardInterrupt:
        return _interrupted(dry_run=dry_run, begun=bool(begun))
    except ChronetixError as reason:
        if reason.name not in (UPGRADING, "connection-lost"):
            raise
        try:
            found = _outcome(session, id)
        except KeyboardInterrupt:
            return _interrupted(dry_run=dry_run, begun=True)
        output.show(found, session.output, lambda: _told(found))
        return exits.OK
    output.show(rehearsed, session.output, lambda: _rehearsed(rehearsed))
    return exits.FAILED if rehearsed["upgrade_blockers"] else exits.OK


def _interrupted(*, dry_run: bool, begun: bool) -> int:
    """Print what Ctrl-C has done, and return the exit code: it cancels an upgrade only while the other release
    rehearses."""
    if dry_run:
        output.say("interrupted: the rehearsal is called off, nothing was touched")
    elif begun:
        output.say("interrupted; the upgrade goes on")
        hint = f"`{PROGRAM} version` tells which release answers, `{PROGRAM} events` how it ended"
        output.say(f"{click.style('hint:', fg='cyan')} {hint}")
    else:
        output.say("interrupted while the other release rehearsed: called off, unless the rehearsal had just ended")
        output.say(f"{click.style('hint:', fg='cyan')} `{PROGRAM} version` tells which release answers")
    return exits.INTERRUPTED


def _outcome(session: Session, id: str) -> dict[str, Any]:
    """Ask the daemon that answers now for the outcome of the upgrade ``id`` and return it. Raises ChronetixError
    ``upgrade-failed``."""
    from chronetixctl.client import Client

    with Client.connect(session.socket, timeout=ARRIVAL_S, software=PROGRAM) as client:
        found: dict[str, Any] = client.call("version", timeout=ARRIVAL_S)["upgraded"] or {}
    if found.get("id") != id:
        raise error("upgrade-failed", reason="the daemon that answers now does not know of it: it was started anew")
    if found["failed"]:
        raise error("upgrade-failed", reason=found["failed"])
    return found


def _told(found: dict[str, Any]) -> str:
    before, after = (output.printable(found[name]) for name in ("before", "after"))
    flows = f"{found['flows']} flow{'s' * (found['flows'] != 1)}"
    kept = f"{found['workers']} workers of {flows} run on"
    return f"{before} → {after}: {kept}; the control plane stood still for {output.duration(found['pause_ns'])}"


def _rehearsed(found: dict[str, Any]) -> str:
    before, after = (output.printable(found[name]) for name in ("before", "after"))
    lines = [f"{before} → {after}: could take over {found['workers']} workers of {found['flows']} flows"]
    return "\n".join([*lines, *(f"blocked now: {output.printable(way)}" for way in found["upgrade_blockers"])])
