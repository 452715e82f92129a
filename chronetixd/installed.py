"""Which version is installed, and where an installation keeps what is no module: documents, examples, units, headers.

In a checkout it is the checkout; else share/chronetix of the environment, where it lies as in the source, and the
package's own folder for the headers.
"""

from __future__ import annotations

from pathlib import Path

FIRST = "README.md"
"""Is in the folder that is looked for."""


def version() -> str:
    """The installed version, ``0+source`` when run from a tree that is not installed. (Slow to find out.)"""
    from importlib import metadata

    try:
        return metadata.version("chronetix")
    except metadata.PackageNotFoundError:
        return "0+source"


def documents() -> Path | None:
    """The folder with README.md, docs/, examples/, systemd/ …; None when this installation has none."""
    from importlib import metadata

    checkout = Path(__file__).parents[1]
    if (checkout / FIRST).is_file():
        return checkout
    for file in metadata.files("chronetix") or ():
        if file.match(f"share/chronetix/{FIRST}"):
            return Path(str(file.locate())).resolve().parent
    return None


def headers() -> Path:
    """What a C compiler is given with -I, for ``#include <chronetix/chronetix.h>``."""
    import chronetix

    return Path(chronetix.__file__).parent / "shm" / "include"
