"""The upgrade as the old image carries it out: rehearse, wait until everything can be handed over, hold, execute.

Rules: nothing is touched before the rehearsal has succeeded. From then on new workers wait; from ``part`` on everything
does, for as short a time as possible. Whatever fails up to the exec is undone, and everything goes on as before.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from chronetix.protocol.errors import error
from chronetixd.packing import Bag
from chronetixd.upgrade import exec_handoff
from chronetixd.upgrade.modules import missed
from chronetixd.upgrade.rehearsal import Rehearsal
from chronetixd.upgrade.snapshot import Snapshot, Upgraded, write

if TYPE_CHECKING:
    from chronetixd.control.verbs.base import Emit, UpgradeArgs

LOOK_S = 0.01
"""How often it is looked whether something is still in the way."""


class UpgradeHost(Protocol):
    """The daemon, as far as it is handed over."""

    def upgrade_blockers(self) -> list[str]:
        """What keeps it from being handed over now, as sentences."""

    async def hold(self) -> None:
        """New workers wait from now on."""

    async def part(self) -> None:
        """Nobody is served any more: clients are sent away, others wait."""

    def freeze(self) -> None:
        """No thread reads or writes any more, and what can be written is."""

    def packed(self, bag: Bag, upgrade: Upgraded, since_ns: int) -> Snapshot:
        """Everything; descriptors go into ``bag``."""

    def release(self, failed: Upgraded) -> None:
        """Undo ``hold``, ``part`` and ``freeze``, as far as they were done, and tell of it."""


class Upgrade:
    """One at a time. ``version`` is the running one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, host: UpgradeHost, version: str) -> None:
        self._loop = loop
        self._host = host
        self._version = version
        self.rehearsal = Rehearsal(loop)
        self._under_way: asyncio.Task[None] | None = None
        self._begun = False

    async def __call__(self, args: UpgradeArgs, emit: Emit) -> dict[str, Any]:
        """The verb. Returns after a dry run only; the call of any other ends as all calls do, because of it. Raises
        ChronetixError ``upgrade-refused``."""
        if self._begun:
            raise error("upgrade-refused", reason="another one is under way")
        self._begun = True
        try:
            deadline = self._loop.time() + args.timeout_ns / 1e9
            image = target(args.image)
            answer = await self._rehearse(image, args.timeout_ns / 1e9)
            told = {"before": self._version, "after": answer.version, "flows": answer.flows, "workers": answer.workers}
            if args.dry_run:
                return {**told, "formats": answer.formats, "upgrade_blockers": self._host.upgrade_blockers()}
            emit({"rehearsed": True, **told})
            upgrade = Upgraded(id=args.id, **told)
            self._under_way = self._loop.create_task(self._carry_out(image, upgrade, deadline))
            await asyncio.shield(self._under_way)
        finally:
            if self._under_way is None or self._under_way.done():
                self._begun = False
        raise AssertionError("an upgrade that was not refused has replaced this image")

    async def _rehearse(self, image: exec_handoff.Image, timeout_s: float) -> Any:
        bag = Bag()
        ways = self._host.upgrade_blockers()
        if ways:
            await self._wait_for_blockers(self._loop.time() + timeout_s)
        try:
            snapshot = self._host.packed(bag, Upgraded(id="", before=self._version), 0)
            state = write(snapshot)
        except OSError as reason:
            raise error("upgrade-refused", reason=f"no snapshot can be made: {reason.strerror}") from None
        try:
            answer = await self.rehearsal(image, state, snapshot.descriptors, timeout_s)
        finally:
            os.close(state)
        if missing := missed(answer.lacks):
            raise error("upgrade-refused", reason=f"{image.argv[0]} could not restart every node: {'; '.join(missing)}")
        return answer

    async def _wait_for_blockers(self, deadline: float) -> None:
        """Wait until nothing is in the way. Raises ChronetixError ``upgrade-refused``."""
        while ways := self._host.upgrade_blockers():
            if self._loop.time() >= deadline:
                raise error("upgrade-refused", reason="; ".join(ways))
            await asyncio.sleep(LOOK_S)

    async def _carry_out(self, image: exec_handoff.Image, upgrade: Upgraded, deadline: float) -> None:
        """Returns only by raising ChronetixError; everything goes on then."""
        try:
            await self._wait_for_blockers(deadline)
            async with asyncio.timeout_at(deadline):
                await self._host.hold()
            await self._wait_for_blockers(deadline)
            since_ns = time.monotonic_ns()
            await self._host.part()
            await self._wait_for_blockers(deadline)
            self._host.freeze()
            self._leave(image, upgrade, since_ns)
        except BaseException as reason:
            late = isinstance(reason, TimeoutError)
            text = "workers that were asked for do not come" if late else str(reason)
            self._begun = False
            self._host.release(msgspec.structs.replace(upgrade, failed=text))
            if late:
                raise error("upgrade-refused", reason=text) from None
            raise

    def _leave(self, image: exec_handoff.Image, upgrade: Upgraded, since_ns: int) -> None:
        snapshot = self._host.packed(Bag(), upgrade, since_ns)
        state = write(snapshot)
        try:
            exec_handoff.leave(image, exec_handoff.ExecHandoff(state, exec_handoff.own_image()), snapshot.descriptors)
        except OSError as reason:
            raise error("upgrade-failed", reason=f"{image.program} cannot be executed: {reason.strerror}") from None
        finally:
            os.close(state)


def target(image: str | None) -> exec_handoff.Image:
    """What is to be executed: ``image`` with the arguments that we were started with, or once more what we were started
    as. Raises ChronetixError ``upgrade-refused``."""
    if image is None:
        return exec_handoff.own_image()
    if not os.path.isabs(image):
        raise error("bad-argument", argument="image", verb="upgrade", reason="must be an absolute path")
    if not os.access(image, os.X_OK) or os.path.isdir(image):
        raise error("upgrade-refused", reason=f"{image} is no program that can be executed")
    found = os.stat(image)
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & stat.S_IWOTH:
        whose = f"belongs to user {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):04o}"
        reason = f"{image} {whose}: somebody else could change what is executed"
        raise error("upgrade-refused", reason=reason)
    return exec_handoff.Image(image, [image, *sys.argv[1:]])
