"""What a scenario is: its choices, drawn beforehand, and what it does to the world."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.plan import Args
from tests.chaos.world import World


@dataclass(frozen=True)
class Scenario:
    """``act`` disturbs ``World`` and leaves nothing of its own behind; it raises Violation for what it saw itself.

    ``may_fail``: parts of the reasons for which a flow may fail by it. ``may_break``: the daemon may end by itself.
    ``impossible`` says why it cannot be played here. ``measured``: nothing but the kills delays the first frame after.
    """

    name: str
    choose: Callable[[random.Random], Args]
    act: Callable[[World, Args], None]
    may_fail: tuple[str, ...] = ()
    impossible: Callable[[World], str] = lambda _world: ""
    measured: bool = False
    may_break: bool = False

    def draw(self, chance: random.Random) -> Args:
        """Its choices."""
        return self.choose(chance)
