"""Checks of this machine and the daemon on it: a registry of checks, each with its cure.

A check examines one thing, changes nothing and waits for nothing. It reports PASS, WARN (it works, but with less) or
FAIL (it does not work), and a cure unless it passes. A check runs on the side that it concerns: in the daemon, if one
answers, because the daemon's limits and rights may differ from the client's; or in the client. To add a check, decorate
a function with :func:`check` in a module of this package that CHECKS_IN names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import Any

from chronetixd.settings import Settings

CHECKS_IN = ("folders", "kernel", "limits", "groups", "installation", "client", "service")
"""Modules of this package that hold checks, in the order in which their findings are shown."""


class Status(Enum):
    """The outcome of a check."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


class Side(Enum):
    """The process in which a check has to run to be true."""

    DAEMON = "daemon"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of one check. ``cure`` is empty if the check passed."""

    status: Status
    detail: str
    cure: str = ""
    area: str = ""
    name: str = ""

    def as_map(self) -> dict[str, str]:
        """Return the finding as a map, for the wire and for printing."""
        found = {"status": self.status.value, "area": self.area, "check": self.name, "detail": self.detail}
        return found | ({"cure": self.cure} if self.cure else {})


def passed(detail: str) -> Finding:
    """Return a finding that the check passed."""
    return Finding(Status.PASS, detail)


def warning(detail: str, cure: str) -> Finding:
    """Return a finding that it works, but with less."""
    return Finding(Status.WARN, detail, cure)


def failure(detail: str, cure: str) -> Finding:
    """Return a finding that it does not work."""
    return Finding(Status.FAIL, detail, cure)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What checks examine besides the machine.

    ``facts`` are what the process that runs the checks knows of itself: a daemon ``cgroup_reason``, ``cgroup_missing``,
    ``audit_lost`` and ``journal_trouble``, a client ``client_version``. ``daemon`` is the daemon's answer to
    ``version``, None if no daemon answers; ``unreachable`` says why.
    """

    settings: Settings
    facts: Mapping[str, Any]
    daemon: Mapping[str, Any] | None = None
    unreachable: str = ""


Check = Callable[[Surroundings], Finding]
_CHECKS: list[tuple[str, str, Side, Check]] = []


def check(area: str, name: str, side: Side = Side.DAEMON) -> Callable[[Check], Check]:
    """Return a decorator that registers a function as a check."""

    def register(function: Check) -> Check:
        _CHECKS.append((area, name, side, function))
        return function

    return register


def examine(place: Surroundings, sides: Iterable[Side]) -> list[Finding]:
    """Run every check of ``sides`` and return the findings. A check that raises becomes a finding that it failed, and
    the others still run."""
    for module in CHECKS_IN:
        import_module(f"chronetixd.doctor.{module}")
    wanted = frozenset(sides)
    return [_run(place, area, name, function) for area, name, side, function in _CHECKS if side in wanted]


def _run(place: Surroundings, area: str, name: str, function: Check) -> Finding:
    try:
        found = function(place)
    except Exception as reason:
        found = failure(f"the check itself failed: {reason!r}", "this is a defect of chronetix, please report it")
    return Finding(found.status, found.detail, found.cure, area, name)
