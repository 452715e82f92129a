"""PROTOCOL.md and protocol.cddl say what the code does."""

from __future__ import annotations

import json
import re
import types
import typing
from importlib import resources
from typing import Annotated, Any, Literal

import msgspec
import pytest

from chronetix.protocol import cbor, descriptors, messages
from chronetix.protocol.errors import CATALOGUE
from chronetix.protocol.framing import message_types, type_of
from chronetix.protocol.handshake import NEXT, HandshakeEvent, Phase
from chronetix.protocol.messages import WireMessage

PROTOCOL = resources.files("protocol").joinpath("PROTOCOL.md").read_text("utf-8")
CDDL = resources.files("protocol").joinpath("protocol.cddl").read_text("utf-8")
STRUCTS = [
    value
    for value in vars(messages).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value not in (msgspec.Struct, WireMessage)
]
MESSAGES = [struct for struct in STRUCTS if issubclass(struct, WireMessage)]
UNIONS = ("ClientMessage", "WorkerMessage", "ToClient", "ToWorker", "LauncherMessage", "ToLauncher")


def rule_name(name: str) -> str:
    """A struct's or union's name as the schema spells it."""
    return re.sub(r"(?<!^)([A-Z])", r"-\1", name).lower()


def in_cddl(hint: Any) -> str:
    """A field's type as the schema writes it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return {messages.Count: "count", messages.Priority: "priority"}[hint]
    if origin is Literal:
        return " / ".join(f'"{choice}"' for choice in args)
    if origin is list:
        return f"[* {in_cddl(args[0])}]"
    if origin is dict:
        return "free-map" if args[1] is Any else f"{{ * tstr => {in_cddl(args[1])} }}"
    if origin in (typing.Union, types.UnionType):
        return " / ".join(map(in_cddl, args))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return rule_name(hint.__name__)
    return {str: "tstr", bool: "bool", bytes: "bstr", type(None): "null", Any: "value"}[hint]


def with_default(kind: str, field: msgspec.structs.FieldInfo) -> str:
    """A type, and what it means that the field is left out, which neither side ever sends."""
    if field.default is msgspec.NODEFAULT:
        assert field.default_factory in (list, dict, tuple), f"the schema cannot say what {field.name} is without one"
        return kind
    nothing = (
        None if kind == "value" or kind.endswith(" / null") else {"tstr": "", "bool": False, "bstr": b""}.get(kind, 0)
    )
    if field.default == nothing and type(field.default) is type(nothing):
        return kind
    return f"{f'({kind})' if ' / ' in kind else kind} .default {json.dumps(field.default)}"


def rules() -> dict[str, str]:
    """Every rule of the schema by name, its text on one line."""
    text = "\n".join(line.split(";")[0] for line in CDDL.splitlines())
    return {
        name: " ".join(body.split())
        for name, body in re.findall(r"^([a-z-]+) =\s+(.*?)(?=^[a-z-]+ =|\Z)", text, re.DOTALL | re.MULTILINE)
    }


def words(body: str) -> set[str]:
    """The names of rules that a rule's text may refer to: not its field names, nothing in quotes."""
    return set(re.findall(r"\b[a-z]+(?:-[a-z]+)*\b(?!:)", re.sub(r'"[^"]*"', "", body)))


