"""The verbs that clients can call: for each one function, one struct of typed arguments, and the right that it takes.

Rules: with only the right to read (:class:`chronetixd.core.access.Right`) a client starts nothing and learns nothing of
the daemon's files. A verb gets its checked arguments, and ``emit`` for the items of a streaming answer; its return
value is the result. It raises ChronetixError for what cannot be done. A verb is cancelled when its client cancels the
call or disconnects; what the verb began is not undone then.
"""

from __future__ import annotations

from typing import Any

import msgspec

from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.nearest import nearest
from chronetixd.control.verbs import admin, bus, flows, observe, rollouts
from chronetixd.control.verbs.base import Emit, Verb, VerbContext

__all__ = ["VERBS", "Emit", "Verb", "VerbContext", "call", "find"]

VERBS: dict[str, Verb] = flows.VERBS | rollouts.VERBS | observe.VERBS | bus.VERBS | admin.VERBS


def find(name: str) -> Verb:
    """Return the verb ``name``. Raises ChronetixError ``unknown-verb``."""
    verb = VERBS.get(name)
    if verb is None:
        raise error("unknown-verb", verb=name, nearest=nearest(name, VERBS))
    return verb


async def call(context: VerbContext, name: str, raw: dict[str, Any], emit: Emit) -> Any:
    """Run verb ``name`` with the arguments ``raw`` and return its value. Raises ChronetixError: ``unknown-verb``,
    ``bad-argument``, or an error of the verb."""
    verb = find(name)
    try:
        args = msgspec.convert(raw, verb.args)
    except msgspec.ValidationError as reason:
        raise _bad_argument(name, verb, raw, str(reason)) from None
    return await verb.run(context, args, emit)


def _bad_argument(name: str, verb: Verb, raw: dict[str, Any], reason: str) -> ChronetixError:
    """Return the error for arguments that msgspec refused with ``reason``, which ends with the place (``at `$.flow```).
    For an unknown argument the error names the nearest known one."""
    known = {field.name for field in msgspec.structs.fields(verb.args)}
    unknown = next((key for key in raw if key not in known), None)
    if unknown is not None:
        near = nearest(unknown, known)
        text = f"there is no such argument{f', did you mean {near}?' if near else ''}"
        return error("bad-argument", argument=unknown, verb=name, reason=text)
    what, _, where = reason.partition(" - at `$.")
    argument = where.rstrip("`") or (what.split("`")[1] if "`" in what else "args")
    return error("bad-argument", argument=argument, verb=name, reason=what)
