"""Artifacts of kind Dylib: shared libraries that a native host loads as the worker of a node.

Checked is what can be checked without loading anything: that it is a shared library for this machine, and that it
exports the table of plugins. The host is a program of sdk/c, which is built where it runs, because it needs libcbor; so
it is looked for as other programs are.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
from pathlib import Path
from typing import BinaryIO

HOST = "chronetix-dylib-host"
HOST_VARIABLE = "CHRONETIX_DYLIB_HOST"
SYMBOL = b"chronetix_plugin_v1"
"""Where chronetix_plugin.h puts the table."""

PLACES = ("/usr/local/bin", "/usr/bin")
"""Folders in which the host is looked for behind those of PATH."""

MACHINES = {"x86_64": 62, "aarch64": 183}
"""ELF's numbers of the machines that Chronetix runs on."""

MAX_TABLE = 64 << 20
"""Bytes of a symbol table, or of its names, that are read; of a larger one nothing is said."""

SHARED, SYMBOLS = 3, 11
"""ELF's ET_DYN and SHT_DYNSYM."""


def host() -> str:
    """Return the path of the host: what the environment names, else the first on PATH or in PLACES; empty if there is
    none."""
    named = os.environ.get(HOST_VARIABLE, "")
    if named:
        return named if os.path.isabs(named) and os.access(named, os.X_OK) else ""
    return shutil.which(HOST) or shutil.which(HOST, path=os.pathsep.join(PLACES)) or ""


def problem(path: Path) -> tuple[str, str] | None:
    """Return what is wrong with the library ``path`` and what to do about it; None when nothing is found wrong. Raises
    OSError."""
    with path.open("rb") as file:
        try:
            wrong = _wrong(file)
        except (struct.error, ValueError):
            wrong = "is a damaged library"
    if wrong:
        return (
            f"{path} {wrong}",
            "build it with -shared for this machine, and export chronetix_plugin_v1 (sdk/c/README.md)",
        )
    if not host():
        cure = f"build and install it (make -C sdk/c install), or name it in {HOST_VARIABLE}"
        return f"the host of dylibs, {HOST}, is not installed", cure
    return None


def _wrong(file: BinaryIO) -> str:
    head = file.read(64)
    if head[:4] != b"\x7fELF":
        return "is no shared library"
    if head[4:6] != b"\x02\x01":
        return "is not of 64 bits, little-endian"
    kind, machine = struct.unpack_from("<HH", head, 16)
    if kind != SHARED:
        return "is no shared library"
    if machine != MACHINES.get(platform.machine(), machine):
        return "is for another machine"
    sections_at, size, count = *struct.unpack_from("<Q", head, 40), *struct.unpack_from("<HH", head, 58)
    if not sections_at or size != 64:
        return ""
    sections = [struct.unpack_from("<IIQQQQIIQQ", table, 0) for table in _pieces(file, sections_at, size, count)]
    for section in sections:
        if section[1] == SYMBOLS and section[6] < count:
            return _exported(file, section, sections[section[6]])
    return ""


def _exported(file: BinaryIO, symbols: tuple[int, ...], names: tuple[int, ...]) -> str:
    if max(symbols[5], names[5]) > MAX_TABLE:
        return ""
    text = _at(file, names[4], names[5])
    table = _at(file, symbols[4], symbols[5] - symbols[5] % 24)
    for name, _info, _other, section, _value, _size in struct.iter_unpack("<IBBHQQ", table):
        if section and text[name : name + len(SYMBOL) + 1] == SYMBOL + b"\0":
            return ""
    return f"exports no {SYMBOL.decode()}"


def _pieces(file: BinaryIO, at: int, size: int, count: int) -> list[bytes]:
    table = _at(file, at, size * count)
    return [table[size * each : size * (each + 1)] for each in range(count)]


def _at(file: BinaryIO, at: int, size: int) -> bytes:
    """Raises ValueError when the file ends before."""
    try:
        file.seek(at)
    except (OSError, OverflowError) as reason:
        raise ValueError(str(reason)) from reason
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it is too short")
    return data