def tables() -> list[list[str]]:
    """The cells of every table row in the document, without code marks."""
    rows = [line for line in PROTOCOL.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


class TestSchema:
    @pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
    def test_a_struct_is_in_it_field_by_field(self, struct: type[msgspec.Struct]) -> None:
        hints = typing.get_type_hints(struct, include_extras=True)
        lines = [f'type: "{type_of(struct)}"'] if issubclass(struct, WireMessage) else []
        for field in msgspec.structs.fields(struct):
            required = field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
            kind = in_cddl(hints[field.name])
            lines.append(f"{field.name}: {kind}" if required else f"? {field.name}: {with_default(kind, field)}")
        assert rules()[rule_name(struct.__name__)] == "{ " + ", ".join([*lines, "extension"]) + ", }"

    @pytest.mark.parametrize("union", UNIONS)
    def test_a_union_is_in_it_member_by_member(self, union: str) -> None:
        members = message_types(getattr(messages, union)).values()
        assert rules()[rule_name(union)] == " / ".join(rule_name(member.__name__) for member in members)

    def test_it_has_no_rule_that_nothing_uses(self) -> None:
        known = rules()
        used = {word for body in known.values() for word in words(body)}
        assert set(known) - used == {"message", "envelope"}


class TestDocument:
    def test_its_table_of_errors_is_the_catalogue(self) -> None:
        shown = [row for row in tables() if re.fullmatch(r"\d{4}", row[0])]
        wanted = [
            [str(entry.code), name, entry.message.replace("|", "\\|"), entry.hint.replace("|", "\\|")]
            for name, entry in CATALOGUE.items()
        ]
        assert shown == wanted

    @pytest.mark.parametrize("struct", MESSAGES, ids=type_of)
    def test_every_message_has_a_row_that_names_every_field(self, struct: type[WireMessage]) -> None:
        rows = [" ".join(row) for row in tables() if row[0] == f"`{type_of(struct)}`"]
        fields = struct.__struct_fields__
        assert any(all(f"`{field}`" in row for field in fields) for row in rows)

    @pytest.mark.parametrize("struct", [messages.Port, messages.TimerSpec, messages.InputLink, messages.Envelope])
    def test_every_part_of_a_message_is_told_of(self, struct: type[msgspec.Struct]) -> None:
        for field in struct.__struct_fields__:
            assert re.search(rf"[`{{ ]{field}[`}},]", PROTOCOL)

    def test_it_names_every_message_that_carries_descriptors(self) -> None:
        section = PROTOCOL.split("## Descriptors")[1].split("## Clients")[0]
        told = set(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE))
        assert told == {type_of(struct) for struct in MESSAGES if hasattr(struct, "descriptors")}

    def test_its_handshake_table_is_the_code_s(self) -> None:
        phases = dict(
            zip(("daemon, awaiting a hello", "peer, awaiting the answer", "open", "refused"), Phase, strict=True)
        )
        shown = {phases[row[0]]: row[1:] for row in tables() if row[0] in phases and len(row) == 5}
        assert set(shown) == set(Phase)
        for phase, cells in shown.items():
            for event, cell in zip(HandshakeEvent, cells, strict=True):
                following = NEXT[phase, event]
                assert cell.split(",")[0] == ("✗" if following is None else following.value)

    def test_its_limits_are_the_code_s(self) -> None:
        limits = {row[0]: row[1].split(" ")[0] for row in tables() if len(row) == 3}
        assert limits["frame"] == str(messages.MAX_FRAME)
        assert limits["lists and maps inside each other"] == str(cbor.MAX_DEPTH)
        assert limits["items in a frame"] == str(cbor.MAX_ITEMS)
        assert limits["descriptors for each sendmsg"] == str(descriptors.MAX_PER_SENDMSG)
        assert limits["descriptors that wait"] == str(descriptors.MAX_WAITING)

    def test_its_table_of_defaults_is_that_of_the_messages(self) -> None:
        section = PROTOCOL.split("### Defaults")[1].split("### ")[0]
        shown = set(re.findall(r"^\| (\S.*?) \| `(\w+)` \| (.+) \|$", section, re.MULTILINE))
        wanted = set()
        for struct in STRUCTS:
            message = issubclass(struct, WireMessage)
            name = f"`{type_of(struct)}`" if message else rule_name(struct.__name__).replace("-", " ")
            wanted |= {
                (name, field.name, json.dumps(field.default))
                for field in msgspec.structs.fields(struct)
                if field.default is not msgspec.NODEFAULT and field.default
            }
        assert shown == wanted

    def test_its_table_of_features_is_the_code_s(self) -> None:
        section = PROTOCOL.split("### Features")[1].split("### ")[0]
        assert set(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)) == set(messages.WORKER_FEATURES)

    def test_its_profiles_name_messages_that_there_are(self) -> None:
        section = PROTOCOL.split("### Profiles")[1].split("### ")[0]
        named = {
            name for row in re.findall(r"^\| .*$", section, re.MULTILINE) for name in re.findall(r"`([a-z-]+)`", row)
        }
        assert named - {type_of(struct) for struct in MESSAGES} == {"to-worker"}

    def test_its_links_lead_somewhere(self) -> None:
        anchors = {title.lower().replace(" ", "-") for title in re.findall(r"^###? (.*)$", PROTOCOL, re.MULTILINE)}
        assert set(re.findall(r"\]\(#([a-z-]+)\)", PROTOCOL)) <= anchors

    def test_the_examples_of_the_cbor_rules_are_refused(self) -> None:
        section = PROTOCOL.split("## CBOR")[1].split("## Handshake")[0]
        examples = re.findall(r"`((?:[0-9a-f]{2,} ?)+)`", section)
        assert len(examples) >= 6
        for example in examples:
            with pytest.raises(cbor.CborError):
                cbor.loads(bytes.fromhex(example))
