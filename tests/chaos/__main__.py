"""``python -m tests.chaos``: a storm over a real daemon and flows in which every frame is accounted for.

A seed gives the plan, step by step; after each step the same invariants are checked (invariants.py). A step that
violates one ends the storm: seed, step and the plan so far are shown, and the folder with all logs and ledgers is kept.
``--seed N --step K`` plays that step alone, ``--seed N --steps K+1`` all steps up to it. The actions of a storm are
repeatable, their timing on the machine is not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.gauge import Gauge, Stillness
from chronetix.protocol.errors import ChronetixError
from tests.chaos import invariants, plan
from tests.chaos.caller import Caller
from tests.chaos.flows import FLOWS
from tests.chaos.scenarios import ALL
from tests.chaos.world import Violation, World


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 after a storm without a violation, 1 after a violation."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="of the plan (default: a new one)")
    parser.add_argument("--seconds", type=float, default=60.0, help="begin no step after so many (default 60)")
    parser.add_argument("--steps", type=int, help="so many steps, instead of --seconds")
    parser.add_argument("--step", type=int, help="this step of the seed's plan alone")
    parser.add_argument("--only", action="append", choices=sorted(ALL), help="only steps of this scenario, repeatable")
    parser.add_argument("--plan", action="store_true", help="show the plan of --steps, and do nothing")
    parser.add_argument("--keep", action="store_true", help="keep the folder in any case")
    options = parser.parse_args(argv)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    if options.plan:
        for number in range(options.steps or len(ALL)):
            print(plan.step(seed, number, ALL, list(FLOWS)).line())
        return 0
    folder = Path(tempfile.mkdtemp(prefix="chronetix-storm-"))
    print(f"seed {seed}, pid {os.getpid()}, folder {folder}", flush=True)
    storm = Storm(World(folder), seed, options.only or list(ALL))
    violation = storm.run(numbers(options), options.seconds if options.steps is None else None)
    storm.report()
    if violation:
        print(f"\nVIOLATED: {violation}", file=sys.stderr)
        print(
            f"seed {seed}, step {storm.played[-1].number if storm.played else '-'}; the plan so far:", file=sys.stderr
        )
        print("\n".join(step.line() for step in storm.played), file=sys.stderr)
        print(f"again: python -m tests.chaos --seed {seed} --step K, or --steps K+1; kept: {folder}", file=sys.stderr)
    elif not options.keep:
        shutil.rmtree(folder)
    return 1 if violation else 0


def numbers(options: argparse.Namespace) -> Iterator[int]:
    """Return the numbers of the steps to play."""
    if options.step is not None:
        yield options.step
        return
    number = 0
    while options.steps is None or number < options.steps:
        yield number
        number += 1


class Storm:
    """Plays the plan of ``seed`` over ``world``, with ``scenarios`` only."""

    def __init__(self, world: World, seed: int, scenarios: Sequence[str]) -> None:
        self.world = world
        self.seed = seed
        self.played: list[plan.Step] = []
        self.skipped: dict[str, str] = {}
        self._scenarios = scenarios
        self._caller: Caller | None = None
        self._seconds: dict[str, list[float]] = {}
        self._gauge: Gauge | None = None
        self._still: dict[str, Stillness] = {}
        """For each scenario, the step in which the daemon's loop stood still for longest."""
        self._frames: Counter[str] = Counter()

    def run(self, numbers: Iterator[int], seconds: float | None) -> str:
        """Play the storm. Returns the violation, or None."""
        world = self.world
        try:
            world.begin()
            self._caller = Caller(world.socket, list(FLOWS))
            self._gauge = Gauge(world.socket)
            base = invariants.baseline(world)
            give_up = None if seconds is None else time.monotonic() + seconds
            for number in numbers:
                if give_up is not None and time.monotonic() > give_up:
                    break
                self._play(plan.step(self.seed, number, ALL, list(FLOWS)), base)
            self._caller.close()
            self._gauge.close()
            world.end()
            left = [str(pid) for pid in invariants.processes.of_token(world.token) if pid != os.getpid()]
            if left:
                return f"processes {left} outlived the daemon's orderly end"
        except (Violation, ChronetixError, OSError) as reason:
            return f"{type(reason).__name__}: {reason}"
        finally:
            if self._caller is not None:
                self._caller.close()
            if self._gauge is not None:
                self._gauge.close()
            world.close()
        return ""

    def _play(self, step: plan.Step, base: invariants.Baseline) -> None:
        scenario = ALL[step.scenario]
        if step.scenario not in self._scenarios or step.scenario in self.skipped:
            return
        if why := scenario.impossible(self.world):
            self.skipped[step.scenario] = why
            return
        assert self._caller is not None
        self.played.append(step)
        with (self.world.folder / "plan.jsonl").open("a") as file:
            file.write(step.line() + "\n")
        begun = time.monotonic()
        scenario.act(self.world, step.args)
        acted = time.monotonic()
        self.world.settle(scenario.may_fail, scenario.measured, scenario.may_break)
        settled = time.monotonic()
        invariants.check(self.world, self._caller, base)
        self.world.renew(step.renew)
        if step.renew:
            self.world.settle()
        self._note_stillness(step.scenario)
        took = time.monotonic() - begun
        self._seconds.setdefault(step.scenario, []).append(took)
        parts = f"acted {acted - begun:.2f} settled {settled - acted:.2f} checked {took + begun - settled:.2f}"
        print(f"step {step.number} {step.scenario}: {took:.2f} s ({parts}) {json.dumps(step.args)}", flush=True)

    def _note_stillness(self, scenario: str) -> None:
        assert self._gauge is not None
        seen, before = self._gauge.look(), self._still.get(scenario)
        if before is None or seen.longest > before.longest:
            self._still[scenario] = seen

    def report(self) -> None:
        """Return a summary of the storm."""
        world, caller = self.world, self._caller
        print(f"\n{len(self.played)} steps; {world.renewed} flows drained and submitted anew")
        if world.broken:
            print(f"  the daemon gave up {world.broken} times, as it may, and was started again")
        for name, seconds in sorted(self._seconds.items()):
            still = self._still[name].longest if name in self._still else 0.0
            middle = statistics.median(seconds)
            print(f"  {name}: {len(seconds)} times, {middle:.2f} s in the median; its loop stood still {still:.0f} ms")
        longest = max(self._still.values(), key=lambda each: each.longest, default=None)
        if longest is not None:
            print(f"  the daemon's loop stood still for {longest.longest:.0f} ms at most")
        for name, why in self.skipped.items():
            print(f"  {name}: skipped, {why}")
        for text in world.failed:
            print(f"  failed as it may: {text}")
        for name, ms in sorted(world.recoveries.items()):
            middle, most = statistics.median(ms), max(ms)
            print(
                f"  {name} killed {len(ms)} times: first frame after {middle:.1f} ms in the median, {most:.1f} at most"
            )
        if caller is not None:
            print(f"  calls: {caller.ended} ended, {caller.failed} of them failed, {caller.cut} with their connection")


if __name__ == "__main__":
    sys.exit(main())
