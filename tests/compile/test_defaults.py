"""What the compile step fills in, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chronetixd.compile import Compiled
from chronetixd.compile.artifacts import _short_role

Output = Callable[[str], dict[str, Any]]

PAIR = """
nodes:
  - {id: a, plugin: {kind: python, artifact: "python://m:a"}, io: {outputs: [{}]}}
  - {id: b, plugin: {kind: python, artifact: "python://m:b"}, io: {inputs: [{}]}}
routes:
  - {from: a, to: b}
"""


class TestARoute:
    def test_is_a_data_route_with_64_credits_and_a_mark_at_48(self, output: Output) -> None:
        assert output(PAIR)["routes"] == [
            {
                "from": "a",
                "to": "b",
                "plane": "data",
                "topic": "flow/edge/a-b",
                "port": "dataport/a-b",
                "content_type": "application/json",
                "schema_ver": "v1",
                "buffer": 64,
                "watermark": 48,
            }
        ]

    @pytest.mark.parametrize(
        ("buffer", "watermark"), [(1, 1), (2, 1), (8, 6), (63, 47), (64, 48), (65, 48), (1024, 48)]
    )
    def test_with_its_own_buffer_has_the_mark_at_three_quarters_and_at_most_at_48(
        self, output: Output, buffer: int, watermark: int
    ) -> None:
        route = output(PAIR.replace("to: b}", f"to: b, buffer: {buffer}}}"))["routes"][0]

        assert (route["buffer"], route["watermark"]) == (buffer, watermark)

    def test_on_a_control_topic_is_a_control_route(self, output: Output) -> None:
        route = output(PAIR.replace("to: b}", "to: b, topic: control/x}"))["routes"][0]

        assert route["plane"] == "control"
        assert "buffer" not in route

    def test_takes_the_type_that_its_producer_declares(self, output: Output) -> None:
        text = PAIR.replace("[{}]", "[{content_type: application/arrow+ipc, schema_ver: v2}]")

        route = output(text)["routes"][0]

        assert (route["content_type"], route["schema_ver"]) == ("application/arrow-ipc", "v2")

    def test_keeps_fields_that_nobody_knows(self, output: Output) -> None:
        route = output(PAIR.replace("to: b}", "to: b, colour: {hue: 3}, policy: drop_newest}"))["routes"][0]

        assert route["colour"] == {"hue": 3}
        assert route["policy"] == "drop_newest"


class TestANode:
    def test_keeps_fields_that_nobody_knows(self, output: Output) -> None:
        manifest = output(
            """
            nodes:
              - id: a
                plugin: {kind: process, artifact: ./worker, sandbox: tight}
                restart: {policy: transient}
                resource_claims: {memory_bytes: 1000000}
                params: {count: 3, nested: {list: [1, 2.5, no, ~]}}
            """
        )["manifests"][0]

        assert manifest["artifact"] == {"kind": "Process", "uri": "file://./worker", "sandbox": "tight"}
        assert manifest["restart"] == {"policy": "transient"}
        assert manifest["resource_claims"] == {"memory_bytes": 1000000}
        assert manifest["params"] == {"count": 3, "nested": {"list": [1, 2.5, "no", None]}}

    @pytest.mark.parametrize(
        ("plugin", "kind", "uri"),
        [
            ("{kind: python, artifact: 'python://m.n:f'}", "Python", "python://m.n:f"),
            ("{kind: python, artifact: 'm:f'}", "Python", "python://m:f"),
            ("{kind: python, artifact: 'file:///opt/p.py:f'}", "Python", "python:///opt/p.py:f"),
            ("{artifact: 'python://m:f'}", "Python", "python://m:f"),
            ("{kind: process, artifact: 'file:///bin/true'}", "Process", "file:///bin/true"),
            ("{kind: process, artifact: 'attach://probe'}", "Process", "attach://probe"),
            ("{kind: wasm, artifact: 'file://a.wasm'}", "WasmComponent", "file://a.wasm"),
            ("{artifact: 'file://a.wasm'}", "WasmComponent", "file://a.wasm"),
            ("{kind: Dylib, artifact: 'file://a.so'}", "Dylib", "file://a.so"),
            ("{kind: platform, type: timer-source}", "WasmComponent", "builtin://chronetix/system/timer"),
            ("{type: eventbus-sink}", "WasmComponent", "builtin://chronetix/system/eventbus-sink"),
        ],
    )
    def test_has_the_artifact_that_its_plugin_says(self, output: Output, plugin: str, kind: str, uri: str) -> None:
        manifest = output(f"nodes: [{{id: a, plugin: {plugin}}}]")["manifests"][0]

        assert manifest["artifact"] == {"kind": kind, "uri": uri}

    def test_of_the_platform_is_named_after_its_type(self, output: Output) -> None:
        manifest = output("nodes: [{id: t, plugin: {type: timer-source}}]")["manifests"][0]

        assert {key: manifest[key] for key in ("plugin_id", "category", "role", "origin")} == {
            "plugin_id": "timer-source",
            "category": "System",
            "role": "Timer",
            "origin": "internal",
        }

    @pytest.mark.parametrize(
        ("io", "role"),
        [
            ("{inputs: [{required: false}], outputs: [{}]}", "SourceTransform"),
            ("{inputs: [{required: false}]}", "Sink"),
            ("{outputs: [{}]}", "Source"),
        ],
    )
    def test_has_the_role_that_its_io_shows(self, output: Output, io: str, role: str) -> None:
        manifest = output(f"nodes: [{{id: a, plugin: {{artifact: 'python://m:f'}}, io: {io}}}]")["manifests"][0]

        assert manifest["role"] == role

    def test_without_io_has_the_role_that_its_routes_show(self, output: Output) -> None:
        text = """
            nodes: [&n {id: a, plugin: {artifact: "python://m:f"}}, {<<: *n, id: b}, {<<: *n, id: c}]
            routes: [{from: a, to: b}, {from: b, to: c}]
        """

        assert [m["role"] for m in output(text)["manifests"]] == ["Source", "SourceTransform", "Sink"]

    def test_gets_its_timers_and_its_bus_bindings(self, output: Output) -> None:
        manifest = output(
            """
            nodes:
              - id: a
                plugin: {artifact: "python://m:f"}
                bindings:
                  timer: [{id: t, schedule: {rate_hz: 2}}]
                  bus:
                    subscriptions: [{pattern: a/b}]
                    publications: [{topic: c/d, codec: cbor}]
                bus: {subscribe: {pattern: e/f, codec: cbor}}
            """
        )["manifests"][0]

        assert manifest["timers"] == [{"id": "t", "schedule": {"rate_hz": 2}}]
        assert manifest["bus_subscriptions"] == [
            {"delivery": "at_most_once", "codec": "json", "pattern": "a/b"},
            {"delivery": "at_most_once", "codec": "cbor", "pattern": "e/f"},
        ]
        assert manifest["bus_publications"] == [{"codec": "cbor", "topic": "c/d"}]


class TestDeadlineAndPriority:
    CHAIN = """
        {defaults}
        nodes:
          - {{id: a, plugin: {{artifact: "python://m:f"}}, qos: {{{first}}}}}
          - {{id: b, plugin: {{artifact: "python://m:f"}}, qos: {{{second}}}}}
          - {{id: c, plugin: {{artifact: "python://m:f"}}}}
          - {{id: d, plugin: {{artifact: "python://m:f"}}}}
        routes: [{{from: a, to: c}}, {{from: b, to: c}}, {{from: c, to: d}}]
    """

    def qos(self, output: Output, **parts: str) -> dict[str, Any]:
        given = {"defaults": "", "first": "", "second": "", **parts}
        return {m["node_id"]: m["qos"] for m in output(self.CHAIN.format(**given))["manifests"]}

    def test_are_none_and_4_when_nobody_says(self, output: Output) -> None:
        assert self.qos(output)["d"] == {"priority": 4}

    def test_are_the_flows_defaults(self, output: Output) -> None:
        found = self.qos(output, defaults="defaults: {deadline_ns: 7, priority: 2}", first="priority: 6")

        assert found["a"] == {"deadline_ns": 7, "priority": 6}
        assert found["d"] == {"deadline_ns": 7, "priority": 2}

    def test_come_from_upstream_the_tightest_of_several(self, output: Output) -> None:
        found = self.qos(output, first="deadline_ns: 9, priority: 1", second="deadline_ns: 5")

        assert found["c"] == found["d"] == {"deadline_ns": 5, "priority": 1}

    def test_come_over_control_routes_too_even_around_a_cycle(self, output: Output) -> None:
        found = output(
            """
            nodes:
              - {id: a, plugin: {type: timer-source}}
              - {id: b, plugin: {artifact: "python://m:f"}}
              - {id: c, plugin: {artifact: "python://m:f"}}
            routes:
              - {from: a, to: b, plane: control}
              - {from: b, to: c, plane: control}
              - {from: c, to: b, plane: control}
            """
        )["manifests"]

        assert [m["qos"] for m in found] == [{"deadline_ns": 1_000_000, "priority": 6}] * 3


class TestTheShortForm:
    TEXT = """
        name: short
        nodes:
          - {id: read, kind: source, impl_kind: python, entry: "m:read", qos: high, priority: 6, deadline_ns: 5}
          - {id: tell, kind: sink, impl_kind: process, entry: ./tell}
          - {id: tick, kind: timer}
        edges:
          - {from: read, to: tell, channel: stream, label: raw frames}
          - {from: tick, to: read, channel: event-bus, label: control/timer/read}
          - {from: read, to: tell, channel: blob-ref}
    """

    def test_becomes_manifests(self, output: Output) -> None:
        read, tell, tick = output(self.TEXT)["manifests"]

        assert read["artifact"] == {"kind": "Python", "uri": "python://m:read"}
        assert read["qos"] == {"qos": "high", "priority": 6, "deadline_ns": 5}
        assert (read["role"], tell["role"], tick["role"]) == ("Source", "Sink", "Timer")
        assert tell["artifact"]["uri"] == "file://./tell"
        assert tick["plugin_id"] == "timer-source"
        assert not {"kind", "entry", "impl_kind", "priority"} & read.keys()

    def test_becomes_routes_that_carry_cbor(self, output: Output) -> None:
        stream, event, blob = output(self.TEXT)["routes"]

        assert stream["port"] == "dataport/read-tell"
        assert {route["content_type"] for route in (stream, event, blob)} == {"application/cbor"}
        assert [route["plane"] for route in (stream, event, blob)] == ["data", "control", "data"]
        assert event["topic"] == "control/timer/read"
        assert (stream["label"], blob["channel"]) == ("raw frames", "blob-ref")

    def test_keeps_the_flows_other_fields(self, output: Output) -> None:
        assert output(self.TEXT)["name"] == "short"


def test_schemas_are_the_union_without_duplicates(output: Output) -> None:
    text = """
        schemas: [{content_type: application/cbor, schema_ver: v9, schema_ref: "registry://given@v9", owner: us}]
        nodes:
          - id: a
            plugin: {artifact: "python://m:f"}
            io: {outputs: [{schema_ref: "registry://r@v1"}, {schema_ver: v2}]}
          - {id: b, plugin: {artifact: "python://m:f"}, io: {inputs: [{}]}}
        routes: [{from: a, to: b}]
    """

    assert output(text)["schemas"] == [
        {"content_type": "application/cbor", "schema_ver": "v9", "schema_ref": "registry://given@v9", "owner": "us"},
        {"content_type": "application/json", "schema_ver": "v1", "schema_ref": "registry://r@v1"},
        {"content_type": "application/json", "schema_ver": "v2", "schema_ref": "registry://schemas/json@v2"},
    ]


def test_a_misspelt_field_is_passed_on_with_a_warning(compiled: Callable[[str], Compiled]) -> None:
    result = compiled("nodes:\n  - id: a\n    plugin: {artifact: 'python://m:f'}\n    parms: {n: 1}\n")

    (warning,) = result.warnings
    assert (warning.line, warning.column) == (4, 5)
    assert warning.suggestion == 'did you mean "params"?'
    assert result.output["manifests"][0]["parms"] == {"n": 1}


def test_a_path_of_the_output_is_found_in_the_text(compiled: Callable[[str], Compiled]) -> None:
    result = compiled(PAIR)

    assert result.locate("routes[0].to").line == 6
    assert result.locate("manifests[1].artifact.uri").line == 4
    assert result.locate("manifests[1].artifact.uri").column > result.locate("manifests[1]").column
    assert result.locate("nowhere[7].at.all").line == 2


@pytest.mark.parametrize(
    ("kind", "role"),
    [("source", "Source"), ("Map", "Transform"), ("timer", "Timer"), ("Judge", "Judge"), ("timer-source", "")],
)
def test_the_short_form_s_kind_is_a_role_or_names_what_the_platform_has(kind: str, role: str) -> None:
    assert _short_role(kind) == role
