"""The extension with failpoints, made once for all test processes of a session."""

from __future__ import annotations

import fcntl
import importlib.util
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

SHM = Path(__file__).parents[3] / "shm"
FLAGS = [
    "-std=c11",
    "-O1",
    "-g",
    "-fPIC",
    "-shared",
    "-D_GNU_SOURCE",
    "-DCHX_FAILPOINTS",
    "-DPy_LIMITED_API=0x030B0000",
]


def load(folder: Path) -> ModuleType:
    """``chronetix.shm._native`` as a test build, beside the real one. It stays loaded."""
    made = folder / "_native.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            sources = sorted(SHM.glob("native/*.c"))
            include = [f"-I{SHM / 'include'}", f"-I{sysconfig.get_paths()['include']}"]
            done = subprocess.run(
                ["gcc", *FLAGS, *include, *sources, "-o", f"{made}.new"], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            Path(f"{made}.new").rename(made)
    spec = importlib.util.spec_from_file_location("_native", made)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
