"""Finds the installed version, and where an installation keeps its other files: documents, examples, units, headers.

In a checkout these files are in the checkout. In an installation they are in share/chronetix of the environment, in the
same folders as in the source; the headers are in the package's own folder.
"""

from __future__ import annotations

from pathlib import Path

FIRST = "README.md"
"""The file by which the folder of the documents is recognised."""


def version() -> str:
    """Return the installed version, or ``0+source`` for a tree that is not installed. Slow: it searches the
    environment's metadata."""
    from importlib import metadata

    try:
        return metadata.version("chronetix")
    except metadata.PackageNotFoundError:
        return "0+source"


def documents() -> Path | None:
    """Return the folder that holds README.md, docs/, examples/, systemd/ …; None if this installation has none."""
    from importlib import metadata

    checkout = Path(__file__).parents[1]
    if (checkout / FIRST).is_file():
        return checkout
    for file in metadata.files("chronetix") or ():
        if file.match(f"share/chronetix/{FIRST}"):
            return Path(str(file.locate())).resolve().parent
    return None


def headers() -> Path:
    """Return the folder to pass to a C compiler with -I, for ``#include <chronetix/chronetix.h>``."""
    import chronetix

    return Path(chronetix.__file__).parent / "shm" / "include"
