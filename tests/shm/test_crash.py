"""Both ends of a route are killed at every step of what they do, and at random, and successors follow them.

Afterwards no frame is lost, the order is kept, what comes again is marked and recognisable by its numbers, all credits
and all memory are back, and nobody is left asleep.
"""

from __future__ import annotations

import os
import random
import time
from types import ModuleType

import pytest

from tests.shm.crash.build import load
from tests.shm.crash.play import Fault, Play

SOAK_S = float(os.environ.get("CHRONETIX_SOAK_S", "3"))
"""How long the random test goes on."""

PRODUCING = {
    "CLAIM_RESERVED", "WRITE_COPIED", "SKIP_MARKED", "COMMIT_CHOSEN", "COMMIT_DESCRIBED", "RUN_STAMPED", "RUN_HIDDEN",
    "RUN_SHOWN", "COMMIT_ANNOUNCED", "COMMIT_RUNG", "WAIT_ARMED", "CLOSE_BEGUN", "CLOSE_STORED",
}  # fmt: skip
RELINKING = {"RELINK_MAPPED", "RELINK_FREED", "RELINK_COUNTED"}
INHERITING = {"INHERIT_STAMPED", "INHERIT_DONE"}
CONSUMING = {
    "TAKE_CHOSEN", "TAKE_NOTED", "TAKE_ARMED", "RETURN_BEGUN", "RETURN_STAMPED", "RETURN_COUNTED", "DETACH_BEGUN",
    "DETACH_STORED",
}  # fmt: skip
CLOSING = {"CLOSE_BEGUN", "CLOSE_STORED", "DETACH_BEGUN", "DETACH_STORED"}
ONCE = CLOSING | {"INHERIT_DONE", "RELINK_MAPPED", "RELINK_COUNTED"}
SLEEPING = {"COMMIT_RUNG", "WAIT_ARMED", "TAKE_ARMED"}
"""Passed only by who sleeps or wakes somebody, as often as it happens."""


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The extension in a build that can die on purpose."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    folder = shared / "failpoints"
    folder.mkdir(exist_ok=True)
    return load(folder)


def outcome(native: ModuleType, *faults: Fault, **more: int) -> Play:
    """Everybody has died where he was to die, and the stream is whole."""
    play = Play(native, faults=faults, **more)
    play.run()
    play.check()
    missed = {fault for fault in faults if fault not in play.met}
    assert all(fault.point in SLEEPING for fault in missed)
    return play


def test_every_failpoint_is_played(native):
    assert set(native.failpoints()) == PRODUCING | RELINKING | INHERITING | CONSUMING


def test_without_a_death_nothing_comes_again(native):
    play = outcome(native)
    assert play.lives == 2
    assert not any(marked for log in play.logs for _, _, marked, _ in log.read())


def visits(points: set[str], each: tuple[int, ...] = (1, 2, 7)) -> list[tuple[str, int]]:
    return [(point, visit) for point in sorted(points) for visit in (each[:1] if point in ONCE else each)]


@pytest.mark.parametrize(("point", "visit"), visits(PRODUCING))
def test_a_producer_killed_at_any_step_has_a_successor(native, point, visit):
    outcome(native, Fault("producer", point, visit))


@pytest.mark.parametrize(("point", "visit"), visits(CONSUMING))
def test_a_consumer_killed_at_any_step_has_a_successor(native, point, visit):
    outcome(native, Fault("consumer", point, visit))


@pytest.mark.parametrize(("point", "visit"), visits(INHERITING))
def test_a_successor_killed_while_it_takes_over_has_one_too(native, point, visit):
    outcome(native, Fault("consumer", "TAKE_NOTED", 9), Fault("consumer", point, visit))


@pytest.mark.parametrize(("point", "visit"), visits(RELINKING, (1, 2)))
def test_a_producer_killed_while_it_turns_to_a_successor_has_one_too(native, point, visit):
    outcome(native, Fault("consumer", "RETURN_STAMPED", 9), Fault("producer", point, visit))


@pytest.mark.parametrize("consuming", sorted(CONSUMING - CLOSING))
@pytest.mark.parametrize("producing", sorted(PRODUCING - CLOSING))
def test_both_ends_killed_have_successors(native, producing, consuming):
    outcome(native, Fault("producer", producing, 3), Fault("consumer", consuming, 5), Fault("consumer", consuming, 4))


class Chance:
    """A play in which ends die at random: at failpoints, and by whoever has the process id."""

    def __init__(self, native: ModuleType, seed: int) -> None:
        self._chance = chance = random.Random(seed)
        places = [("producer", point) for point in sorted(PRODUCING | RELINKING)]
        places += [("consumer", point) for point in sorted(CONSUMING | INHERITING)]
        faults = [Fault(*chance.choice(places), chance.randint(1, 30)) for _ in range(chance.randint(0, 6))]
        self._kills = chance.randint(0, 6)
        batches, credits = chance.randint(1, 150), chance.randint(2, 40)
        self.play = Play(native, faults=faults, batches=batches, credits=credits, seed=seed)
        self.description = f"seed {seed}: {batches} batches, {credits} credits, {faults}, {self._kills} kills"

    def meddle(self, play: Play) -> int | None:
        if not self._kills:
            return None
        victim = self._chance.choice([play.producer, play.consumer])
        if victim is not None and self._chance.random() < 0.5:
            self._kills -= 1
            play.kill(victim)
        return self._chance.randint(0, 12)


def test_ends_killed_at_random_times_and_places_lose_nothing(native):
    """Goes on for CHRONETIX_SOAK_S seconds."""
    until = time.monotonic() + SOAK_S
    while True:
        chance = Chance(native, random.getrandbits(32))
        try:
            chance.play.run(chance.meddle)
            chance.play.check()
        except BaseException as reason:
            reason.add_note(chance.description)
            raise
        finally:
            chance.play.forget()
        if time.monotonic() > until:
            return
