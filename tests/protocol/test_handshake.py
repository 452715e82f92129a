"""Hello and welcome: the whole table, and what a refusal says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol.errors import ProtocolError, RemoteError
from chronetix.protocol.handshake import NEXT, HandshakeEvent, Phase, advance, answer, concluded, event_of
from chronetix.protocol.messages import MAX_FRAME, Call, Failure, Hello, Ready, Welcome, WireMessage

HELLO = Hello(protocol=[1], role="client")
WELCOME = Welcome(protocol=1, daemon="chronetixd")
FAILURE = Failure(code=1, name="x", message="y")
ONE_OF_EACH = {
    HandshakeEvent.HELLO: HELLO,
    HandshakeEvent.WELCOME: WELCOME,
    HandshakeEvent.FAILURE: FAILURE,
    HandshakeEvent.OTHER: Call(id=1, verb="list"),
}
LEGAL = {
    (Phase.HELLO, HandshakeEvent.HELLO): Phase.OPEN,
    (Phase.WELCOME, HandshakeEvent.WELCOME): Phase.OPEN,
    (Phase.WELCOME, HandshakeEvent.FAILURE): Phase.REFUSED,
    (Phase.OPEN, HandshakeEvent.FAILURE): Phase.OPEN,
    (Phase.OPEN, HandshakeEvent.OTHER): Phase.OPEN,
}


class TestTable:
    def test_every_cell_is_filled_in(self) -> None:
        assert set(NEXT) == {(phase, event) for phase in Phase for event in HandshakeEvent}

    @pytest.mark.parametrize("phase", Phase)
    @pytest.mark.parametrize("event", HandshakeEvent)
    def test_a_message_leads_on_or_may_not_come(self, phase: Phase, event: HandshakeEvent) -> None:
        message = ONE_OF_EACH[event]
        if (phase, event) in LEGAL:
            assert advance(phase, message) is LEGAL[phase, event]
        else:
            with pytest.raises(ProtocolError) as caught:
                advance(phase, message)
            assert caught.value.name == "unexpected-message"

    @pytest.mark.parametrize("event", HandshakeEvent)
    def test_messages_are_told_apart(self, event: HandshakeEvent) -> None:
        assert event_of(ONE_OF_EACH[event]) is event


class TestAnswer:
    def test_the_highest_common_version_is_chosen(self) -> None:
        hello = Hello(protocol=[9, 2, 3, 1], role="client")
        assert answer(hello, daemon="d", supported=(3, 2, 1)) == Welcome(protocol=3, daemon="d")

    def test_a_refusal_names_the_versions_that_would_do(self) -> None:
        refusal = answer(Hello(protocol=[7, 8], role="client"), daemon="d", supported=(2, 1))
        assert isinstance(refusal, Failure)
        assert refusal.name == "version-unsupported"
        assert refusal.details == {"offered": [7, 8], "supported": [2, 1]}
        assert "7, 8" in refusal.message
        assert "2, 1" in refusal.message
        assert refusal.hint

    def test_a_hello_without_versions_is_refused(self) -> None:
        assert isinstance(answer(Hello(protocol=[], role="client"), daemon="d"), Failure)

    def test_a_refusal_repeats_only_some_of_many_versions(self) -> None:
        refusal = answer(Hello(protocol=list(range(2, 100_000)), role="client"), daemon="d")
        assert isinstance(refusal, Failure)
        assert len(refusal.details["offered"]) == 16

    def test_a_role_that_may_not_connect_here_is_refused(self) -> None:
        refusal = answer(Hello(protocol=[1], role="worker"), daemon="d", roles={"client"})
        assert isinstance(refusal, Failure)
        assert refusal.name == "role-not-accepted"
        assert refusal.details["accepted"] == ["client"]

    def test_only_features_that_both_have_are_named(self) -> None:
        hello = Hello(protocol=[1], role="client", features=["b", "x", "a"])
        welcome = answer(hello, daemon="d", features=("a", "b", "c"), max_frame=100)
        assert welcome == Welcome(protocol=1, daemon="d", features=["a", "b"], max_frame=100)

    @given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5), min_size=1))
    def test_a_welcome_is_given_exactly_when_there_is_a_common_version(self, ours: Any, theirs: Any) -> None:
        reply = answer(Hello(protocol=theirs, role="client"), daemon="d", supported=ours)
        assert isinstance(reply, Welcome) == bool(set(ours) & set(theirs))


class TestConcluded:
    def test_a_welcome_is_taken(self) -> None:
        assert concluded(HELLO, WELCOME) is WELCOME
        assert WELCOME.max_frame == MAX_FRAME

    def test_a_refusal_is_raised_as_what_it_says(self) -> None:
        refusal = answer(Hello(protocol=[7], role="client"), daemon="d")
        with pytest.raises(RemoteError) as caught:
            concluded(Hello(protocol=[7], role="client"), refusal)
        assert caught.value.name == "version-unsupported"
        assert caught.value.details["supported"] == [1]

    def test_a_version_that_was_not_offered_is_the_daemons_fault(self) -> None:
        with pytest.raises(ProtocolError, match="version 2, offered were"):
            concluded(HELLO, Welcome(protocol=2, daemon="d"))

    @pytest.mark.parametrize("message", [HELLO, Ready()])
    def test_anything_else_is_the_daemons_fault(self, message: WireMessage) -> None:
        with pytest.raises(ProtocolError, match="before the welcome"):
            concluded(HELLO, message)
