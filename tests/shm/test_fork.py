"""A forked child inherits the objects but owns none of them: it writes nothing, rings nobody and says so."""

from __future__ import annotations

import os

import pytest

import shm


def in_child(run) -> None:
    """Run in a forked child; its exit says whether it passed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0


def test_a_child_can_use_nothing_of_its_parent(route):
    def child():
        for call in (
            lambda: route.outlet.send(b""),
            lambda: route.outlet.loan(1),
            route.outlet.wait,
            route.inlet.take,
            route.inlet.arm,
            route.bell.wait,
            lambda: route.arena.confirm(0),
            lambda: shm.Producer(route.arena, "new"),
        ):
            with pytest.raises(RuntimeError, match=r"belongs to the process that made it: make a new one after fork"):
                call()

    in_child(child)


def test_what_a_child_drops_is_not_returned_closed_or_rung(make_route):
    route = make_route()
    route.outlet.send(b"held")
    route.outlet.send(b"waiting")
    held = {"frame": route.take(), "loan": route.outlet.loan(10)}
    assert bytes(held["frame"]) == b"held"
    objects = {"route": route}

    def child():
        assert bytes(held["frame"]) == b"held", "what it inherited it may read"
        held["frame"].release()
        held.clear()
        objects["route"].producer.close()
        objects["route"].consumer.close()
        objects.clear()

    in_child(child)
    seen = route.view()
    assert (seen["returned"], seen["closed"], seen["detached"]) == (0, False, False)
    assert not route.bell.clear()
    assert not route.far_bell.clear()
    assert bytes(route.take()) == b"waiting"
    assert route.producer.credits == 6
    held.clear()


def test_a_child_makes_objects_of_its_own(make_route):
    outer = make_route()

    def child():
        route = make_route()
        route.outlet.send(b"mine")
        assert bytes(route.take()) == b"mine"
        with pytest.raises(RuntimeError, match="belongs to the process"):
            outer.outlet.send(b"")

        def grandchild():
            with pytest.raises(RuntimeError, match="belongs to the process"):
                route.outlet.send(b"")

        in_child(grandchild)

    in_child(child)
    outer.outlet.send(b"still mine")
    assert outer.drain() == [b"still mine"]
