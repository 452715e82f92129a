"""Verbs about the daemon itself: version, doctor, config, audit, upgrade."""

from __future__ import annotations

import platform
from typing import Any

from chronetix import shm
from chronetix.protocol.messages import PROTOCOL_VERSIONS
from chronetixd.control.verbs.base import Emit, NoArgs, UpgradeArgs, Verb, VerbContext
from chronetixd.control.verbs.streaming import StreamArgs, stream
from chronetixd.core.access import Right
from chronetixd.records.audit import Record


class AuditArgs(StreamArgs, frozen=True):
    """Arguments of ``audit``: only records of the user ``uid``, and only of the verb ``verb``, if given."""

    uid: int | None = None
    verb: str | None = None


async def _version(context: VerbContext, _args: NoArgs, _emit: Emit) -> Any:
    return {
        **context.identity,
        "spares": {"wanted": context.spares.size, "pids": context.spares.ready},
        "journal": {"owed": context.journal.pending, "trouble": context.journal.trouble},
        "output_lost": context.logs.losses(),
        "protocol": list(PROTOCOL_VERSIONS),
        "abi": shm.ABI_VERSION,
        "python": platform.python_version(),
    }


async def _audit(context: VerbContext, args: AuditArgs, emit: Emit) -> Any:
    def wanted(record: Record) -> bool:
        return args.uid in (None, record.uid) and args.verb in (None, record.verb)

    return await stream(context, context.audit.feed, wanted, args, emit)


async def _upgrade(context: VerbContext, args: UpgradeArgs, emit: Emit) -> Any:
    return await context.upgrade(args, emit)


async def _doctor(context: VerbContext, _args: NoArgs, _emit: Emit) -> Any:
    return {"findings": context.examine()}


async def _config(context: VerbContext, _args: NoArgs, _emit: Emit) -> Any:
    return {"settings": context.settings()}


VERBS: dict[str, Verb] = {
    "version": Verb(NoArgs, Right.READ, _version, at_once=True),
    "doctor": Verb(NoArgs, Right.READ, _doctor, at_once=True),
    "config": Verb(NoArgs, Right.OPERATE, _config, at_once=True),
    "audit": Verb(AuditArgs, Right.ADMIN, _audit, streams=True),
    "upgrade": Verb(UpgradeArgs, Right.ADMIN, _upgrade),
}
