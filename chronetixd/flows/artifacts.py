"""Checks that the artifacts and folders of a flow exist when it is submitted, so that a flow which cannot run is not
started.

Nothing is imported or executed here. A Python module must be found on the path that its worker will have, and its text
must have the name of the object somewhere. Errors inside the module only show when the worker loads it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import pwd
import re
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from chronetix.protocol.contract import Flow, Manifest, Problem
from chronetix.protocol.errors import error
from chronetix.protocol.nearest import did_you_mean
from chronetixd.core.access import Asker, Right
from chronetixd.flows import dylib, python_env
from chronetixd.flows.python_env import PythonEnv

BUILTIN = "builtin://"
PYTHON = "python://"
FILE = "file://"

MAX_TEXT = 1 << 20
"""Bytes of a module that are searched for the name of an object; a longer one is taken to have it."""

_MAKES_NAMES = re.compile(rb"import[ \t]*\*|\b(?:globals|setattr|exec|vars|__getattr__|__dict__)\b")
_DEFINED = re.compile(rb"^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", re.M)

BUILTINS = (
    "builtin://chronetix/system/timer",
    "builtin://chronetix/system/eventbus-source",
    "builtin://chronetix/system/eventbus-sink",
    "builtin://chronetix/resource/netinfo",
)
"""The artifacts that a worker provides itself; chronetix.nodeworker.builtins has the same list."""

ATTACHABLE = ("Process", "Python")
"""Kinds of artifacts that a worker may be which starts by itself."""

RUNNABLE = "this daemon runs artifacts of kind Python, Process and Dylib, and builtin:// of any kind"


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
        if manifest.artifact.python_env and (wrong := _env_problem(manifest, base_dir)):
            text = f"{wrong[0]} (node {manifest.node})"
            found.append(Problem(f"manifests[{index}].artifact.python_env", text, wrong[1]))
        if manifest.cwd and (wrong := _folder_problem(manifest, base_dir)):
            text = f"{wrong[0]} (node {manifest.node})"
            found.append(Problem(f"manifests[{index}].cwd", text, wrong[1]))
        if manifest.user and user_id(manifest.user) is None:
            text = f"this machine has no user {manifest.user} (node {manifest.node})"
            found.append(Problem(f"manifests[{index}].user", text, "make the user, or correct the name"))
    return found


def user_id(user: str) -> int | None:
    """Return the number of the user of this name or number; None if there is none."""
    try:
        return (pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)).pw_uid
    except (KeyError, OverflowError):
        return None


def check_users(flow: Flow, asker: Asker) -> None:
    """Check whether ``asker`` may have nodes run as the users that ``flow`` names, and whether this daemon can. Raises
    ChronetixError ``not-allowed``, ``user-not-possible``."""
    own = os.geteuid()
    for manifest in flow.manifests:
        wanted = user_id(manifest.user) if manifest.user else own
        if wanted == own and not manifest.user:
            continue
        what = f"run node {manifest.node} as user {manifest.user}"
        if asker.right < Right.ADMIN and wanted != asker.uid:
            raise error("not-allowed", uid=asker.uid, what=what, right=str(Right.ADMIN))
        if own not in (0, wanted):
            reason = f"the daemon itself runs as user {own}"
            raise error("user-not-possible", node=manifest.node, user=manifest.user, reason=reason)


def folder(manifest: Manifest, base_dir: str) -> str:
    """Return the folder in which the node's process runs."""
    return str(_path(manifest.cwd, base_dir)) if manifest.cwd else base_dir


def _folder_problem(manifest: Manifest, base_dir: str) -> tuple[str, str] | None:
    relative = _relative_without_base(manifest.cwd, base_dir)
    if relative is not None:
        return relative
    path = folder(manifest, base_dir)
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            return None
        return f"{path} is no folder", "give the folder in which the node is to run"
    except OSError as reason:
        return f"the folder {path} cannot be used: {reason.strerror}", "make it, or correct cwd"


def program(manifest: Manifest, base_dir: str) -> str:
    """Return the absolute path of the file of a Process or Dylib artifact."""
    return str(_path(manifest.artifact.uri.removeprefix(FILE), base_dir))


def python_of(manifest: Manifest, base_dir: str) -> str:
    """Return the absolute path of the interpreter of the environment that the node names."""
    return str(_path(manifest.artifact.python_env, base_dir) / "bin" / "python")


def _env_problem(manifest: Manifest, base_dir: str) -> tuple[str, str] | None:
    """Return why the node's environment cannot run its worker."""
    relative = _relative_without_base(manifest.artifact.python_env, base_dir)
    if relative is not None:
        return relative
    found = python_env.find(_path(manifest.artifact.python_env, base_dir))
    return found.problem() if isinstance(found, PythonEnv) else found


def _field(manifest: Manifest) -> str:
    runnable = manifest.artifact.kind in ("Python", "Process", "Dylib") or manifest.artifact.uri.startswith(BUILTIN)
    return "uri" if runnable else "kind"


