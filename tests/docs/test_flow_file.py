"""docs/reference/flow-file.md has every field of a flow, as the code reads it: in the DSL and in the compiled form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

import pytest

from chronetix.protocol.contract import parse, parse_flow, types
from chronetix.protocol.contract.reading import Fields, ProblemCollector
from chronetixd.compile import compile_text, form
from tests.docs.pages import REFERENCE, ROOT, cell, number, prose, shows, table
from tests.docs.sources import described

TYPES = ROOT / "protocol" / "contract" / "types.py"

NODE: dict[str, Any] = {
    "plugin_id": "plugin",
    "artifact": {"kind": "Python", "uri": "python://file.py:object"},
    "io": {"inputs": [{}], "outputs": [{}], "batch_hints": {}},
    "qos": {},
    "restart": {"policy": "temporary"},
    "liveness": {"limit_ms": 100},
    "resource_claims": {},
    "timers": [{"id": "timer", "schedule": {"interval_ms": 1}}],
    "bus_subscriptions": [{"pattern": "topic"}],
    "bus_publications": [{"topic": "topic", "default_envelope": {}}],
}
EVERY_MAP: dict[str, Any] = {
    "manifests": [{**NODE, "node_id": "one"}, {**NODE, "node_id": "two"}],
    "routes": [{"from": "one", "to": "two", "plane": "data"}],
    "schemas": [{}],
}
"""A flow that has each map of the contract, and in it no more than is required."""

SCHEDULE = {"interval_ms": 1, "align_to": "second"}
EVERY_FIELD = {**EVERY_MAP, "manifests": [{**NODE, "timers": [{"id": "timer", "schedule": SCHEDULE}]}]}
"""The same with fields that the reader looks at only if they are given."""

WRITTEN = {"node": "node_id", "source": "from", "target": "to"}
"""Attributes that have another name than their field."""

NO_FIELDS = {"raw", "id of Route"}


class Watched(Fields):
    """Reads as Fields does, and notes for each field what it may be."""

    seen: dict[str, str] = {}
    required: set[str] = set()

    def _note(self, name: str, takes: str, required: bool = False) -> None:
        path = re.sub(r"\[\d+\]", "[]", self.at(name))
        self.seen[path] = self.seen.get(path) or takes
        if required:
            self.required.add(path)

    def get(self, name: str) -> Any:
        self._note(name, "")
        return super().get(name)

    def text(self, name: str, default: str = "") -> str:
        self._note(name, "text")
        return super().text(name, default)

    def required_text(self, name: str) -> str:
        self._note(name, "text", required=True)
        return super().required_text(name)

    def name(self, name: str, *, required: bool = False, blanks: bool = False) -> str:
        within = "without blanks at its ends" if blanks else "without blanks"
        self._note(name, f"name: text {within}, at most 200 characters", required)
        return super().name(name, required=required, blanks=blanks)

    def choice(self, name: str, choices: Sequence[Any], default: Any = None) -> Any:
        self._note(name, "one of " + ", ".join(f"`{each}`" for each in choices), default is None)
        return super().choice(name, choices, default)

    def usual_choice(self, name: str, choices: Sequence[Any], default: Any) -> Any:
        usual = ", ".join(f"`{each}`" for each in choices)
        self._note(name, f"usually one of {usual}; any other text counts as `{default}`, with a warning")
        return super().usual_choice(name, choices, default)

    def integer(self, name: str, low: int, high: int) -> int | None:
        self._note(name, f"integer, {number(low)} to {number(high)}")
        return super().integer(name, low, high)

    def flag(self, name: str) -> bool:
        self._note(name, "true or false")
        return super().flag(name)

    def number(self, name: str, low: float, high: float) -> float | None:
        self._note(name, f"number above {number(low)}, up to {number(high)}")
        return super().number(name, low, high)

    def free_map(self, name: str) -> Mapping[str, Any]:
        self._note(name, "map")
        return super().free_map(name)

    def child(self, name: str) -> Watched:
        self._note(name, "map")
        return super().child(name)

    def items(self, name: str) -> Iterator[Watched]:
        self._note(name, "list of maps")
        return super().items(name)


@dataclass(frozen=True)
class Map:
    """One map of the compiled form: its heading, class, path, and the same map as it was read from EVERY_MAP."""

    heading: str
    kind: type
    path: str
    read: Any


def maps() -> list[Map]:
    """All of them, the flow first."""
    flow = parse_flow(EVERY_MAP).flow
    assert flow is not None
    node = flow.manifests[0]
    at = "manifests[]"
    return [
        Map("Flow", types.Flow, "", flow),
        Map("Node", types.Manifest, at, node),
        Map("Artifact", types.Artifact, f"{at}.artifact", node.artifact),
        Map("Io", types.Io, f"{at}.io", node.io),
        Map("Input or output", types.PortType, f"{at}.io.inputs[]", node.io.inputs[0]),
        Map("Batch hints", types.BatchHints, f"{at}.io.batch_hints", types.BatchHints()),
        Map("Quality of service", types.Qos, f"{at}.qos", node.qos),
        Map("Restart", types.Restart, f"{at}.restart", node.restart),
        Map("Liveness", types.Liveness, f"{at}.liveness", node.liveness),
        Map("Resource claims", types.ResourceClaims, f"{at}.resource_claims", node.resource_claims),
        Map("Timer", types.Timer, f"{at}.timers[]", node.timers[0]),
        Map("Schedule", types.Schedule, f"{at}.timers[].schedule", node.timers[0].schedule),
        Map("Subscription", types.Subscription, f"{at}.bus_subscriptions[]", node.bus_subscriptions[0]),
        Map("Publication", types.Publication, f"{at}.bus_publications[]", node.bus_publications[0]),
        Map("Route", types.Route, "routes[]", flow.routes[0]),
        Map("Schema", types.SchemaDescriptor, "schemas[]", flow.schemas[0]),
    ]


def watched() -> tuple[dict[str, str], set[str]]:
    """What each field may be, by its path, and the paths of those that are required."""
    Watched.seen, Watched.required = {}, set()
    parse._read(Watched(ProblemCollector(), "", EVERY_FIELD), {})
    return Watched.seen, Watched.required


def written(kind: type) -> list[Field[Any]]:
    """The attributes of a class that have a field in the file."""
    return [each for each in fields(kind) if not {each.name, f"{each.name} of {kind.__name__}"} & NO_FIELDS]


def path_of(each: Map, field: Field[Any]) -> str:
    name = WRITTEN.get(field.name, field.name)
    return f"{each.path}.{name}" if each.path else name


SPECIAL = {
    "manifests[].restart": ("text or map", "`temporary`"),
    "manifests[].liveness": ("map", "none"),
    "manifests[].timers[].schedule.start_at": ("text, or integer, 0 to 2^63 - 1", "none"),
    "manifests[].timers[].schedule.interval_ms": ("", "one of the three is required"),
    "manifests[].timers[].schedule.rate_hz": ("", "one of the three is required"),
    "manifests[].timers[].schedule.cron": ("", "one of the three is required"),
    "manifests[].timers[].schedule": ("", "required"),
    "manifests[].timers[].schedule.align_to": ("", "none"),
    "manifests[].user": ("text, or integer ≥ 0", "none"),
    "manifests[].bus_subscriptions[].filter": ("anything", "none"),
    "manifests[].liveness.limit_ms": ("", "required"),
    "manifests[].liveness.period_ms": ("", "half of `limit_ms`"),
    "manifests[].restart.policy": ("", "required in a map"),
    "manifests[].artifact": ("", "required"),
    "manifests": ("", "required"),
    "routes[].watermark": ("", "three quarters of `buffer`"),
    "routes[].policy": ("", "`block`; `drop_newest` for a best-effort producer"),
    "manifests[].node_id": ("", "what the routes call it"),
    "routes[].topic": ("", "none; required on the control plane"),
}
"""What the readers do themselves: (kind, default), each only where the noted one does not say it."""


def default(value: Any) -> str:
    """A value as it is written in a file."""
    match value:
        case None | "":
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case int() | float():
            return f"{value:,.0f}".replace(",", " ")
        case str():
            return f"`{value}`"
        case _:
            return "none"


def compiled_form() -> str:
    seen, required = watched()
    parts = []
    for each in maps():
        meanings = described(TYPES, each.kind.__name__)
        rows = []
        for field in written(each.kind):
            path = path_of(each, field)
            kind, usual = SPECIAL.get(path, ("", ""))
            usual = usual or ("required" if path in required else default(getattr(each.read, field.name)))
            rows.append((f"`{path.rpartition('.')[2]}`", kind or seen[path], usual, meanings.docs()[field.name]))
        about = " ".join(meanings.doc.partition("\n\n")[0].split())
        parts += [f"### {each.heading}", "", prose(f"`{each.path}`: {about}" if each.path else FIRST), ""]
        parts += [table(("field", "type and limits", "default", "meaning"), rows), ""]
    return "\n".join(parts)


FIRST = "The whole document."


def dsl(fields: form.Form) -> str:
    rows = [(f"`{name}`", each.takes, each.default or "none", each.meaning) for name, each in fields.items()]
    return table(("field", "takes", "default", "meaning"), rows)


def test_the_reference_shows_every_field_of_both_forms() -> None:
    shows(
        REFERENCE / "flow-file.md",
        {
            "flow": dsl(form.FLOW),
            "short-node": dsl(form.SHORT_NODE),
            "long-node": dsl(form.LONG_NODE),
            "any-node": dsl(form.ANY_NODE),
            "plugin": dsl(form.PLUGIN),
            "io": dsl(form.IO),
            "bindings": dsl(form.BINDINGS),
            "bound-bus": dsl(form.BOUND_BUS),
            "route": dsl(form.ROUTE),
            "edge": dsl(form.EDGE),
            "compiled-form": compiled_form(),
        },
    )


def test_every_field_that_is_read_is_in_the_types_and_the_other_way_round() -> None:
    seen, _ = watched()
    shown = {path_of(each, field) for each in maps() for field in written(each.kind)}
    envelope = {f"manifests[].bus_publications[].default_envelope.{name}" for name in ("priority", "deadline")}
    outputs = {path for path in seen if path.startswith("manifests[].io.outputs[].")}
    assert set(seen) - envelope - outputs == shown | {path for path in seen if path.startswith("manifests[].env.")}


@pytest.mark.parametrize("each", maps(), ids=lambda each: each.heading)
def test_every_field_has_a_sentence(each: Map) -> None:
    docs = described(TYPES, each.kind.__name__).docs()
    assert [field.name for field in written(each.kind) if not docs[field.name].endswith(".")] == []


@pytest.mark.parametrize("fields", [form.FLOW, form.LONG_NODE, form.SHORT_NODE, form.ANY_NODE, form.ROUTE, form.EDGE])
def test_every_field_of_the_dsl_has_a_sentence(fields: form.Form) -> None:
    assert [name for name, each in fields.items() if not each.meaning.endswith(".")] == []


def test_a_field_that_is_said_to_have_no_effect_is_read_by_no_other_code() -> None:
    """Of the fields whose names mean nothing else."""
    code = "\n".join(
        path.read_text()
        for folder in ("chronetixd", "nodeworker", "chronetixctl", "protocol")
        for path in (ROOT / folder).rglob("*.py")
        if "contract" not in path.parts and "compile" not in path.parts
    )
    none = [
        (each.heading, field.name)
        for each in maps()
        for field in written(each.kind)
        if "Has no effect yet" in described(TYPES, each.kind.__name__).docs()[field.name]
    ]
    unmistakable = {"credit_high", "miss_policy", "preferred_bytes", "schema_ref", "default_envelope", "codec"}
    assert unmistakable <= {name for _, name in none}
    assert [name for name in unmistakable if re.search(rf"\.{name}\b|[\"']{name}[\"']", code)] == []


def test_defaults_of_types_are_those_of_the_reader() -> None:
    for each in maps():
        for field in written(each.kind):
            if field.default not in (MISSING, ()) and path_of(each, field) not in SPECIAL:
                assert getattr(each.read, field.name) == field.default, path_of(each, field)


FLOW_OF_BOTH = """
nodes:
  - { id: count, kind: source, impl_kind: python, entry: "python://a.py:f" }
  - { id: total, plugin: { kind: python, artifact: "python://a.py:g" } }
