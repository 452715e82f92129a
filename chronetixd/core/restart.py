"""What happens after a worker failed: the one place where restart policies live.

A policy is a function from a death to a verdict. ``temporary``, today's only policy, always gives up: the worker stays
dead and its flow fails. The flow machine asks here for every worker that failed and acts on the verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chronetixd.core.worker import Exit


@dataclass(frozen=True, slots=True)
class Death:
    """A failed worker; ``exit`` is None while its process has not ended, or when there never was one."""

    node: str
    exit: Exit | None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The worker is not started again, so its flow fails."""

    policy: str


Verdict = GiveUp
Policy = Callable[[Death], Verdict]


def temporary(death: Death) -> Verdict:
    """Never again, however it ended."""
    del death
    return GiveUp("temporary")


POLICIES: dict[str, Policy] = {"temporary": temporary}


def decide(policy: str, death: Death) -> Verdict:
    """What ``policy`` makes of this death. Raises KeyError for a policy that does not exist."""
    return POLICIES[policy](death)
