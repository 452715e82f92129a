"""Checks that the artifacts of a flow exist when it is submitted, so that a flow which cannot run is not started.

Nothing is imported or executed here. The top-level package of a Python module must be found on the path that its worker
will have. Errors inside the module only show when the worker loads it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from chronetix.protocol.contract import Flow, Manifest, Problem
from chronetix.protocol.nearest import did_you_mean

BUILTIN = "builtin://"
PYTHON = "python://"
FILE = "file://"

BUILTINS = (
    "builtin://chronetix/system/timer",
    "builtin://chronetix/system/eventbus-source",
    "builtin://chronetix/system/eventbus-sink",
    "builtin://chronetix/resource/netinfo",
)
"""The artifacts that a worker provides itself; chronetix.nodeworker.builtins has the same list."""

RUNNABLE = "this daemon runs artifacts of kind Python and Process, and builtin:// of any kind"


def artifact_problems(flow: Flow, base_dir: str) -> list[Problem]:
    """Return one problem for every artifact that does not exist. Paths are relative to ``base_dir``; an empty string
    means that there is none."""
    importlib.invalidate_caches()
    found = []
    for index, manifest in enumerate(flow.manifests):
        try:
            problem = _problem(manifest, base_dir)
        except OSError as reason:  # a name too long, a folder that may not be searched
            problem = str(reason), ""
        if problem is not None:
            message, suggestion = problem
            text = f"{message} (node {manifest.node})"
            found.append(Problem(f"manifests[{index}].artifact.{_field(manifest)}", text, suggestion))
    return found


def program(manifest: Manifest, base_dir: str) -> str:
    """Return the absolute path of a Process artifact's executable."""
    return str(_path(manifest.artifact.uri.removeprefix(FILE), base_dir))


def _field(manifest: Manifest) -> str:
    runnable = manifest.artifact.kind in ("Python", "Process") or manifest.artifact.uri.startswith(BUILTIN)
    return "uri" if runnable else "kind"


def _problem(manifest: Manifest, base_dir: str) -> tuple[str, str] | None:
    """Return what is wrong and what to do about it; None when nothing is wrong."""
    kind, uri = manifest.artifact.kind, manifest.artifact.uri
    if uri.startswith(BUILTIN):
        if uri in BUILTINS:
            return None
        known = "known are " + ", ".join(BUILTINS)
        return f"there is no builtin {uri}", did_you_mean(uri, BUILTINS, known)
    if kind == "Python":
        return _python_problem(uri, base_dir)
    if kind == "Process":
        return _process_problem(uri, base_dir)
    return f"an artifact of kind {kind} cannot be run by this version", RUNNABLE


def _process_problem(uri: str, base_dir: str) -> tuple[str, str] | None:
    place = uri.removeprefix(FILE)
    if "://" in place:
        return f"{uri} is no program", "a Process artifact is file:// and the path of an executable"
    relative = _relative_without_base(place, base_dir)
    if relative is not None:
        return relative
    path = _path(place, base_dir)
    if not path.is_file():
        return f"there is no file {path}", _near_file(path)
    if not os.access(path, os.X_OK):
        return f"{path} is not executable", f"chmod +x {path}"
    return None


def _python_problem(uri: str, base_dir: str) -> tuple[str, str] | None:
    place, _, attribute = uri.removeprefix(PYTHON).rpartition(":")
    if not place or not attribute or "://" in place:
        return f"{uri} names no Python object", "write python://module:object or python://path/to/file.py:object"
    if place.endswith(".py") or "/" in place:
        relative = _relative_without_base(place, base_dir)
        if relative is not None:
            return relative
        path = _path(place, base_dir)
        return None if path.is_file() else (f"there is no file {path}", _near_file(path))
    top = place.partition(".")[0]
    if _importable(top, base_dir):
        return None
    where = f"in {base_dir} or " if base_dir else ""
    return f"there is no module {top} {where}on the daemon's Python path", did_you_mean(top, _modules_in(base_dir))


def _relative_without_base(place: str, base_dir: str) -> tuple[str, str] | None:
    if base_dir or os.path.isabs(place):
        return None
    return f"{place} is a relative path, but relative to nothing", "submit with base_dir, or give an absolute path"


def _path(place: str, base_dir: str) -> Path:
    return Path(base_dir or "/", place)


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} is not there either"
    return did_you_mean(path.name, _entries(path.parent))


def _importable(name: str, base_dir: str) -> bool:
    if name in sys.builtin_module_names or name in sys.stdlib_module_names:
        return True
    search = [*([base_dir] if base_dir else []), *sys.path]
    return importlib.machinery.PathFinder.find_spec(name, search) is not None


def _modules_in(base_dir: str) -> Iterable[str]:
    if not base_dir or not os.path.isdir(base_dir):
        return ()
    return sorted(
        {name.removesuffix(".py") for name in _entries(Path(base_dir)) if name.endswith(".py") or "." not in name}
    )


def _entries(folder: Path) -> list[str]:
    """Return the names in ``folder``, for suggestions; an empty list when it may not be read."""
    try:
        return sorted(os.listdir(folder))
    except PermissionError:
        return []
