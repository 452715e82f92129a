"""Reading flows: what is accepted, with which defaults, and what is said about the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from chronetix.protocol.contract import Flow, Problem, Validation, parse_flow
from chronetix.protocol.contract.types import DEFAULT_ARENA

Make = Callable[..., dict[str, Any]]


def flow_of(validation: Validation) -> Flow:
    assert validation.problems == []
    assert validation.flow is not None
    return validation.flow


def only_problem(raw: Any, **options: Any) -> Problem:
    validation = parse_flow(raw, **options)
    assert validation.flow is None
    [problem] = validation.problems
    return problem


def only_warning(raw: Any) -> Problem:
    validation = parse_flow(raw)
    assert validation.flow is not None
    [warning] = validation.warnings
    return warning


class TestTheOrchestratorsOwnOutput:
    def test_it_is_accepted_as_it_is(self, minimal: dict[str, Any]) -> None:
        flow = flow_of(parse_flow(minimal))
        assert [manifest.node for manifest in flow.manifests] == [
            "resource-net",
            "timer-1",
            "http-client",
            "collector-sink",
        ]
        assert [(route.source, route.target) for route in flow.routes] == [
            ("timer-1", "http-client"),
            ("resource-net", "http-client"),
            ("http-client", "collector-sink"),
        ]
        assert [route.id for route in flow.data_routes] == ["dataport/http-collector"]

    def test_endpoints_matched_by_their_role_are_told(self, minimal: dict[str, Any]) -> None:
        warnings = parse_flow(minimal).warnings
        assert [warning.path for warning in warnings] == ["routes[0].from", "routes[1].from"]
        assert '"timer-source"' in warnings[0].message
        assert "node_id" in warnings[0].suggestion

    def test_every_field_is_read(self, minimal: dict[str, Any]) -> None:
        flow = flow_of(parse_flow(minimal))
        resource, timer, client, _ = flow.manifests
        assert resource.io.outputs[0].schema_ref == "registry://schemas/resource/netinfo@v1"
        assert resource.annotations["provides"] == ["ip", "netmask", "gateway", "ports", "media_location"]
        assert resource.features == {"inproc": True, "ipc": True}
        assert (resource.artifact.kind, resource.artifact.uri) == (
            "WasmComponent",
            "builtin://chronetix/resource/netinfo",
        )
        [tick] = timer.timers
        assert (tick.id, tick.schedule.interval_ns, tick.schedule.align_to) == ("tick", 1_000_000_000, "second")
        assert tick.miss_policy == "coalesce"
        assert (client.qos.deadline_ns, client.qos.retry, client.qos.max_inflight) == (5_000_000, 3, 32)
        assert (client.category, client.role, client.origin) == ("Business", "SourceTransform", "external")
        assert flow.schemas[0].schema_ref == "registry://schemas/resource/netinfo@v1"
        assert flow.manifest("timer-1") is timer

    def test_the_raw_maps_are_kept(self, minimal: dict[str, Any]) -> None:
        minimal["x-made-by"] = {"tool": 1}
        minimal["manifests"][0]["x-colour"] = "red"
        flow = flow_of(parse_flow(minimal))
        assert flow.raw is minimal
        assert flow.manifests[0].raw is minimal["manifests"][0]
        assert flow.routes[2].raw is minimal["routes"][2]


class TestDefaults:
    def test_of_a_manifest(self, manifest: Make) -> None:
        [node] = flow_of(parse_flow({"manifests": [manifest("a")]})).manifests
        assert (node.version, node.origin, node.category, node.role) == ("0.1.0", "external", "Business", "")
        assert node.qos.qos == "normal"
        assert node.qos.deadline_ns is None
        assert node.resource_claims.arena_bytes == DEFAULT_ARENA
        assert (node.params, node.timers, node.io.inputs) == ({}, (), ())

    def test_of_a_route(self, manifest: Make, data_route: Make) -> None:
        [route] = flow_of(
            parse_flow({"manifests": [manifest("a"), manifest("b")], "routes": [data_route("a", "b")]})
        ).routes
        assert (route.content_type, route.schema_ver) == ("application/json", "v1")
        assert (route.buffer, route.watermark, route.policy) == (64, 48, "block")
        assert route.id == "a-b"

    @pytest.mark.parametrize(("buffer", "watermark"), [(1, 1), (2, 1), (4, 3), (64, 48), (1000, 48)])
    def test_the_watermark_is_three_quarters_of_the_buffer_and_at_most_48(
        self, manifest: Make, data_route: Make, buffer: int, watermark: int
    ) -> None:
        raw = {"manifests": [manifest("a"), manifest("b")], "routes": [data_route("a", "b", buffer=buffer)]}
        assert flow_of(parse_flow(raw)).routes[0].watermark == watermark

    def test_null_is_as_good_as_absent(self, manifest: Make) -> None:
        raw = {"manifests": [manifest("a", qos=None, io=None, timers=None, version=None)], "routes": None}
        assert flow_of(parse_flow(raw)).manifests[0].version == "0.1.0"

    def test_the_flows_name_is_read(self, manifest: Make) -> None:
        assert flow_of(parse_flow({"name": "f", "manifests": [manifest("a")]})).name == "f"

    def test_a_name_that_is_there_and_empty_is_refused(self, manifest: Make) -> None:
        (problem,) = parse_flow({"name": "", "manifests": [manifest("a")]}).problems
        assert (problem.path, problem.message) == ("name", '"" is no usable name: it is empty')


class TestContentTypes:
    @pytest.mark.parametrize(
        ("written", "read"),
        [
            ("application/arrow+ipc", "application/arrow-ipc"),
            ("application/arrow-ipc", "application/arrow-ipc"),
            ("Application/JSON", "application/json"),
            ("image/png", "image/png"),
        ],
    )
    def test_one_spelling_for_each(self, manifest: Make, data_route: Make, written: str, read: str) -> None:
        routes = [data_route("a", "b", content_type=written)]
        validation = parse_flow({"manifests": [manifest("a"), manifest("b")], "routes": routes})
        assert flow_of(validation).routes[0].content_type == read
        assert validation.warnings == []

    def test_a_misspelt_one_gives_a_warning(self, manifest: Make, data_route: Make) -> None:
        routes = [data_route("a", "b", content_type="aplication/json")]
        warning = only_warning({"manifests": [manifest("a"), manifest("b")], "routes": routes})
        assert warning.path == "routes[0].content_type"
        assert warning.suggestion == 'did you mean "application/json"?'

    def test_what_is_no_media_type_is_refused(self, manifest: Make) -> None:
        problem = only_problem({"manifests": [manifest("a", io={"inputs": [{"content_type": "json"}]})]})
        assert problem.path == "manifests[0].io.inputs[0].content_type"
        assert "application/json" in problem.suggestion


class TestHarmlessValues:
    @pytest.mark.parametrize(
        ("fields", "path", "message", "suggestion"),
        [
            ({"origin": "extern"}, "origin", '"extern" is not known, and is taken for "external"', '"external"'),
            ({"category": "Odd"}, "category", '"Odd" is not known, and is taken for "Business"', "Business, System"),
            ({"qos": {"priority": 8}}, "qos.priority", "8 is above the highest priority, and is taken for 7", "0 to 7"),
            (
                {"bus_publications": [{"topic": "t", "default_envelope": {"priority": 255}}]},
                "bus_publications[0].default_envelope.priority",
                "255 is above",
                "",
            ),
            (
                {"timers": [{"id": "t", "schedule": {"rate_hz": 1}, "priority": 9}]},
                "timers[0].priority",
                "9 is above",
                "",
            ),
            ({"io": {"inputs": [{"schema_ver": 2}]}}, "io.inputs[0].schema_ver", 'taken for "v2"', '"v2"'),
        ],
    )
    def test_of_a_manifest_give_a_warning(
        self, manifest: Make, fields: dict[str, Any], path: str, message: str, suggestion: str
    ) -> None:
        warning = only_warning({"manifests": [manifest("a", **fields)]})
        assert warning.path == f"manifests[0].{path}"
        assert message in warning.message
        assert suggestion in warning.suggestion

    @pytest.mark.parametrize(("buffer", "watermark"), [(64, 65), (8, 9)])
    def test_a_watermark_above_the_buffer_counts_as_the_buffer(
        self, manifest: Make, data_route: Make, buffer: int, watermark: int
    ) -> None:
        routes = [data_route("a", "b", buffer=buffer, watermark=watermark)]
        raw = {"manifests": [manifest("a"), manifest("b")], "routes": routes}
        warning = only_warning(raw)
        assert (warning.path, warning.message) == (
            "routes[0].watermark",
            f"{watermark} is above the buffer, and is taken for {buffer}",
        )
        assert flow_of(parse_flow(raw)).routes[0].watermark == buffer

    def test_on_a_control_route_it_means_nothing(self, manifest: Make, data_route: Make) -> None:
        route = data_route("a", "b", plane="control", topic="t", buffer=4, watermark=9)
        validation = parse_flow({"manifests": [manifest("a"), manifest("b")], "routes": [route]})
        assert (validation.problems, validation.warnings) == ([], [])

    def test_names_of_nodes_may_have_blanks_within(self, manifest: Make, data_route: Make) -> None:
        raw = {"manifests": [manifest("my node"), manifest("b")], "routes": [data_route("my node", "b")]}
        flow = flow_of(parse_flow(raw))
        assert (flow.manifests[0].node, flow.routes[0].id) == ("my node", "my%20node-b")


class TestProblems:
    def test_all_are_reported_at_once(self, minimal: dict[str, Any]) -> None:
        minimal["manifests"][0]["artifact"]["kind"] = "wasm"
        minimal["manifests"][2]["qos"]["priority"] = 256
        minimal["routes"][2].update(plane="dat")
        minimal["routes"][1]["to"] = "http-clent"
        problems = parse_flow(minimal).problems
        assert [str(problem) for problem in problems] == [
            'manifests[0].artifact.kind: "wasm" is not known (did you mean "WasmComponent"?)',
            "manifests[2].qos.priority: 256 is out of range, 0 to 255 would do",
            'routes[2].plane: "dat" is not known (did you mean "data"?)',
            'routes[1].to: there is no node "http-clent" (did you mean "http-client"?)',
        ]

    @pytest.mark.parametrize(
        ("fields", "path", "message", "suggestion"),
        [
            ({"artifact": None}, "artifact", "required", "kind and uri"),
            ({"artifact": {}}, "artifact", "empty", "kind and uri"),
            ({"artifact": {"kind": "Python"}}, "artifact.uri", "required", ""),
            ({"artifact": {"uri": "file://x"}}, "artifact.kind", "required", "WasmComponent"),
            ({"artifact": {"kind": "python", "uri": "x"}}, "artifact.kind", '"python"', '"Python"'),
            ({"artifact": {"kind": "Python", "uri": "pyton://m:o"}}, "artifact.uri", '"pyton"', '"python"'),
            ({"artifact": {"kind": "Python", "uri": "python://"}}, "artifact.uri", "nothing comes after", ""),
            ({"artifact": {"kind": "Process", "uri": "/bin/\0x"}}, "artifact.uri", "zero", ""),
            ({"artifact": "python://m:o"}, "artifact", "must be a map, not the text", ""),
            ({"category": 1}, "category", "must be text, not the number 1", "one of: Business"),
            ({"plugin_id": ""}, "plugin_id", "required", ""),
            ({"node_id": " a"}, "node_id", "blanks", ""),
            ({"node_id": "a\tb"}, "node_id", "blanks", ""),
            (
                {"artifact": {"kind": "WasmComponent", "uri": "wasm://f"}},
                "artifact.uri",
                "fetched",
                "file://plugins/f.wasm",
            ),
            ({"node_id": "a\x1b[2J"}, "node_id", "cannot be printed", ""),
            ({"node_id": "n" * 201}, "node_id", "more than 200", ""),
            ({"qos": {"qos": "real-time"}}, "qos.qos", "not known", '"realtime"'),
            ({"qos": {"priority": True}}, "qos.priority", "must be an integer, not true", ""),
            ({"qos": {"priority": 1.5}}, "qos.priority", "must be an integer, not the number 1.5", ""),
            ({"qos": {"deadline_ns": -1}}, "qos.deadline_ns", "out of range", ""),
            ({"qos": {"credit_low": 3, "credit_high": 2}}, "qos.credit_low", "above credit_high", ""),
            ({"qos": []}, "qos", "must be a map, not a list", ""),
            ({"io": {"inputs": {}}}, "io.inputs", "must be a list, not a map", ""),
            ({"io": {"inputs": [1]}}, "io.inputs[0]", "must be a map, not the number 1", ""),
            ({"io": {"batch_hints": {"preferred_rows": 0}}}, "io.batch_hints.preferred_rows", "out of range", ""),
            ({"resource_claims": {"arena_bytes": 1}}, "resource_claims.arena_bytes", "out of range", ""),
            ({"resource_claims": {"hugepages": 1}}, "resource_claims.hugepages", "true or false", ""),
            ({"timers": [{"schedule": {"rate_hz": 1}}]}, "timers[0].id", "required", ""),
            ({"timers": [{"id": "t"}]}, "timers[0].schedule", "says not when", "interval_ms, rate_hz, cron"),
            ({"timers": [{"id": "t", "schedule": {"rate_hz": 0}}]}, "timers[0].schedule.rate_hz", "range", ""),
            (
                {"timers": [{"id": "t", "schedule": {"interval_ms": math.nan}}]},
                "timers[0].schedule.interval_ms",
                "nan is out of range",
                "",
            ),
            (
                {"timers": [{"id": "t", "schedule": {"interval_ms": 1, "cron": "* * * * *"}}]},
                "timers[0].schedule",
                "interval_ms and cron exclude each other",
                "",
            ),
            (
                {"timers": [{"id": "t", "schedule": {"rate_hz": 1, "align_to": "sec"}}]},
                "timers[0].schedule.align_to",
                "not known",
                '"second"',
            ),
            (
                {"timers": [{"id": "t", "schedule": {"rate_hz": 1}, "miss_policy": "catchup"}]},
                "timers[0].miss_policy",
                "not known",
                '"catch_up"',
            ),
            (
                {"timers": [{"id": "t", "schedule": {"rate_hz": 1}}] * 2},
                "timers[1].id",
                "id of an earlier timer",
                "",
            ),
            ({"bus_subscriptions": [{"pattern": ""}]}, "bus_subscriptions[0].pattern", "required", ""),
            (
                {"bus_subscriptions": [{"pattern": "a", "delivery": "atleastonce"}]},
                "bus_subscriptions[0].delivery",
                "not known",
                '"at_least_once"',
            ),
            ({"bus_publications": [{"topic": "t", "codec": "JSN"}]}, "bus_publications[0].codec", "known", '"json"'),
            ({"params": {"when": object()}}, "params", "object has no place in CBOR", ""),
            ({"params": {1: 2}}, "params", "key must be text", ""),
            ({"params": [1]}, "params", "must be a map, not a list", ""),
        ],
    )
    def test_of_a_manifest(
        self, manifest: Make, fields: dict[str, Any], path: str, message: str, suggestion: str
    ) -> None:
        problem = only_problem({"manifests": [manifest("a", **fields)]})
        assert problem.path == f"manifests[0].{path}"
        assert message in problem.message
        assert suggestion in problem.suggestion

    @pytest.mark.parametrize(
        ("fields", "path", "message", "suggestion"),
        [
            ({"plane": None}, "plane", "required", "one of: control, data"),
            ({"plane": "dat"}, "plane", "not known", '"data"'),
            ({"from": None}, "from", "required", ""),
            ({"to": ["b"]}, "to", "must be text, not a list", ""),
            ({"buffer": 0}, "buffer", "0 is out of range, 1 to 65536 would do", ""),
            ({"buffer": -3}, "buffer", "out of range", ""),
            ({"buffer": 10**400}, "buffer", "of 1329 bits is out of range", ""),
            ({"buffer": "64"}, "buffer", 'must be an integer, not the text "64"', ""),
            ({"watermark": 0}, "watermark", "out of range", ""),
            ({"policy": "drop-newest"}, "policy", "not known", '"drop_newest"'),
            ({"plane": "control"}, "topic", "a control route needs a topic", "control/a/b"),
            ({"port": "a\nb"}, "port", "no usable name", ""),
        ],
    )
    def test_of_a_route(
        self, manifest: Make, data_route: Make, fields: dict[str, Any], path: str, message: str, suggestion: str
    ) -> None:
        routes = [{**data_route("a", "b"), **fields}]
        problem = only_problem({"manifests": [manifest("a"), manifest("b")], "routes": routes})
        assert problem.path == f"routes[0].{path}"
        assert message in problem.message
        assert suggestion in problem.suggestion

    @pytest.mark.parametrize(
        ("raw", "path", "message"),
        [
            (None, "", "a flow is a map"),
            ([], "", "a flow is a map with manifests, routes and schemas, not a list"),
            ({}, "manifests", "at least one node"),
            ({"manifests": []}, "manifests", "at least one node"),
            ({"manifests": {}}, "manifests", "must be a list, not a map"),
            ({"nodes": [], "edges": []}, "manifests", "has not been compiled"),
        ],
    )
    def test_of_the_flow_itself(self, raw: Any, path: str, message: str) -> None:
        problem = only_problem(raw)
        assert problem.path == path
        assert message in problem.message

    def test_of_its_schemas(self, manifest: Make) -> None:
        problem = only_problem({"manifests": [manifest("a")], "schemas": [{"schema_ref": 1}]})
        assert problem.path == "schemas[0].schema_ref"

    def test_a_whole_float_is_an_integer(self, manifest: Make, data_route: Make) -> None:
        raw = {"manifests": [manifest("a"), manifest("b")], "routes": [data_route("a", "b", buffer=8.0)]}
        buffer = flow_of(parse_flow(raw)).routes[0].buffer
        assert (buffer, type(buffer)) == (8, int)


class TestUnknownFields:
    def test_they_are_ignored(self, manifest: Make) -> None:
        validation = parse_flow({"manifests": [manifest("a", labels={"x": 1}, comment="hi")], "zzz": 1})
        assert validation.flow is not None
        assert validation.warnings == []

    @pytest.mark.parametrize(
        ("raw_path", "path", "meant"),
        [("polcy", "routes[0].polcy", "policy"), ("watermrk", "routes[0].watermrk", "watermark")],
    )
    def test_one_that_looks_misspelt_gives_a_warning(
        self, manifest: Make, data_route: Make, raw_path: str, path: str, meant: str
    ) -> None:
        routes = [data_route("a", "b", **{raw_path: 1})]
        warning = only_warning({"manifests": [manifest("a"), manifest("b")], "routes": routes})
        assert (warning.path, warning.suggestion) == (path, f'did you mean "{meant}"?')

    def test_not_when_the_field_it_resembles_is_there(self, manifest: Make) -> None:
        validation = parse_flow({"manifests": [manifest("a", version="1", versions=["1"])]})
        assert validation.warnings == []

    def test_in_nested_maps_too(self, manifest: Make) -> None:
        warning = only_warning({"manifests": [manifest("a", qos={"priorty": 1})]})
        assert warning.path == "manifests[0].qos.priorty"


class TestSchedule:
    @pytest.mark.parametrize(
        ("schedule", "interval_ns"),
        [
            ({"interval_ms": 1000}, 1_000_000_000),
            ({"interval_ms": 0.5}, 500_000),
            ({"rate_hz": 3}, 333_333_333),
            ({"cron": "* * * * *"}, None),
            ({"interval_ms": 1e-9}, 1),
        ],
    )
    def test_the_interval_is_in_nanoseconds(
        self, manifest: Make, schedule: dict[str, Any], interval_ns: int | None
    ) -> None:
        timers = [{"id": "t", "schedule": {**schedule, "start_at": "2026-01-01T00:00:00Z", "jitter_pct": 2.5}}]
        [timer] = flow_of(parse_flow({"manifests": [manifest("a", timers=timers)]})).manifests[0].timers
        assert timer.schedule.interval_ns == interval_ns
        assert timer.schedule.jitter_pct == 2.5
