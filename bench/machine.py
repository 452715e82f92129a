"""Text that all benchmarks print: the machine, the measured version, and a line of progress."""

from __future__ import annotations

import os
import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path


def describe_machine() -> str:
    """Processor, how many may be used, kernel, Python."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    processor = model[1] if model else platform.machine()
    usable = len(os.sched_getaffinity(0))
    return f"{processor}, {usable} CPUs, Linux {platform.release()}, Python {platform.python_version()}"


def own_version() -> str:
    """chronetix as installed, or as this source tree says."""
    try:
        return metadata.version("chronetix")
    except metadata.PackageNotFoundError:
        project = Path(__file__).parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"])


def progress(text: str) -> None:
    """On a terminal, one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
