"""What workers claim of their routes, compared with the memory that the daemon keeps.

The memory of both ends is hostile: its writers may live and write while it is read. Each function copies what it reads
and follows no offset of it. A verdict about one end is based on words that only this end writes, or on words of the
peer that an honest peer does not change any more. A peer that changes its RING after it has closed it can have the
other end charged; the route is lost then in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from chronetix.protocol.messages import Port
from chronetix.shm import layout
from chronetixd.core.wiring.stages import Memory, Stage

KNOWN_FLAGS = 0b11
NOTED = 0b10
NOTES = 16
"""Bytes at the end of a noted frame (SPEC §3.1)."""

Accused = Literal["producer", "consumer"]


def misfit(stage: Stage, port: Port | None, fd: int, *, with_policy: bool) -> str:
    """Return why a RING or CREDIT is not the one that ``port`` asks for at ``stage``; an empty string if it is. The
    first number of a RING is checked by the machine, which knows where the stage before ends."""
    shape = layout.shape(fd)
    asked: list[tuple[str, object, object]] = [("epoch", shape.epoch, stage.epoch)]
    if port is not None:
        asked.append(("credits", shape.credits, port.credits))
        if with_policy:
            asked.append(("policy", shape.policy, port.policy))
    if not with_policy:
        asked.append(("base_seq", shape.base_seq, stage.base_seq))
    wrong = [f"its {name} is {found}, but the port says {wanted}" for name, found, wanted in asked if found != wanted]
    return "; ".join(wrong)


def unfinished(memory: Memory, outputs: Iterable[Stage], inputs: Iterable[tuple[Stage, int | None]]) -> str:
    """Return why a worker with this ``memory``, which is gone, had not finished as it said; an empty string if it had.
    ``inputs`` come with the position at which the stage ends, None for a stage that its producer has to close.

    A worker that has finished has closed its outputs. It has detached from each input, or the stream has ended and
    every frame has been returned.
    """
    for stage in outputs:
        mine = stage.producer is memory and stage.told_producer
        if mine and stage.ring is not None and not layout.closed(stage.ring):
            return f"output {stage.route.id!r} is not closed"
    for stage, end in inputs:
        if stage.consumer is not memory or stage.credit is None or stage.ring is None or not stage.told_consumer:
            continue
        if layout.closed(stage.credit):
            continue
        closed = layout.closed_at(stage.ring)
        if end is None and not closed:
            return f"input {stage.route.id!r} has not ended, and it has not detached from it"
        if stage.route.policy == "latest":
            continue
        try:
            owed = _owed(stage.ring, stage.credit, end if end is not None else closed - 1)
        except ValueError:
            return f"of input {stage.route.id!r}, {changed}" if (changed := _changed(stage.credit)) else ""
        if owed:
            return f"{owed} frames of input {stage.route.id!r} were not returned"
    return ""


def _changed(fd: int) -> str:
    """Return how the maker of a RING or CREDIT has changed its header after the check; empty if it has not."""
    try:
        layout.slots(fd)
    except ValueError as reason:
        return str(reason)
    return ""


def _owed(ring: int, credit: int, end: int) -> int:
    """Return how many frames before position ``end`` of a RING have not come back. The comparison as bytes is for the
    usual case that all have: with 65 536 slots it takes 4 ms instead of 26."""
    sent, back = layout.descriptors(ring)[:: layout.DESC_WORDS], layout.stamps(credit)
    if sent.tobytes() == back.tobytes():
        return 0
    return sum(back[slot] < stamp <= end for slot, stamp in enumerate(sent) if stamp)


def broken_rule(stage: Stage, accused: Accused, segments: Mapping[int, int]) -> str:
    """Return which rule of SPEC §8 the ``accused`` end of ``stage`` has broken, as its memory shows; an empty string if
    the memory shows none. ``segments`` are the sizes of the producer's segments."""
    if stage.ring is None or stage.credit is None:
        return ""
    latest = stage.route.policy == "latest"
    try:
        if accused == "consumer":
            return _consumer_lie(stage.ring, stage.credit, latest=latest)
        return _producer_lie(stage.ring, stage.credit, segments, latest=latest)
    except ValueError:
        return _changed(stage.credit if accused == "consumer" else stage.ring)


def _off_slot(words: Iterable[int], slots: int) -> int | None:
    """Return the first slot whose stamp or skip cannot be, or None."""
    for slot, word in enumerate(words):
        if word and (word > layout.MAX_POSITION or (word - 1) % slots != slot):
            return slot
    return None


def _consumer_lie(ring: int, credit: int, *, latest: bool) -> str:
    returned, stamps = layout.returned(credit), layout.stamps(credit)
    sent = layout.descriptors(ring)[:: layout.DESC_WORDS]
    last = max(sent)
    if returned > last:
        return f"it has returned {returned} frames, and {last} at most were sent"
    if latest:
        return ""
    slot = _off_slot(stamps, len(stamps))
    if slot is not None:
        return f"its stamp of slot {slot} is {stamps[slot]}, which no frame in this slot has"
    slots = range(min(len(stamps), len(sent)))
    early = next((slot for slot in slots if stamps[slot] > sent[slot]), None)
    return f"it has returned frame {stamps[early] - 1} before it was sent" if early is not None else ""


def _producer_lie(ring: int, credit: int, segments: Mapping[int, int], *, latest: bool) -> str:
    closed, oldest = layout.closed_at(ring), layout.oldest(ring)
    words, skips = layout.descriptors(ring), layout.skips(ring)
    back, revoked = layout.stamps(credit), layout.oldest(ring)  # last: what came back meanwhile may be half overwritten
    sent = words[:: layout.DESC_WORDS]
    for what, found in (("stamp", sent), ("skip", skips)):
        slot = _off_slot(found, len(found))
        if slot is not None:
            return f"its {what} of slot {slot} is {found[slot]}, which no position in this slot has"
    last = max(*sent, *skips)
    if closed and closed - 1 != last:
        return f"it has closed the stream at position {closed - 1}, and its last position is {last}"
    if oldest > layout.MAX_POSITION or (latest and oldest > last):
        return f"its oldest frame is at {oldest}, and its last position is {last}"
    for slot, stamp in enumerate(sent):
        out = stamp > revoked if latest else stamp > back[slot]
        if stamp and out:
            wrong = _frame_lie(words[slot * layout.DESC_WORDS : (slot + 1) * layout.DESC_WORDS], segments)
            if wrong:
                return f"its frame at position {stamp - 1}: {wrong}"
    return ""


def _frame_lie(words: memoryview, segments: Mapping[int, int]) -> str:
    """Return which rule a descriptor breaks. The frame is not returned, so an honest producer does not change it."""
    offset, length, packed = words[1], words[2], words[3]
    segment, flags = packed & 0xFFFF, packed >> 16 & 0xFFFF
    if flags & ~KNOWN_FLAGS:
        return f"flags {flags:#x} are not known"
    if flags & NOTED and length < NOTES:
        return f"it has notes and {length} bytes"
    if not length:
        return ""
    if offset % 64:
        return f"offset {offset} is no multiple of 64"
    size = segments.get(segment)
    if size is None:
        return f"there is no segment {segment}"
    return f"{length} bytes at {offset} are not in segment {segment} of {size}" if offset + length > size else ""
