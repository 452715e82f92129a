"""The words that are read by their place are where the C headers have them, and say what they should."""

from __future__ import annotations

import os
import re
import shutil

import pytest

from chronetix import shm
from chronetix.shm import layout
from tests.shm.sanitize import INCLUDE, compile_c, run

PLACES = {
    "EPOCH": "struct chx_header, epoch",
    "BASE_SEQ": "struct chx_header, base_seq",
    "SLOTS_LOG2": "struct chx_header, slots_log2",
    "CREDITS": "struct chx_header, credits",
    "POLICY": "struct chx_header, policy",
    "RING_OLDEST": "struct chx_ring, oldest",
    "RING_DESC": "struct chx_ring, desc",
    "CREDIT_RETURNED": "struct chx_credit, returned",
    "CREDIT_NEXT": "struct chx_credit, stats.next",
    "CREDIT_STAMP": "struct chx_credit, stamp",
}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_every_place_is_that_of_the_c_headers(tmp_path):
    lines = [f'    printf("{name} %zu\\n", offsetof({place}));' for name, place in PLACES.items()]
    lines += [f'    printf("{kind} %zu\\n", offsetof(struct chx_{kind}, closed));' for kind in ("ring", "credit")]
    source = tmp_path / "places.c"
    text = ["#include <stddef.h>", "#include <stdio.h>", "#include <chronetix/abi.h>", "int main(void) {", *lines]
    source.write_text("\n".join([*text, "    return 0;", "}", ""]))
    compile_c(["gcc", "-std=c11", "-D_GNU_SOURCE", f"-I{INCLUDE}", source, "-o", tmp_path / "places"])
    found = {name: int(place) for name, place in re.findall(r"(\w+) (\d+)\n", run(tmp_path / "places"))}
    assert (found.pop("ring"), found.pop("credit")) == (layout.CLOSED, layout.CLOSED)
    assert found == {name: getattr(layout, name) for name in PLACES}


def test_a_stage_says_which_it_is_and_where_it_begins():
    arena = shm.Arena(1 << 20)
    producer = shm.Producer(arena, "r", epoch=3, base_seq=17)
    consumer = shm.Consumer("r", epoch=4, base_seq=18)
    assert (layout.epoch(producer.fd), layout.base_seq(producer.fd)) == (3, 17)
    assert (layout.epoch(consumer.fd), layout.base_seq(consumer.fd)) == (4, 18)


def test_whoever_closes_its_end_says_so(route):
    ends = (*route.producers, *route.consumers)
    assert [layout.closed(end.fd) for end in ends] == [False, False]
    for end in ends:
        end.close()
    assert [layout.closed(end.fd) for end in ends] == [True, True]


def test_what_was_given_back_is_said_frame_by_frame(make_route):
    route = make_route(credits=2)
    (consumer,) = route.consumers
    before = layout.given_back(consumer.fd)
    route.outlet.send(b"one")
    route.outlet.send(b"two")
    assert route.drain() == [b"one", b"two"]
    after = layout.given_back(consumer.fd)
    assert before == (0,) * len(after)
    assert after[0] == 2
    assert sorted(after[1:], reverse=True)[:2] == [2, 1]


def test_a_descriptor_that_has_less_is_refused():
    fd = os.memfd_create("short")
    try:
        os.write(fd, bytes(20))
        with pytest.raises(ValueError, match="8 bytes at 16 were expected, 4 are there"):
            layout.epoch(fd)
    finally:
        os.close(fd)
