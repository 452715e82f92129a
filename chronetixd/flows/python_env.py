"""Another environment's Python, in which a node runs (``artifact.python_env``): whether its worker can start there.

Nothing of the environment is executed or imported: its folders and files are looked at. So a flow file of a stranger
can be validated. An environment is a folder with ``bin/python`` and ``lib/python3.N``: one of venv, virtualenv, uv or
conda, or the prefix of an installation. What an import hook of the environment finds (``import`` lines in ``.pth``
files) is not known here, and modules that it may find are not reported as missing.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from chronetix.protocol.messages import PROTOCOL_VERSIONS
from chronetixd import installed

OLDEST = (3, 11)
"""The oldest Python that workers run with."""

MAX_TEXT = 1 << 20
MAX_PTH = 256
"""How many ``.pth`` files of an environment are read."""

_LIBRARY = re.compile(r"python3\.(\d+)t?$")
_VERSIONS = re.compile(r"^PROTOCOL_VERSIONS\s*=\s*(\([\d, ]*\))", re.M)
_OURS = "chronetix/protocol/messages/connection.py"
"""The file of the product that says which protocol versions it speaks."""


@dataclass(frozen=True, slots=True)
class PythonEnv:
    """An environment. ``search``: the folders in which it finds installed modules. ``hooks``: whether it has import
    hooks, which may find more."""

    folder: Path
    version: tuple[int, int]
    search: tuple[Path, ...]
    hooks: bool

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def has(self, module: str) -> bool:
        """Return whether it finds the top-level module ``module``, as far as that can be seen."""
        known = module in sys.stdlib_module_names or module in sys.builtin_module_names
        return known or self.hooks or any(_is_module(folder, module) for folder in self.search)

    def pip_install(self, what: str) -> str:
        """Return the command that installs ``what`` into it."""
        return f"{shlex.quote(str(self.python))} -m pip install {shlex.quote(what)}"

    def problem(self) -> tuple[str, str] | None:
        """Return why no worker of this release can run in it, and what to do; None if one can."""
        if self.version < OLDEST:
            text = f"{self.folder} has Python {_dotted(self.version)}; workers need {_dotted(OLDEST)} or later"
            return text, f"make it with a later Python: python{_dotted(OLDEST)} -m venv PATH"
        found = next((folder / _OURS for folder in self.search if (folder / _OURS).is_file()), None)
        install = self.pip_install(_distribution())
        if found is None:
            if self.hooks and any(_is_module(folder, "chronetix") for folder in self.search):
                return None
            return f"{self.folder} has no chronetix, which workers need", install
        spoken = _versions(found)
        if set(spoken).isdisjoint(PROTOCOL_VERSIONS):
            text = f"the chronetix in {self.folder} speaks protocol versions {list(spoken)}"
            return f"{text}, and this daemon {list(PROTOCOL_VERSIONS)}", install
        return None


def find(folder: Path) -> PythonEnv | tuple[str, str]:
    """Return the environment in ``folder``; what is wrong with it and what to do if it is none. Raises OSError."""
    cure = f"make one: python3 -m venv {shlex.quote(str(folder))}"
    if not folder.is_dir():
        return f"there is no environment {folder}", cure
    python = folder / "bin" / "python"
    if not python.is_file():
        return f"{folder} is no Python environment: it has no bin/python", cure
    if not os.access(python, os.X_OK):
        return f"{python} is not executable", f"chmod +x {shlex.quote(str(python))}"
    library = _library(folder)
    if library is None:
        return f"{folder} is no Python environment: it has no lib/python3.N", cure
    version, own = library
    settings = _settings(folder / "pyvenv.cfg")
    search = [own / "site-packages"]
    if settings.get("include-system-site-packages", "").lower() == "true" and "home" in settings:
        base = Path(settings["home"]).parent / "lib" / own.name
        search += [base / "site-packages", base / "dist-packages", Path("/usr/lib/python3/dist-packages")]
    more, hooks = _paths(search)
    return PythonEnv(folder, version, (*search, *more), hooks)


def _library(folder: Path) -> tuple[tuple[int, int], Path] | None:
    found = [
        ((3, int(match[1])), each)
        for each in (folder / "lib").glob("python3.*")
        if (match := _LIBRARY.match(each.name)) and each.is_dir()
    ]
    return max(found, default=None)


def _settings(path: Path) -> dict[str, str]:
    """Return the entries of a ``pyvenv.cfg``; none if there is no such file."""
    if not path.is_file():
        return {}
    lines = (line.partition("=") for line in path.read_text("utf-8", "replace")[:MAX_TEXT].splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in lines}


def _paths(search: list[Path]) -> tuple[list[Path], bool]:
    """Return the folders that the ``.pth`` files of ``search`` add, and whether one of these files runs code that may
    add import hooks."""
    folders: list[Path] = []
    hooks = False
    for place in search:
        for file in sorted(place.glob("*.pth"))[:MAX_PTH]:
            for line in file.read_text("utf-8", "replace")[:MAX_TEXT].splitlines():
                if line.startswith(("import ", "import\t")):
                    hooks = hooks or "__editable__" in line
                elif line.strip() and not line.startswith("#"):
                    folders.append(place / line.strip())
    return folders, hooks


def _is_module(folder: Path, name: str) -> bool:
    """Return whether ``name`` is a module in ``folder``: a package, with or without ``__init__.py``, or a file. Which
    extension modules fit the environment's Python is not checked."""
    if (folder / name).is_dir() or (folder / f"{name}.py").is_file():
        return True
    return any(True for _ in folder.glob(f"{name}.*so"))


def _versions(path: Path) -> tuple[int, ...]:
    found = _VERSIONS.search(path.read_text("utf-8", "replace")[:MAX_TEXT])
    value = ast.literal_eval(found[1]) if found is not None else ()
    return value if isinstance(value, tuple) else (value,)


def _distribution() -> str:
    """Return what pip is to install: the checkout that this program runs from, else this release."""
    folder = installed.documents()
    if folder is not None and (folder / "pyproject.toml").is_file():
        return str(folder)
    return f"chronetix=={installed.version()}"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
