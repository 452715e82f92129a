"""What a check is, and in which profiles it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from chronetixctl.conformance.forms import EVERY, Form
from chronetixctl.conformance.rig import Rig


class Level(IntEnum):
    """How much of the protocol a worker has to know for a check."""

    MINIMAL = 0
    USUAL = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class Check:
    """One named check. ``about`` is what a program does that passes; ``section`` the file and the heading that say
    so. A check that is not mandatory advises: its failure is shown and does not count."""

    name: str
    about: str
    forms: tuple[Form, ...]
    level: Level
    section: tuple[str, str]
    mandatory: bool
    run: Callable[[Rig], None]

    def profile(self, form: Form) -> str:
        """Return the lowest profile that asks for the check in this form."""
        if self.level is Level.FULL:
            return "full"
        if self.level is Level.MINIMAL and form is Form.SINK:
            return "minimal-sink"
        return form.value


@dataclass(frozen=True, slots=True)
class Profile:
    """What a program may claim to be."""

    name: str
    about: str
    forms: tuple[Form, ...]
    level: Level


PROFILES: Final = {
    profile.name: profile
    for profile in (
        Profile("minimal-sink", "takes frames, returns them, and ends with its inputs", (Form.SINK,), Level.MINIMAL),
        Profile("sink", "takes frames whatever becomes of its producers", (Form.SINK,), Level.USUAL),
        Profile("map", "takes frames and sends frames", (Form.MAP,), Level.USUAL),
        Profile("source", "sends frames until it is told to stop", (Form.SOURCE,), Level.USUAL),
        Profile("full", "whichever ends it is given; hands over, reattaches, and is tapped", EVERY, Level.FULL),
    )
}

REGISTRY: Final[list[Check]] = []
"""Every check, in the order in which the modules of ``checks`` define them."""

PROTOCOL, SPEC = "protocol/PROTOCOL.md", "shm/SPEC.md"


def check(
    about: str,
    forms: tuple[Form, ...],
    level: Level,
    section: tuple[str, str],
    *,
    mandatory: bool = True,
) -> Callable[[Callable[[Rig], None]], Check]:
    """Return a decorator that makes a function a check, whose name is the function's with hyphens."""

    def made(run: Callable[[Rig], None]) -> Check:
        name = run.__name__.replace("_", "-")
        found = Check(name, about, forms, level, section, mandatory, run)
        REGISTRY.append(found)
        return found

    return made
