"""The upgrade as the old image carries it out: rehearse, wait until everything can be handed over, hold, execute.

Rules: nothing is changed before the rehearsal has succeeded. From then on new workers wait; from ``part`` on everything
waits, for as short a time as possible. If a step before the exec fails, all steps are undone and the daemon goes on as
before.
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
"""How often it is checked whether the upgrade is still blocked."""


class UpgradeHost(Protocol):
    """The daemon, as the upgrade sees it."""

    def upgrade_blockers(self) -> list[str]:
        """Return what blocks an upgrade now, as sentences."""

    async def hold(self) -> None:
        """Let new workers wait from now on."""

    async def part(self) -> None:
        """Serve no client any more: connected ones are disconnected, new ones wait."""

    def freeze(self) -> None:
        """Stop the threads that read or write, after they have written what they can."""

    def packed(self, bag: Bag, upgrade: Upgraded, since_ns: int) -> Snapshot:
        """Return the snapshot; descriptors go into ``bag``."""

    def release(self, failed: Upgraded) -> None:
        """Undo ``hold``, ``part`` and ``freeze`` as far as they were done, and report the failed upgrade."""


class Upgrade:
    """Runs one upgrade at a time. ``version`` is the running one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, host: UpgradeHost, version: str) -> None:
        self._loop = loop
        self._host = host
        self._version = version
        self.rehearsal = Rehearsal(loop)
        self._under_way: asyncio.Task[None] | None = None
        self._begun = False

    async def __call__(self, args: UpgradeArgs, emit: Emit) -> dict[str, Any]:
        """The verb. Returns after a dry run only; any other call ends with the connection, because the daemon executes
        the new image. Raises ChronetixError ``upgrade-refused``."""
        if self._begun:
            raise error("upgrade-refused", reason="another upgrade is under way")
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
        """Wait until nothing blocks the upgrade. Raises ChronetixError ``upgrade-refused``."""
        while ways := self._host.upgrade_blockers():
            if self._loop.time() >= deadline:
                raise error("upgrade-refused", reason="; ".join(ways))
            await asyncio.sleep(LOOK_S)

    async def _carry_out(self, image: exec_handoff.Image, upgrade: Upgraded, deadline: float) -> None:
        """Hold, part, freeze and execute. Returns only by raising ChronetixError, and then everything goes on."""
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
            text = "the launcher has not started all requested workers in time" if late else str(reason)
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
    """Return what is to be executed: ``image`` with the arguments of this process, or this process's own program.
    Raises ChronetixError ``upgrade-refused``."""
    if image is None:
        return exec_handoff.own_image()
    if not os.path.isabs(image):
        raise error("bad-argument", argument="image", verb="upgrade", reason="must be an absolute path")
    if not os.access(image, os.X_OK) or os.path.isdir(image):
        raise error("upgrade-refused", reason=f"{image} is no program that can be executed")
    found = os.stat(image)
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & stat.S_IWOTH:
        whose = f"belongs to user {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):04o}"
        reason = f"{image} {whose}: another user could change what is executed"
        raise error("upgrade-refused", reason=reason)
    return exec_handoff.Image(image, [image, *sys.argv[1:]])
