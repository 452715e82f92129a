"""``chronetixd --check``: would the daemon start here? Looks at everything it needs, starts nothing, changes nothing.

Each check names what it looked at and, when it fails, what is wrong.
"""

from __future__ import annotations

import fcntl
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

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x0010  # F_SEAL_FUTURE_WRITE


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
        ("sealed shared memory (memfd)", _memfd),
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


def _memfd() -> str:
    fd = os.memfd_create("chronetix-check", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 4096)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    finally:
        os.close(fd)
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
