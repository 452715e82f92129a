"""The catalogue and the exceptions made from it."""

from __future__ import annotations

import string
from collections import Counter

import pytest

from chronetix.protocol.errors import (
    CATALOGUE,
    ChronetixError,
    Entry,
    LocalError,
    ProtocolError,
    RemoteError,
    error,
    from_failure,
)
from chronetix.protocol.framing import MessageDecoder, encode
from chronetix.protocol.messages import Failure, ToClient

ENTRIES = list(CATALOGUE.values())


def fields(template: str) -> list[str | None]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


class TestCatalogue:
    def test_codes_and_names_are_unique_and_in_order(self) -> None:
        codes = [entry.code for entry in ENTRIES]
        assert codes == sorted(set(codes))
        assert not [name for name, count in Counter(entry.name for entry in ENTRIES).items() if count > 1]

    @pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
    def test_an_entry_says_what_happened_and_what_to_do(self, entry: Entry) -> None:
        assert 1000 <= entry.code < 7000
        assert set(entry.name) <= set(string.ascii_lowercase + string.digits + "-")
        assert len(entry.message) > 10
        assert len(entry.hint) > 10
        assert entry.hint.rstrip(")}").endswith((".", "first", "history"))
        assert not entry.message.endswith(".")

    @pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
    def test_templates_hold_plain_names_only(self, entry: Entry) -> None:
        for name in fields(entry.message) + fields(entry.hint):
            assert name is not None
            assert name.isidentifier()


class TestError:
    def test_details_fill_in_message_and_hint(self) -> None:
        reason = error("flow-exists", flow="f", state="running")
        assert reason.message == "a flow with the name f is there already and is running"
        assert "chronetixctl stop f" in reason.hint
        assert str(reason) == f"{reason.message} [flow-exists, 3002]"
        assert reason.details == {"flow": "f", "state": "running"}

    def test_lists_are_shown_with_commas_and_nothing_as_none(self) -> None:
        refusal = error("version-unsupported", offered=[1, 2], supported=[])
        assert "versions 1, 2 is" in refusal.message
        assert "none" in refusal.message + refusal.hint

    def test_what_there_is_nothing_to_say_about_is_left_out(self) -> None:
        assert error("unknown-verb", verb="x", nearest=None).hint == "PROTOCOL.md lists them all."
        assert error("unknown-verb", verb="x", nearest="y").hint.startswith("Nearest verb: y. PROTOCOL.md")
        assert error("flow-not-found", flow="x", nearest=None).hint.endswith("the flows of this daemon.")

    def test_a_detail_left_out_shows_itself(self) -> None:
        assert error("flow-not-found").message == "there is no flow <flow?>"

    def test_a_detail_is_never_taken_for_a_template(self) -> None:
        assert error("flow-not-found", flow="{nearest} {0}").message == "there is no flow {nearest} {0}"

    def test_a_detail_cannot_disturb_a_terminal_but_keeps_its_lines(self) -> None:
        shown = error("flow-failed", flow="\x1b[31m", reason="one\n\ttwo\x07").message
        assert shown == "the flow \N{REPLACEMENT CHARACTER}[31m failed: one\n\ttwo\N{REPLACEMENT CHARACTER}"

    def test_a_detail_without_end_is_cut(self) -> None:
        assert len(error("flow-failed", flow="f", reason="x" * 100_000).message) < 5000

    def test_an_unknown_name_is_a_lookup_error(self) -> None:
        with pytest.raises(LookupError, match="no-such-error"):
            error("no-such-error")

    @pytest.mark.parametrize(
        ("name", "kind"),
        [("frame-too-large", ProtocolError), ("frame-not-sendable", LocalError), ("flow-invalid", ChronetixError)],
    )
    def test_the_class_says_whose_fault_it_is(self, name: str, kind: type[ChronetixError]) -> None:
        assert type(error(name)) is kind


class TestFailure:
    def test_an_error_crosses_a_connection_as_itself(self) -> None:
        reason = error("flow-invalid", flow="f", count=1, first="x", problems=[{"path": "routes[0]"}])
        decoder: MessageDecoder[Failure] = MessageDecoder(ToClient)
        [failure] = decoder.feed(encode(reason.failure(7)))
        assert failure.id == 7
        arrived = from_failure(failure)
        assert isinstance(arrived, RemoteError)
        assert (arrived.code, arrived.name, str(arrived)) == (reason.code, reason.name, str(reason))
        assert (arrived.hint, arrived.details) == (reason.hint, reason.details)

    def test_a_name_that_this_side_does_not_know_is_taken(self) -> None:
        arrived = from_failure(Failure(code=3999, name="from-the-future", message="m"))
        assert (arrived.code, arrived.name, arrived.message) == (3999, "from-the-future", "m")
