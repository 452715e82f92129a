"""From an artifact to the object it names: ``python://module:object``, ``python:///abs/file.py:object``,
``python://rel/file.py:object`` (relative to the flow's base folder) and ``builtin://chronetix/…``.

Whatever goes wrong (no such file, module or object, a syntax error, an import that raises) is one ChronetixError
``plugin-not-loadable`` that says what and suggests the nearest name; the cause, with its traceback, is its
``__cause__``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from chronetix.nodeworker.api import files
from chronetix.nodeworker.api.errors import named
from chronetix.nodeworker.api.tracebacks import users_frame
from chronetix.nodeworker.builtins import BUILTINS
from chronetix.protocol.errors import ChronetixError, error

PYTHON = "python://"
BUILTIN = "builtin://"


def load(uri: str, base_dir: str = "", kind: str = "Python") -> Any:
    """The object that ``uri`` names. Raises ChronetixError ``plugin-not-loadable`` or ``artifact-kind-unsupported``."""
    if uri.startswith(BUILTIN):
        return _builtin(uri)
    if uri.startswith(PYTHON):
        return _python(uri, base_dir)
    if kind == "Python" and "://" not in uri:
        return _python(PYTHON + uri, base_dir)
    raise error("artifact-kind-unsupported", node=uri, kind=kind, supported=["Python", "builtin"])


def _builtin(uri: str) -> Any:
    """builtin modules are imported only when used: the launcher should not carry what few nodes need."""
    target = BUILTINS.get(uri)
    if target is None:
        raise _failure(uri, f"there is no such builtin{_suggest(uri, BUILTINS)}")
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _python(uri: str, base_dir: str) -> Any:
    place, colon, name = uri.removeprefix(PYTHON).rpartition(":")
    if not colon or not place or not name:
        raise _failure(uri, "it must read python://module:object or python://path/to/file.py:object")
    if place.endswith(".py") or "/" in place:
        module = _from_file(uri, place, base_dir)
    else:
        module = _from_name(uri, place, base_dir)
    return _member(uri, module, name)


def _from_file(uri: str, place: str, base_dir: str) -> ModuleType:
    path = os.path.realpath(os.path.join(base_dir, place))
    folder = os.path.dirname(path)
    if not os.path.isfile(path):
        raise _failure(uri, f"there is no file {path}{_suggest(place, _files_beside(place, folder))}")
    _importable(folder, base_dir)
    files.plugins_in(folder)
    try:
        return _imported(path)
    except SyntaxError as cause:
        raise _failure(uri, _syntax(cause)) from cause
    except Exception as cause:
        raise _failure(uri, f"importing {path} raised {_raised(cause)}") from cause


def _imported(path: str) -> ModuleType:
    """The module in the file ``path``: of a package under its name there, else of its folder. Nodes of one process do
    not share what is in it: each has a module of its own, and a name for it that no other has."""
    folder, file = os.path.split(path)
    root, name = files.package_of(path) or (folder, file.removesuffix(".py"))
    if root != folder and name not in sys.modules and _is_free(name.partition(".")[0], root):
        _importable(root)
    else:
        name = files.unused_name(root, name)
    return importlib.import_module(name)


def _is_free(top: str, root: str) -> bool:
    """A package ``top`` of the folder ``root`` can be imported under that name."""
    loaded = sys.modules.get(top)
    if loaded is not None:
        places = getattr(loaded, "__path__", ())
    else:
        found = importlib.util.find_spec(top)
        if found is None:
            return True
        places = found.submodule_search_locations or ()
    return os.path.join(root, top) in map(os.path.realpath, places)


def _raised(cause: BaseException) -> str:
    """What was raised, and in which line of the plugin's."""
    return f"{named(cause)}{_where(cause)}"


def _where(cause: BaseException) -> str:
    frame = users_frame(cause)
    return "" if frame is None else f" ({frame.filename}, line {frame.lineno}: {frame.line})"


def _files_beside(place: str, folder: str) -> list[str]:
    files = os.listdir(folder) if os.path.isdir(folder) else []
    return [os.path.join(os.path.dirname(place), file) for file in files if file.endswith(".py")]


def _from_name(uri: str, name: str, base_dir: str) -> ModuleType:
    _importable(base_dir)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as cause:
        missing = cause.name or name
        if name == missing or name.startswith(missing + "."):
            raise _failure(uri, f"there is no module {missing}{_suggest(missing, _modules_beside(missing))}") from cause
        raise _failure(
            uri, f"importing {name} needs the module {missing}, which is not installed{_where(cause)}"
        ) from cause
    except SyntaxError as cause:
        raise _failure(uri, _syntax(cause)) from cause
    except Exception as cause:
        raise _failure(uri, f"importing {name} raised {_raised(cause)}") from cause


def _member(uri: str, module: ModuleType, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            names = [key for key in vars(found) if not key.startswith("_")] if hasattr(found, "__dict__") else []
            where = getattr(module, "__file__", None) or module.__name__
            raise _failure(uri, f"{where} has no {name}{_suggest(name, names)}") from None
    return found


def _importable(*folders: str) -> None:
    """Modules beside the plugin's file and in the flow's folder can be imported, as for a script that is run there."""
    for folder in folders:
        if folder and folder not in sys.path:
            sys.path.insert(0, folder)


def _modules_beside(name: str) -> list[str]:
    """Names that could have been meant: the siblings in the package, or what stands on the path."""
    package, _, _ = name.rpartition(".")
    paths = getattr(sys.modules.get(package), "__path__", None) if package else None
    prefix = f"{package}." if package else ""
    return [prefix + module.name for module in pkgutil.iter_modules(paths)]


def _syntax(cause: SyntaxError) -> str:
    line = (cause.text or "").strip()
    return f"syntax error in {cause.filename}, line {cause.lineno}: {cause.msg}{f': {line}' if line else ''}"


def _suggest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _failure(uri: str, reason: str) -> ChronetixError:
    return error("plugin-not-loadable", uri=uri, reason=reason)