def _problem(manifest: Manifest, base_dir: str) -> tuple[str, str] | None:
    """Return what is wrong and what to do about it; None when nothing is wrong."""
    kind, uri = manifest.artifact.kind, manifest.artifact.uri
    if manifest.artifact.attach:
        return (
            None if kind in ATTACHABLE else (f"an artifact of kind {kind} cannot attach", "use kind Process or Python")
        )
    if uri.startswith(BUILTIN):
        if uri in BUILTINS:
            return None
        known = "known are " + ", ".join(BUILTINS)
        return f"there is no builtin {uri}", did_you_mean(uri, BUILTINS, known)
    if kind == "Python" and manifest.artifact.python_env and not _is_file(uri):
        return None  # its modules are the other environment's: see missing_modules
    if kind == "Python":
        return _python_problem(uri, base_dir)
    if kind == "Process":
        return _process_problem(uri, base_dir)
    if kind == "Dylib":
        return _dylib_problem(uri, base_dir)
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
    return _interpreter_problem(path)


def _dylib_problem(uri: str, base_dir: str) -> tuple[str, str] | None:
    place = uri.removeprefix(FILE)
    if "://" in place:
        return f"{uri} is no library", "a Dylib artifact is file:// and the path of a shared library"
    relative = _relative_without_base(place, base_dir)
    if relative is not None:
        return relative
    path = _path(place, base_dir)
    if not path.is_file():
        return f"there is no file {path}", _near_file(path)
    try:
        return dylib.problem(path)
    except PermissionError:
        return None  # the worker may be another user, who may read it


def _interpreter_problem(path: Path) -> tuple[str, str] | None:
    """Return a problem if the first line of a script names an interpreter that does not exist."""
    try:
        with path.open("rb") as file:
            first = file.read(256).partition(b"\n")[0]
    except PermissionError:
        return None
    words = os.fsdecode(first[2:]).split()
    if not first.startswith(b"#!") or not words or not os.path.isabs(words[0]) or os.path.exists(words[0]):
        return None
    text = f"the interpreter {words[0]}, which the first line of {path} names, is not there"
    return text, "install it, or name another one"


def _is_file(uri: str) -> bool:
    """Return whether a Python artifact names a file, and not a module."""
    place = uri.removeprefix(PYTHON).rpartition(":")[0]
    return place.endswith(".py") or "/" in place


def _python_problem(uri: str, base_dir: str) -> tuple[str, str] | None:
    place, _, attribute = uri.removeprefix(PYTHON).rpartition(":")
    if not place or not attribute or "://" in place:
        return f"{uri} names no Python object", "write python://module:object or python://path/to/file.py:object"
    if place.endswith(".py") or "/" in place:
        relative = _relative_without_base(place, base_dir)
        if relative is not None:
            return relative
        path = _path(place, base_dir)
        return _object_problem(path, attribute) if path.is_file() else (f"there is no file {path}", _near_file(path))
    found, missing, near = _find_module(place, base_dir)
    if not missing:
        return _object_problem(Path(found), attribute) if found.endswith(".py") else None
    where = f"in {base_dir} or " if base_dir else ""
    return f"there is no module {missing} {where}on the daemon's Python path", did_you_mean(missing, near)


def _object_problem(path: Path, attribute: str) -> tuple[str, str] | None:
    """Return a problem if the module's text cannot define the object: its name is nowhere in it, and nothing in it
    makes names by itself."""
    name = attribute.partition(".")[0]
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TEXT + 1)
    except PermissionError:
        return None  # the worker may be another user, who may read it
    if len(text) > MAX_TEXT or _MAKES_NAMES.search(text) or re.search(rb"(?<![\w.])%b(?!\w)" % name.encode(), text):
        return None
    known = [each.decode() for each in _DEFINED.findall(text) if not each.startswith(b"_")]
    return f"{path} has no {name}", did_you_mean(name, known)


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


def _find_module(name: str, base_dir: str) -> tuple[str, str, Iterable[str]]:
    """Return the file of the module ``name``, which is empty for a module without one; else the part of the name that
    is not found, and the names that could have been meant."""
    if name.partition(".")[0] in sys.builtin_module_names:
        return "", "", ()
    search: list[str] = [*([base_dir] if base_dir else []), *sys.path]
    found = ""
    near = _modules_in(base_dir)
    parts = name.split(".")
    for at, part in enumerate(parts, start=1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:at]), search)
        if spec is None and (_found_otherwise(part) if at == 1 else parts[0] in sys.stdlib_module_names and not search):
            return "", "", ()  # as os.path, which is no submodule of a package
        if spec is None:
            return found, ".".join(parts[:at]), near
        found = spec.origin or ""
        search = list(spec.submodule_search_locations or ())
        near = [".".join([*parts[:at], each]) for folder in search for each in _modules_in(folder)]
    return found, "", ()


def _found_otherwise(name: str) -> bool:
    """Return whether an import hook finds the installed module ``name``, as for editable installations."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:
        return True


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
