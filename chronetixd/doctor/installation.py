"""What the daemon imports and starts."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys

from chronetixd.doctor import Finding, Place, check, failure, passed


@check("installation", "shared-memory extension")
def extension(_place: Place) -> Finding:
    """shm._native, and the launcher's own."""
    return _modules("shm._native", "nodeworker._clone")


@check("installation", "worker launcher")
def launcher(_place: Place) -> Finding:
    """nodeworker.launcher, which the daemon starts and never imports."""
    return _modules("nodeworker.launcher")


def _modules(*names: str) -> Finding:
    for name in names:
        package = name.partition(".")[0]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            problem = f"the package {package} is not installed for {sys.executable}"
        elif importlib.machinery.PathFinder.find_spec(name, list(spec.submodule_search_locations)) is None:
            problem = f"{name} is not there"
        else:
            continue
        return failure(problem, "install the package again (pip install chronetix), or build it (make .venv/dev)")
    return passed(", ".join(names))
