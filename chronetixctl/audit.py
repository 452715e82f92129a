"""``audit``: which user asked the daemon for what, from the daemon's audit log.

Rules: the daemon sends the records that it keeps in memory, to admins only; with --file the log is read from the disk,
also when no daemon runs.
"""

from __future__ import annotations

import pwd
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import click
import msgspec

from chronetix.protocol.contract.reading import quote
from chronetixctl import again, exits, output
from chronetixctl.app import Session
from chronetixctl.options import COUNT, command

MAX_UID = (1 << 32) - 2


@command(
    """
chronetixctl audit --tail 20
chronetixctl audit -f --user ann
chronetixctl audit --verb stop -o json
chronetixctl audit --file /var/lib/chronetix/audit.log
"""
)
@click.option("-f", "--follow", is_flag=True, help="Then show new records as they come, until Ctrl-C.")
@click.option("--tail", type=COUNT, metavar="N", help="Begin with the last N records.")
@click.option("--user", metavar="USER", help="Only calls of this user, by name or number.")
@click.option("--verb", metavar="VERB", help="Only calls of this verb.")
@click.option("--file", type=click.Path(exists=True, dir_okay=False), help="Read this log; do not ask the daemon.")
def audit(
    session: Session, follow: bool, tail: int | None, user: str | None, verb: str | None, file: str | None
) -> int:
    """Show which user called which verb of the daemon, whether the call was allowed, and how it ended."""
    uid = None if user is None else _user_id(user)
    if file is not None:
        if follow:
            raise click.UsageError("--follow asks the daemon, --file does not")
        _from_disk(session, Path(file), tail, uid, verb)
        return exits.OK
    arguments = {"follow": follow or None, "tail": tail, "uid": uid, "verb": verb}
    with closing(again.follow(session, "audit", arguments)) as items:
        for item in items:
            output.show_item(item, session.output, lambda item=item: line(item))  # type: ignore[misc]
    return exits.OK


def _from_disk(session: Session, path: Path, tail: int | None, uid: int | None, verb: str | None) -> None:
    from chronetixd.records.audit import files, read

    records: list[Any] = []
    for name in files(path):
        with name.open("rb") as lines:
            records += [r for r in read(lines) if uid in (None, r.uid) and verb in (None, r.verb)]
    if not records and uid is None and verb is None and path.stat().st_size:
        raise click.ClickException(f"{path} is no audit log: there is no record in it")
    for record in records if tail is None else records[len(records) - min(tail, len(records)) :]:
        item = msgspec.to_builtins(record)
        output.show_item(item, session.output, lambda item=item: line(item))  # type: ignore[misc]


def _user_id(name: str) -> int:
    if name.isdecimal():
        if len(name) > 10 or int(name) > MAX_UID:
            raise click.BadParameter(f"{quote(name)} is no user's number", param_hint="--user")
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise click.BadParameter(f'there is no user "{name}"', param_hint="--user") from None


@cache
def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def line(item: dict[str, Any]) -> str:
    """Return the line for a record: ``2026-11-24 12:30:01+00:00 ann chronetixctl[42] submit name=f: ok (12ms)``."""
    if "dropped" in item:
        return f"({item['dropped']} records were missed: read faster)"
    about = "".join(f" {key}={output.printable(value)}" for key, value in (item.get("about") or {}).items())
    outcome = output.printable(item["outcome"])
    colour = {"ok": "green", "begun": None}.get(outcome, "red")
    took = f" ({output.duration(item['took_ns'])})" if item.get("took_ns") else ""
    missing = [f"{item[key]} {what}" for key, what in _MISSING if item.get(key)]
    who = f"{_user_name(item['uid'])} {output.printable(item.get('program') or '?')}[{item['pid']}]"
    text = f"{output.moment(item['unix_ns'])} {who} {output.printable(item['verb'])}{about}: "
    return text + click.style(outcome, fg=colour) + took + (f"  [{', '.join(missing)}]" if missing else "")


_MISSING = (("lost", "records before this could not be written"), ("suppressed", "refusals before this left out"))