"""


@pytest.mark.parametrize(
    ("edges", "content_type"),
    [
        ("edges: [{ from: count, to: total }]", "application/cbor"),
        ("routes: [{ from: count, to: total }]", "application/json"),
        ("edges: []\nroutes: [{ from: count, to: total }]", "application/json"),
    ],
)
def test_an_edge_has_cbor_by_default_and_a_route_json(edges: str, content_type: str) -> None:
    (route,) = compile_text(FLOW_OF_BOTH + edges, "flow.yaml").output["routes"]
    assert (route["content_type"], route["plane"]) == (content_type, "data")


def test_both_forms_of_a_node_make_the_same_manifest() -> None:
    short = """
        nodes: [{ id: a, kind: source, impl_kind: python, entry: "python://a.py:f", params: { n: 1 } }]
        edges: []
    """
    long = """
        nodes:
          - { id: a, role: Source, plugin: { kind: python, artifact: "python://a.py:f" }, params: { n: 1 } }
        routes: []
    """
    assert compile_text(short, "a.yaml").output["manifests"] == compile_text(long, "b.yaml").output["manifests"]


def test_cells_hold_one_line() -> None:
    assert cell("a |\n    b") == "a \\| b"


def test_defaults_of_the_dsl_are_what_the_compile_step_fills_in() -> None:
    made = compile_text(
        FLOW_OF_BOTH + "routes: [{ from: count, to: total }, { from: total, to: count, topic: control/x }]", "f.yaml"
    )
    data, control = made.output["routes"]
    node = made.output["manifests"][1]
    ends = {"FROM": "count", "TO": "total", "FROM-TO": "count-total"}
    topic = form.ROUTE["topic"].default.partition("`; ")[0].strip("`")
    port = form.ROUTE["port"].default.partition("`;")[0].strip("`")
    assert data["topic"] == topic.replace("FROM-TO", ends["FROM-TO"])
    assert data["port"] == port.replace("FROM-TO", ends["FROM-TO"])
    assert (str(data["buffer"]), data["watermark"]) == (form.ROUTE["buffer"].default, data["buffer"] * 3 // 4)
    assert data["schema_ver"] == "v1"
    assert control["plane"] == "control"
    assert "port" not in control
    assert (node["version"], node["origin"], node["category"]) == ("0.1.0", "external", "Business")
    assert form.LONG_NODE["version"].default == "`0.1.0`"
    assert (node["qos"], made.output["manifests"][0]["qos"]) == ({"priority": 4}, {"priority": 4})
