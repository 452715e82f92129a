"""Where an installation keeps what is no module: documents, examples, units and headers.

In a checkout it is the checkout; else share/chronetix of the environment, where it lies as in the source, and the
package's own folder for the headers.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import chronetix

FIRST = "README.md"
"""Is in the folder that is looked for."""


def documents() -> Path | None:
    """The folder with README.md, docs/, examples/, systemd/ …; None when this installation has none."""
    checkout = Path(__file__).parents[1]
    if (checkout / FIRST).is_file():
        return checkout
    for file in metadata.files("chronetix") or ():
        if file.match(f"share/chronetix/{FIRST}"):
            return Path(str(file.locate())).resolve().parent
    return None


def headers() -> Path:
    """What a C compiler is given with -I, for ``#include <chronetix/chronetix.h>``."""
    return Path(chronetix.__file__).parent / "shm" / "include"
