"""Modules of plugin files: each folder is a package of its own, whose name says which folder it is.

``/srv/flow/rows.py`` is the module ``chronetix.files._2fsrv_2fflow.rows``. Whoever has this package can import it by
that name alone: pickled objects of a plugin's own classes are read by child processes, however these were started
(fork, spawn, forkserver). Where several nodes of one process use one file, each has a module of its own: the second is
``chronetix.files._2fsrv_2fflow__2.rows``. ``from .helper import …`` means the file beside. ``import helper`` does too,
as in a script; where two nodes of one process have helpers of the same name, each gets its own.
"""

from __future__ import annotations

import builtins
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import chain, count
from types import ModuleType
from typing import Any

PACKAGE = "chronetix.files"


def unused_name(folder: str, module: str) -> str:
    """A name for ``module`` of the absolute ``folder`` that no module of this process has."""
    package = f"{PACKAGE}.{_encoded(folder)}"
    names = (f"{package}{copy}.{module}" for copy in chain([""], map("__{}".format, count(2))))
    return next(name for name in names if name not in sys.modules)


def _encoded(folder: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "".join(f"_{b:02x}" for b in os.fsencode(c)) for c in folder)


def _decoded(name: str) -> str:
    encoded = name.partition("__")[0]  # what follows tells copies apart
    return os.fsdecode(re.sub(rb"_([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), encoded.encode()))


class Folders(MetaPathFinder):
    """Finds folders below PACKAGE, and what is in them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        parent, _, last = name.rpartition(".")
        if parent == PACKAGE:
            folder = _decoded(last)
            if not os.path.isdir(folder):
                return None
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [folder]
            return spec
        if not parent.startswith(f"{PACKAGE}."):
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is not None and type(found.loader) is SourceFileLoader:
            found.loader = _Loader(found.loader.name, found.loader.path)
        return found


class _Loader(SourceFileLoader):
    """Has the module import what lies beside it."""

    def exec_module(self, module: ModuleType) -> None:
        folder = os.path.dirname(self.path)
        package = module.__name__.rpartition(".")[0]
        if package.rpartition(".")[0] == PACKAGE:
            module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _importing(folder, package)}
        super().exec_module(module)


def _importing(folder: str, package: str) -> Any:
    """``__import__`` for the modules of ``folder``."""

    def import_beside(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level == 0 and _is_anothers(top, folder):
            own = importlib.import_module(f"{package}.{name}")
            if not fromlist:
                return sys.modules[f"{package}.{top}"]
            return builtins.__import__(own.__name__, globals, locals, fromlist, 0)
        return builtins.__import__(name, globals, locals, fromlist, level)

    return import_beside


def _is_anothers(top: str, folder: str) -> bool:
    """``folder`` has a module ``top``, and a plain import would give that of another plugin's folder."""
    if not (os.path.isfile(f"{folder}/{top}.py") or os.path.isfile(f"{folder}/{top}/__init__.py")):
        return False
    loaded = sys.modules.get(top)
    if loaded is None:
        first = next((each for each in sys.path if each in _folders and _has(each, top)), folder)
        return first != folder
    place = os.path.dirname(os.path.realpath(getattr(loaded, "__file__", None) or "/"))
    place = os.path.dirname(place) if hasattr(loaded, "__path__") else place
    return place != folder and place in _folders


def _has(folder: str, top: str) -> bool:
    return os.path.isfile(f"{folder}/{top}.py") or os.path.isdir(f"{folder}/{top}")


_folders: set[str] = set()
"""Where plugins of this process come from."""


def plugins_in(folder: str) -> None:
    """Plugins of this process are loaded from ``folder``."""
    _folders.add(folder)


def package_of(path: str) -> tuple[str, str] | None:
    """If the file ``path`` belongs to a package (its folder has an ``__init__.py``): the folder that has the package,
    and the module's name from there."""
    folder, file = os.path.split(path)
    names = [file.removesuffix(".py")]
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        folder, last = os.path.split(folder)
        names.insert(0, last)
    return (folder, ".".join(names)) if len(names) > 1 and all(each.isidentifier() for each in names) else None
