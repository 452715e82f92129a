"""The event loop of a one-process deployment, in which its asynchronous nodes live beside the others.

The deployment stays in charge: it lets the loop run for a moment (``turn``), or sleeps in it (``sleep``) when nothing
else is to be done. Nothing that blocks ever runs inside of the loop, so a blocked send of a plain node, which lets the
others work, can always run it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from chronetix.nodeworker.api.message import Answer
from chronetix.nodeworker.engine.async_loop import AsyncLoop, refuse_stop
from chronetix.nodeworker.engine.event_loop_end import EventLoopEnd
from chronetix.nodeworker.engine.loop import Emptied, Mailbox
from chronetix.nodeworker.engine.node import Node
from chronetix.nodeworker.engine.waits import Waits
from chronetix.shm import Doorbell


class SelectorLoop(asyncio.SelectorEventLoop):
    """asyncio's, which a plugin cannot stop."""

    def stop(self) -> None:
        """Not for plugins, which call it within a task."""
        refuse_stop(self)
        super().stop()

    def halt(self) -> None:
        """Stop, for whoever runs it."""
        super().stop()


class SharedEventLoop:
    """The loop, which sleeps on ``bell``."""

    def __init__(self, bell: Doorbell) -> None:
        self._loop = SelectorLoop()
        self._bell = bell
        self.waits = Waits(self._loop, bell, self._loop.halt)
        self._members: list[AsyncMember] = []
        self.ending = False
        """Every task is cancelled."""
        self.steps = 0
        """How often something has come of a task."""

    @property
    def quiet(self) -> bool:
        """No callback of an asynchronous node is under way, and no event waits for one."""
        return all(member.quiet for member in self._members)

    @property
    def stuck(self) -> bool:
        """Some node waits for credits, and no other one is at work."""
        return any(member.stuck for member in self._members) and all(
            member.stuck or member.quiet for member in self._members
        )

    def add(self, node: Node, mailbox: Mailbox, answer: Answer) -> AsyncMember:
        """One more node."""
        member = AsyncMember(self, node, mailbox, self._bell, answer)
        self._members.append(member)
        return member

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """A task of the loop."""
        self._loop.create_task(work)

    def turn(self) -> bool:
        """Let the tasks go on until all of them wait; whether something has come of it."""
        before, again = self.steps, True
        while again:
            self.waits.stirred = False
            self._loop.call_soon(self._loop.halt)
            self._loop.run_forever()
            again = self.waits.stirred
        return self.steps != before

    def sleep(self, seconds: float | None) -> None:
        """Until a ring, or something has come of a task, or the time is up."""
        timer = None if seconds is None else self._loop.call_later(seconds, self._loop.halt)
        self._loop.run_forever()
        if timer is not None:
            timer.cancel()

    def notify(self) -> None:
        """Something has come of a task."""
        self.steps += 1
        self.waits.stirred = True
        self._loop.halt()

    def close(self, limit_s: float) -> str:
        """End the loop and every task in it; what hangs, empty if nothing does."""
        self.ending = True
        for member in self._members:
            member.cancel()
        try:
            end = self._loop.create_task(EventLoopEnd(self._loop, limit_s).run())
            end.add_done_callback(lambda _: self._loop.halt())
            while not end.done():  # tasks that end halt the loop too
                self._loop.run_forever()
            return end.result()
        finally:
            self.waits.close()
            self._loop.close()


class AsyncMember:
    """One asynchronous node, from ``on_start`` to ``on_stop``."""

    def __init__(self, shared: SharedEventLoop, node: Node, mailbox: Mailbox, bell: Doorbell, answer: Answer) -> None:
        self._shared = shared
        self._loop = AsyncLoop(shared.waits, shared.notify, node, mailbox, bell, answer, _unheard)
        self.begun = False
        self.ended = False
        self.result: Any = None
        self.failure: BaseException | None = None

    @property
    def quiet(self) -> bool:
        """Nothing of it is under way."""
        return self.ended or (self.begun and self._loop.quiet)

    @property
    def stuck(self) -> bool:
        """All that is under way waits for credits."""
        return self._loop.stuck

    @property
    def taken(self) -> int:
        """Frames taken so far."""
        return self._loop.taken

    def cancel(self) -> None:
        """Its tasks are about to be cancelled."""
        self._loop.cancels()

    def begin(self) -> None:
        """Call ``on_start``; ``begun`` tells when that is done. The rest follows by itself."""
        self._shared.run(self._live())

    def turn(self) -> bool:
        """Let it go on; whether something has come of that. Raises what the plugin raised."""
        self._shared.waits.wake()
        worked = self._shared.turn()
        if self.failure is not None:
            raise self.failure
        return worked

    async def _live(self) -> None:
        try:
            await self._loop.begin()
            self.begun = True
            self._shared.notify()
            await self._loop.live()
            self.result = await self._loop.finish()
        except asyncio.CancelledError as reason:
            if not self._shared.ending:
                self.failure = reason
            else:
                if self.begun:
                    await self._loop.finish()  # the flow ends at once
                raise
        except BaseException as reason:
            self.failure = reason
        self.begun = self.ended = True
        self._shared.notify()


def _unheard(_stage: Emptied) -> None:
    """Where producers live and die with their consumers, nobody waits for a stage to be empty."""
