"""The systemd units of the daemon, with their content and folders on this machine.

The units are read from the folder systemd/ of the source, or from share/chronetix/systemd of the installation; only the
program's path is replaced. Every file that is written begins with MARK, and only such files are replaced or removed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chronetix.protocol.errors import error
from chronetixd import installed

MARK = "# Written by chronetixctl service install; changes belong into a drop-in (systemctl edit chronetixd).\n"
PROGRAM = "/usr/local/bin/chronetixd"
"""The program's path as the units in the source have it."""

BOOTED = Path("/run/systemd/system")
"""A folder that exists exactly where systemd runs."""

UNITS = ("chronetixd.socket", "chronetixd.service")
USERS = "chronetix.conf"
"""The sysusers.d file that declares the user and group of the system-wide daemon."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Whether the units are for a daemon of the machine (``system``) or of one user; ``root`` is the folder that stands
    for /."""

    system: bool
    root: Path
    config_home: Path

    @property
    def units(self) -> Path:
        """The folder of the unit files."""
        if self.system:
            return self.root / "etc/systemd/system"
        return self.root / str(self.config_home).lstrip("/") / "systemd/user"

    @property
    def users(self) -> Path:
        """The path of the sysusers.d file."""
        return self.root / "etc/sysusers.d" / USERS

    @property
    def systemctl(self) -> tuple[str, ...]:
        """The systemctl command for this scope."""
        return ("systemctl",) if self.system else ("systemctl", "--user")

    @property
    def paths(self) -> list[Path]:
        """The paths of all files of this scope."""
        return [*(self.units / name for name in UNITS), *([self.users] if self.system else [])]


def scope_of(system: bool, root: str | None, env: Mapping[str, str]) -> Scope:
    """Return the scope that the options ``system`` and ``root`` and the environment name."""
    config = env.get("XDG_CONFIG_HOME") or f"{env.get('HOME', '/')}/.config"
    return Scope(system, Path(root or "/"), Path(config))


def source() -> Path:
    """Return the folder that holds the units. Raises ChronetixError ``service-failed`` if this installation has
    none."""
    folder = installed.documents()
    if folder is not None and (folder / "systemd" / UNITS[1]).is_file():
        return folder / "systemd"
    raise error("service-failed", what="its unit files", reason="this installation has none; install the package again")


def program() -> Path:
    """Return the path of this installation's chronetixd. Raises ChronetixError ``service-failed`` if there is none."""
    path = Path(sys.executable).parent / "chronetixd"
    if not os.access(path, os.X_OK):
        raise error("service-failed", what=str(path), reason="there is no such program; install the package again")
    return path


def texts(scope: Scope, program: Path) -> dict[Path, str]:
    """Return the text of each file of ``scope``, by path. Raises ChronetixError ``service-failed``."""
    folder = source() if scope.system else source() / "user"
    found = {scope.units / name: MARK + _with(program, (folder / name).read_text()) for name in UNITS}
    if scope.system:
        found[scope.users] = MARK + (folder / USERS).read_text()
    return found


def _with(program: Path, text: str) -> str:
    """Return a unit's text with the program's path put in, quoted as systemd requires."""
    quoted = str(program).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text.replace(PROGRAM, f'"{quoted}"' if " " in quoted else quoted)


def ours(path: Path) -> bool:
    """Whether ``path`` was written by chronetixctl: it begins with MARK."""
    return path.read_text(errors="replace").startswith(MARK)


def out_of_reach(program: Path) -> Path | None:
    """Return the first folder above ``program`` that other users may not enter, so that the user of a system-wide
    daemon cannot run the program; None if there is no such folder."""
    real = program.resolve()
    places = [*reversed(program.parents), *reversed(real.parents)]
    return next((folder for folder in places if not folder.stat().st_mode & 0o001), None)
