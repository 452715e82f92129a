"""What clients can ask for: one function and one struct of typed arguments per verb, and the right that it takes.

Who may only read (:class:`chronetixd.core.access.Right`) starts nothing and learns nothing of the daemon's files. A
verb gets its arguments, checked, and ``emit`` for the items of a streaming answer; what it returns is the result. It
raises ChronetixError for what cannot be done. A verb is cancelled when its client cancels or goes away; nothing that it
began is undone then.
"""

from __future__ import annotations

from typing import Any

import msgspec

from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.nearest import nearest
from chronetixd.control.verbs import admin, bus, flows, observe, rollouts
from chronetixd.control.verbs.base import Context, Emit, Verb

__all__ = ["VERBS", "Context", "Emit", "Verb", "call", "find"]

VERBS: dict[str, Verb] = flows.VERBS | rollouts.VERBS | observe.VERBS | bus.VERBS | admin.VERBS


def find(name: str) -> Verb:
    """The verb ``name``. Raises ChronetixError ``unknown-verb``."""
    verb = VERBS.get(name)
    if verb is None:
        raise error("unknown-verb", verb=name, nearest=nearest(name, VERBS))
    return verb


async def call(context: Context, name: str, raw: dict[str, Any], emit: Emit) -> Any:
    """Run verb ``name``. Raises ChronetixError: ``unknown-verb``, ``bad-argument``, or the verb's own."""
    verb = find(name)
    try:
        args = msgspec.convert(raw, verb.args)
    except msgspec.ValidationError as reason:
        raise _bad_argument(name, verb, raw, str(reason)) from None
    return await verb.run(context, args, emit)


def _bad_argument(name: str, verb: Verb, raw: dict[str, Any], reason: str) -> ChronetixError:
    """msgspec says where (``at `$.flow```) and what; unknown names get the nearest known one."""
    known = {field.name for field in msgspec.structs.fields(verb.args)}
    unknown = next((key for key in raw if key not in known), None)
    if unknown is not None:
        near = nearest(unknown, known)
        text = f"there is no such argument{f', did you mean {near}?' if near else ''}"
        return error("bad-argument", argument=unknown, verb=name, reason=text)
    what, _, where = reason.partition(" - at `$.")
    argument = where.rstrip("`") or (what.split("`")[1] if "`" in what else "args")
    return error("bad-argument", argument=argument, verb=name, reason=what)
