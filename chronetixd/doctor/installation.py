"""Checks of the modules that the daemon imports and starts."""

from __future__ import annotations

import importlib.machinery
import sys

from chronetixd.doctor import Finding, Surroundings, check, failure, passed


@check("installation", "shared-memory extension")
def extension(_place: Surroundings) -> Finding:
    """Check that the extension of the data plane and that of the launcher are installed."""
    return _modules("chronetix.shm._native", "chronetix.nodeworker._clone")


@check("installation", "worker launcher")
def launcher(_place: Surroundings) -> Finding:
    """Check that the launcher's module is installed, which the daemon starts and never imports."""
    return _modules("chronetix.nodeworker.process.launcher")


def _modules(*names: str) -> Finding:
    for name in names:
        if problem := _missing(name):
            return failure(problem, "install the package again (pip install chronetix), or build it (make .venv/dev)")
    return passed(", ".join(names))


def _missing(name: str) -> str:
    """Return why the module ``name`` cannot be imported; empty if it can. Imports neither the module nor a package
    above it."""
    path: list[str] | None = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:count]), path)
        if spec is None:
            where = f"for {sys.executable}" if count == 1 else f"in {', '.join(path or ())}"
            return f"{'.'.join(parts[:count])} is not installed {where}"
        path = list(spec.submodule_search_locations or ())
    return ""
