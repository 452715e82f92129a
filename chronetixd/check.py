"""``chronetixd --check``: would the daemon start here? Looks at everything it needs, starts nothing, changes nothing.

Each check names what it looked at and, when it fails, what is wrong.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chronetixd.settings import Settings

try:
    import shm
except ImportError:  # said by the check of it
    shm = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``problem`` is empty when all is well."""

    what: str
    problem: str


def check_environment(settings: Settings) -> list[Finding]:
    """Every check, in the order in which the daemon would need them."""
    checks: list[tuple[str, Callable[[], str]]] = [
        (f"state folder {settings.state_dir}", lambda: _folder(Path(settings.state_dir))),
        (f"control socket {settings.socket}", lambda: _socket(Path(settings.socket))),
        (f"shared memory ({_memory_kind()})", _memory),
        ("process descriptors (pidfd)", _pidfd),
        ("shared-memory extension shm", lambda: _module("shm")),
        ("worker launcher nodeworker.launcher", lambda: _module("nodeworker.launcher")),
    ]
    return [Finding(what, _problem(look)) for what, look in checks]


def _problem(look: Callable[[], str]) -> str:
    try:
        return look()
    except OSError as reason:
        return str(reason)


def _folder(path: Path) -> str:
    """It is there and writable, or can be made."""
    if path.exists() and not path.is_dir():
        return "it is no folder"
    nearest = path
    while not nearest.exists():
        nearest = nearest.parent
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} is not writable for user {os.geteuid()}"
    return ""


def _socket(path: Path) -> str:
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        return "there is something that is no socket"
    return _folder(path.parent)


def _memory_kind() -> str:
    """Without shm, the memory it would use is not known; that it is missing is another check's finding."""
    missing = shm.missing_features() if shm else ()
    kind = "named objects in /dev/shm" if "seals" in missing else "sealed memfd"
    return f"{kind}, without {', '.join(missing)}" if missing else kind


def _memory() -> str:
    """One piece of it can be made."""
    if shm:
        shm.Consumer("chronetix-check", credits=1)
    return ""


def _pidfd() -> str:
    fd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(fd, 0)
    finally:
        os.close(fd)
    return ""


def _module(name: str) -> str:
    package, _, rest = name.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return f"the package {package} is not installed for {sys.executable}"
    wanted = f"{package}.{rest}" if rest else f"{package}._native"
    if importlib.machinery.PathFinder.find_spec(wanted, list(spec.submodule_search_locations)) is None:
        return f"{wanted} is not there: install the package again, or build it (make build)"
    return ""
