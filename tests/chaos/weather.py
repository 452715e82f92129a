"""The page by which a storm makes weather for the daemon and for all processes that it starts; see weather.c."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("weather.c")
_FIELDS = struct.Struct("=qIIII")
"""step_ns, refuse_every, asked, refused, clock_read"""


class Weather:
    """Builds the library in ``folder`` and keeps the page mapped."""

    def __init__(self, folder: Path) -> None:
        self._library, page = folder / "weather.so", folder / "weather"
        compiler = ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*compiler, str(SOURCE), "-o", str(self._library), "-ldl"], check=True)
        page.write_bytes(bytes(4096))
        fd = os.open(page, os.O_RDWR | os.O_CLOEXEC)
        self._page = mmap.mmap(fd, 4096)
        os.close(fd)
        self._path = page

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables that a process needs to have this weather."""
        return {"LD_PRELOAD": str(self._library), "CHAOS_WEATHER": str(self._path)}

    def step_clock(self, ns: int) -> None:
        """Shift the wall clock by ``ns`` from now on; 0 for the true time."""
        self._page[0:8] = struct.pack("=q", ns)

    def refuse_memory(self, every: int) -> None:
        """Refuse every ``every``-th request for shared memory from now on; 0 for none."""
        self._page[8:12] = struct.pack("=I", every)

    @property
    def refused(self) -> int:
        """How often memory was refused."""
        return int(_FIELDS.unpack_from(self._page)[3])

    @property
    def clock_read(self) -> int:
        """How often a shifted clock was read."""
        return int(_FIELDS.unpack_from(self._page)[4])

    def close(self) -> None:
        """Unmap the page."""
        self._page.close()
