"""A loan: filled in place, committed once or given back."""

from __future__ import annotations

import numpy as np
import pytest

from chronetix import shm


def test_a_loan_is_filled_in_place_and_committed(route):
    loan = route.outlet.loan(16)
    assert len(loan) == 16
    np.frombuffer(loan, "<i8")[:] = (1, 2)
    assert route.inlet.take(0) is None
    assert loan.commit(schema=1, deadline_ns=2, trace=3, input_seq=4) == 0
    frame = route.take()
    assert frame.numpy("<i8").tolist() == [1, 2]
    assert (frame.schema, frame.deadline_ns, frame.trace, frame.input_seq) == (1, 2, 3, 4)


def test_leaving_the_block_commits(route):
    with route.outlet.loan(3) as loan:
        memoryview(loan)[:] = b"abc"
    assert bytes(route.take()) == b"abc"


def test_an_exception_in_the_block_cancels(route):
    with pytest.raises(RuntimeError, match="mine"), route.outlet.loan(3):
        raise RuntimeError("mine")
    assert route.inlet.take(0) is None
    assert route.producer.credits == 8
    assert route.arena.used == 0


def test_leaving_the_block_after_a_commit_does_nothing(route):
    with route.outlet.loan(10) as loan:
        memoryview(loan)[:2] = b"ab"
        loan.commit(2)
    assert route.drain() == [b"ab"]


def test_a_loan_that_is_dropped_has_cancelled_itself(route):
    loan = route.outlet.loan(100)
    assert route.producer.credits == 7
    del loan
    assert route.producer.credits == 8
    assert route.arena.used == 0


def test_less_than_was_lent_can_be_committed_but_not_more(route):
    loan = route.outlet.loan(10)
    with pytest.raises(ValueError, match="has 10 bytes, not 11"):
        loan.commit(11)
    loan.commit(0)
    assert len(route.take()) == 0


@pytest.mark.parametrize("end", ["commit", "cancel"])
def test_a_loan_ends_once(route, end):
    loan = route.outlet.loan(4)
    getattr(loan, end)()
    with pytest.raises(ValueError, match="already"):
        loan.commit()
    with pytest.raises(ValueError, match="already"):
        memoryview(loan)
    loan.cancel()


def test_a_loan_with_a_view_cannot_be_committed_until_the_view_is_gone(route):
    loan = route.outlet.loan(4)
    view = memoryview(loan)
    with pytest.raises(BufferError, match="1 view"):
        loan.commit()
    view.release()
    loan.commit()
    assert len(route.take()) == 4


def test_a_cancelled_loan_keeps_its_memory_while_a_view_is_held(route):
    loan = route.outlet.loan(4)
    view = memoryview(loan)
    loan.cancel()
    assert route.producer.credits == 8
    assert route.arena.used == 64
    view[:] = b"mine"
    view.release()
    assert route.arena.used == 0


def test_several_loans_may_be_open_and_each_holds_a_credit(make_route):
    route = make_route(credits=3)
    loans = [route.outlet.loan(8) for _ in range(3)]
    assert route.producer.credits == 0
    with pytest.raises(shm.WouldBlock, match="all 3 credits"):
        route.outlet.send(b"", 0)
    for i in (2, 0, 1):
        memoryview(loans[i])[:1] = b"%d" % i
        loans[i].commit(1)
    assert route.drain() == [b"2", b"0", b"1"]


def test_a_loan_on_a_route_that_is_closed_meanwhile_is_not_sent(route):
    loan = route.outlet.loan(8)
    route.producer.close()
    with pytest.raises(shm.RouteClosed):
        loan.commit()
    assert route.arena.used == 0
    assert route.inlet.take(0) is None
    assert route.inlet.ended


def test_an_arena_closed_under_a_loan_lives_until_the_loan_ends(route):
    loan = route.outlet.loan(8)
    route.arena.close()
    memoryview(loan)[:] = b"12345678"
    loan.commit()
    assert bytes(route.take()) == b"12345678"
    with pytest.raises(ValueError, match="arena is closed"):
        route.outlet.send(b"")


@pytest.mark.parametrize("length", [-1, 1 << 63, "x"])
def test_a_senseless_length_is_refused(route, length):
    with pytest.raises((ValueError, OverflowError, TypeError)):
        route.outlet.loan(length)
