"""Mutants that change nothing that anybody can see, each with the reason: a sample leaves them out.

Known by file and lines, not by their numbers. A test fails when one is no longer a mutant of the code.
"""

from __future__ import annotations

from typing import Final

EQUIVALENT: Final[dict[tuple[str, str], str]] = {}
