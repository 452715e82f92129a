"""The sentence that tells why a flow failed: the node, what it did, how its process ended, and the last lines of its
stderr.
"""

from __future__ import annotations

from collections.abc import Sequence

from chronetixd.core.death import ExitRecord, HeldFrames
from chronetixd.core.flow_messages import FlowFailure
from chronetixd.core.worker import Exit


def reason(failure: FlowFailure, exit: Exit | None, stderr_tail: Sequence[str], death: ExitRecord | None = None) -> str:
    """Return one line, followed by the end of stderr if there is any. ``exit`` is that of the failed node, if its
    process has ended; ``death`` is the record of that exit."""
    if not failure.node:
        return failure.message
    subject = f"node {failure.node!r}"
    text = f"{subject} {failure.told}"
    if exit is not None and failure.kind in ("fault", "drain-timeout", "start-timeout"):
        text += f"; it {exit}"
    if exit is not None and death is not None:
        text += circumstances(death)
    if stderr_tail:
        text += "\nlast lines of its stderr:\n" + "\n".join(f"  {line}" for line in stderr_tail)
    return text


_MEMORY = {
    "yes": ", because its memory ran out: it needs a larger resource_claims.memory_bytes",
    "suspected": ", perhaps because memory ran out: the kernel has ended a process for that while it lived",
}


def circumstances(death: ExitRecord) -> str:
    """Return what else is worth reporting of an exit, to be appended to it: lack of memory, and frames that the worker
    held."""
    text = _MEMORY.get(death.out_of_memory, "")
    if death.held:
        text += "; it held " + ", ".join(_frames(frames) for frames in death.held)
    return text


def _frames(held: HeldFrames) -> str:
    first = f" (first {held.sequences[0]})" if held.sequences and held.count > 1 else ""
    which = f"frame {held.sequences[0]}" if held.count == 1 and held.sequences else f"{held.count} frames{first}"
    return f"{which} of route {held.route}"


def explain(exit: Exit, death: ExitRecord) -> str:
    """Return an exit as one line."""
    return f"{exit}{circumstances(death)}"
