"""docs/operations.md and PROTOCOL.md name the limits that no setting changes, with the code's figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from chronetixd.bus import event_bus
from chronetixd.control import client
from chronetixd.core import quota
from chronetixd.core.wiring.stages import MAX_SEGMENTS
from chronetixd.dataplane import taps
from chronetixd.loop.connection import MAX_UNSENT

ROOT = Path(__file__).parents[3]
KIB, MIB = 1 << 10, 1 << 20


def words_of(path: str) -> str:
    return " ".join((ROOT / path).read_text().split())


@pytest.mark.parametrize(
    "sentence",
    [
        f"An arena has at most {MAX_SEGMENTS} segments",
        f"A client may send one descriptor with a message and leave {MAX_UNSENT} unread.",
        f"at most {event_bus.MAX_OPEN} subscriptions and {event_bus.MAX_OPEN} open requests, a flow at most "
        f"{taps.MAX_TAPS} taps",
        f"{quota.CALL_WORK} items of CBOR cost as much as a call",
        f"| one frame | {client.READER_FRAME // KIB} KiB, {client.READER_ITEMS} items |",
        f"`apply`) | {client.CALL_ITEMS} items |",
        f"while the next one is made | {client.MAX_UNANSWERED // KIB} KiB;",
        f"that wait to be read | {client.MAX_STREAM_BACKLOG // MIB} MiB; more are dropped",
        f"all connections together | {quota.MAX_UNREAD // MIB} MiB;",
        f"taps) at once | {quota.MAX_STREAMS} |",
        f"| messages that wait to be read | {event_bus.MAX_BACKLOG // MIB} MiB;",
    ],
)
def test_a_limit_is_documented_with_its_figure(sentence: str) -> None:
    assert client.MAX_DESCRIPTORS == 1
    assert sentence in words_of("docs/operations.md")


@pytest.mark.parametrize(
    "row",
    [
        f"| descriptors that wait for a client's message, that a client leaves unread | {client.MAX_DESCRIPTORS}, "
        f"{MAX_UNSENT} |",
        f"| segments of an arena | {MAX_SEGMENTS} |",
        f"| subscriptions of a worker, requests of it that are open | {event_bus.MAX_OPEN} each |",
        f"of a request's `corr_id` | {event_bus.MAX_NAME} |",
    ],
)
def test_so_it_is_in_the_protocol(row: str) -> None:
    assert row in words_of("protocol/PROTOCOL.md")


def test_figures_are_whole_units() -> None:
    for figure, unit in (
        (client.READER_FRAME, KIB),
        (client.MAX_UNANSWERED, KIB),
        (client.MAX_STREAM_BACKLOG, MIB),
        (quota.MAX_UNREAD, MIB),
        (event_bus.MAX_BACKLOG, MIB),
    ):
        assert figure % unit == 0
