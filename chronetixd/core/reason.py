"""The sentence that tells why a flow failed: node, what it did, how its process ended, its last words on stderr."""

from __future__ import annotations

from collections.abc import Sequence

from chronetixd.core.flow_words import Failure
from chronetixd.core.worker import Exit


def reason(failure: Failure, exit: Exit | None, stderr_tail: Sequence[str]) -> str:
    """One line, then the end of stderr if there is any. ``exit`` is that of the failed node, if it has ended."""
    if not failure.node:
        return failure.message
    subject = f"node {failure.node!r}"
    if failure.kind == "fault":
        text = f"{subject} failed in phase {failure.phase!r}: {failure.message}"
    elif failure.kind == "spawn":
        text = f"{subject} could not be spawned: {failure.message}"
    else:
        text = f"{subject} {failure.message}"
    if exit is not None and failure.kind in ("fault", "drain-timeout", "start-timeout"):
        text += f"; it {exit}"
    if stderr_tail:
        text += "\nlast lines of its stderr:\n" + "\n".join(f"  {line}" for line in stderr_tail)
    return text
