"""How many threads the native libraries of a worker have, and who says so.

Rules: the launcher must have one thread, so it imports numpy and pyarrow within :func:`single`. A worker has one BLAS
thread, because each node is a process; what the daemon's environment or the node's says in one of ``BLAS_THREADS``
wins, also over a library that is loaded already.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

BLAS_THREADS: Final = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
"""Environment variables that OpenBLAS reads; the first that is set counts."""

DEFAULT: Final = {"OPENBLAS_NUM_THREADS": "1"}
"""What a worker's environment has when none of these is set."""

ARROW: Final = "JE_ARROW_MALLOC_CONF"

_is_default = False
"""The default in the environment of this process is not the user's."""


@contextmanager
def single() -> Iterator[None]:
    """Libraries that are loaded within this block start no threads. After it the environment is the user's again, with
    the default where there is none."""
    global _is_default
    before = {name: os.environ.get(name) for name in (*DEFAULT, ARROW)}
    settings = before[ARROW]
    os.environ.update(DEFAULT)
    os.environ[ARROW] = f"{settings},background_thread:false" if settings else "background_thread:false"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    _is_default = not any(name in os.environ for name in BLAS_THREADS)
    if _is_default:
        os.environ.update(DEFAULT)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker for which ``more`` is set."""
    kept = {**os.environ}
    if _is_default and any(name in more for name in BLAS_THREADS):
        for name in DEFAULT:
            del kept[name]
    return {**kept, **more}


def adopt(more: Mapping[str, str]) -> None:
    """Make :meth:`environment` that of this process, and have what is loaded already obey it."""
    global _is_default
    wanted = environment(more)
    _is_default &= all(wanted.get(name) == value for name, value in DEFAULT.items())
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(more)
    threads = next((int(wanted[name]) for name in BLAS_THREADS if wanted.get(name, "").isdigit()), 0)
    if threads > 1:
        openblas = loaded_openblas("set_num_threads")
        if openblas is not None:
            openblas(threads)


def loaded_openblas(function: str) -> Any:
    """``openblas_<function>`` of the OpenBLAS that is loaded, which may have other names for it; None if there is
    none."""
    with open("/proc/self/maps") as maps:
        found = re.search(r"/\S*openblas\S*\.so\S*", maps.read())
    if found is None:
        return None
    import ctypes  # what few workers need

    library = ctypes.CDLL(found[0])
    names = [f"{before}openblas_{function}{after}" for before in ("", "scipy_") for after in ("", "64_", "_64")]
    return next((getattr(library, name) for name in names if hasattr(library, name)), None)
