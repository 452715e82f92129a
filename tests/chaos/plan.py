"""The plan of a storm: which scenario comes when, and with which choices. Pure: a seed and a number give a step.

Scenarios come in shuffled decks, so that each comes once before any comes again. The choices of a step depend only on
the seed and the step's number, so any step can be played without those before it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

Args = dict[str, Any]


class Draws(Protocol):
    """A scenario, as the plan needs it."""

    def draw(self, chance: random.Random) -> Args:
        """Return the scenario's choices, as JSON can have them."""


@dataclass(frozen=True, slots=True)
class Step:
    """One scenario with its choices. ``renew`` names flows that are drained and submitted anew afterwards."""

    number: int
    scenario: str
    args: Args
    renew: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the step as one line of JSON."""
        return json.dumps(asdict(self))


def step(seed: int, number: int, scenarios: Mapping[str, Draws], flows: Sequence[str]) -> Step:
    """Return step ``number`` (from 0) of the storm of ``seed``."""
    deck = sorted(scenarios)
    random.Random(f"{seed}/deck/{number // len(deck)}").shuffle(deck)
    name = deck[number % len(deck)]
    chance = random.Random(f"{seed}/{number}")
    args = scenarios[name].draw(chance)
    return Step(number, name, args, tuple(each for each in sorted(flows) if chance.random() < 0.2))
