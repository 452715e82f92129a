"""What was settled after graphs had been compiled by Chronetix and by the orchestrator: each kind of difference."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronetix.protocol.contract import parse_flow
from chronetixd.compile import Compiled, CompileError, compile_text

Output = Callable[[str], dict[str, Any]]
Compile = Callable[[str], Compiled]

RUNS = 'plugin: {artifact: "python://m:f"}'
PAIR = f"nodes: [{{id: a, {RUNS}}}, {{id: b, {RUNS}}}]\nroutes: [{{from: a, to: b}}]\n"


def told(compiled: Compiled) -> list[tuple[str, str]]:
    return [(warning.message, warning.suggestion) for warning in compiled.warnings]


class TestSchemas:
    def test_each_has_a_reference_derived_from_its_type_where_none_is_given(self, output: Output) -> None:
        text = PAIR.replace("to: b", "to: b, content_type: application/arrow+ipc, schema_ver: v3")
        assert output(text)["schemas"] == [
            {
                "content_type": "application/arrow-ipc",
                "schema_ver": "v3",
                "schema_ref": "registry://schemas/arrow-ipc@v3",
            }
        ]

    def test_those_of_control_routes_are_not_listed(self, output: Output) -> None:
        assert output(PAIR.replace("to: b", "to: b, plane: control"))["schemas"] == []


class TestWhatOnlyOtherProgramsKnow:
    def test_passes_through(self, output: Output) -> None:
        [manifest] = output(
            f"""
            nodes:
              - id: a
                {RUNS}
                bus: {{publish: {{topic: a.b}}, subscribe: {{pattern: c/d}}}}
                bindings:
                  http: {{path: /x}}
                  bus: {{webhooks: [{{url: "http://y"}}], publications: [{{topic: e/f}}]}}
            """
        )["manifests"]
        assert manifest["bus"] == {"publish": {"topic": "a.b"}}
        assert manifest["bindings"] == {"http": {"path": "/x"}, "bus": {"webhooks": [{"url": "http://y"}]}}
        assert [each["topic"] for each in manifest["bus_publications"]] == ["e/f"]
        assert [each["pattern"] for each in manifest["bus_subscriptions"]] == ["c/d"]


class TestPlatformNodes:
    def test_a_timer_source_of_category_system_is_always_the_builtin(self, compiled: Compile) -> None:
        result = compiled(
            'nodes: [{id: t, category: System, plugin: {kind: dylib, type: timer-source, artifact: "x.so"}}]'
        )
        [manifest] = result.output["manifests"]
        assert manifest["plugin_id"] == "timer-source"
        assert manifest["artifact"] == {"kind": "WasmComponent", "uri": "builtin://chronetix/system/timer"}
        assert manifest["role"] == "Timer"
        assert 'node t: a timer source of category System is the builtin; "file://x.so" is not used' in [
            message for message, _ in told(result)
        ]

    def test_one_of_another_category_is_what_its_node_says(self, output: Output) -> None:
        [manifest] = output(
            'nodes: [{id: t, category: Business, plugin: {kind: dylib, type: timer-source, artifact: "x.so"}}]'
        )["manifests"]
        assert manifest["plugin_id"] == "t"
        assert manifest["artifact"] == {"kind": "Dylib", "uri": "file://x.so"}

    @pytest.mark.parametrize("type_", ["eventbus-source", "eventbus-sink"])
    def test_ends_of_the_bus_keep_their_own_id(self, output: Output, type_: str) -> None:
        [manifest] = output(f"nodes: [{{id: mine, plugin: {{kind: platform, type: {type_}}}}}]")["manifests"]
        assert manifest["plugin_id"] == "mine"
        assert manifest["artifact"]["uri"] == f"builtin://chronetix/system/{type_}"


class TestBothForms:
    def test_each_form_keeps_its_own_default_type(self, output: Output) -> None:
        text = f"""
            nodes:
              - {{id: a, {RUNS}}}
              - {{id: b, {RUNS}}}
              - {{id: c, kind: sink, entry: "python://m:f"}}
            routes: [{{from: a, to: b}}]
            edges: [{{from: a, to: c}}]
        """
        types = [route["content_type"] for route in output(text)["routes"]]
        assert types == ["application/json", "application/cbor"]

    def test_an_empty_list_of_edges_is_none(self, output: Output) -> None:
        assert output(PAIR + "edges: []\n")["routes"][0]["content_type"] == "application/json"

    def test_without_routes_nodes_declare_cbor_by_default(self, output: Output) -> None:
        text = f"nodes: [{{id: a, {RUNS}, io: {{outputs: [{{}}]}}}}, {{id: b, {RUNS}}}]\nedges: [{{from: a, to: b}}]"
        compiled = output(text)
        assert compiled["manifests"][0]["io"]["outputs"][0]["content_type"] == "application/cbor"
        assert compiled["routes"][0]["content_type"] == "application/cbor"


class TestRoutes:
    def test_a_watermark_above_the_buffer_is_clamped_with_a_warning(self, compiled: Compile) -> None:
        result = compiled(PAIR.replace("to: b", "to: b, buffer: 8, watermark: 20"))
        assert result.output["routes"][0]["watermark"] == 8
        assert told(result) == [("route a -> b: watermark 20 is above buffer 8, and is taken for 8", "at most 8")]

    def test_it_means_nothing_on_a_control_route(self, compiled: Compile) -> None:
        result = compiled(PAIR.replace("to: b", "to: b, plane: control, buffer: 8, watermark: 20"))
        assert told(result) == []
        assert (result.output["routes"][0]["buffer"], result.output["routes"][0]["watermark"]) == (8, 20)

    @pytest.mark.parametrize(
        ("label", "topic"),
        [
            ("config.update", "config.update"),
            ("a/b", "a/b"),
            ("a/b.c-d_e", "a/b.c-d_e"),
            ("raw frames", "flow/edge/a-b"),
            ("frames", "flow/edge/a-b"),
            ("a/", "flow/edge/a-b"),
        ],
    )
    def test_a_label_that_looks_like_a_topic_is_the_topic(self, output: Output, label: str, topic: str) -> None:
        [route] = output(PAIR.replace("routes", "edges").replace("to: b", f"to: b, label: {label}"))["routes"]
        assert (route["topic"], route["label"]) == (topic, label)

    def test_a_blob_ref_is_a_data_route_of_references_without_a_port(self, output: Output) -> None:
        [route] = output(PAIR.replace("routes", "edges").replace("to: b", "to: b, channel: blob-ref"))["routes"]
        assert (route["plane"], route["channel"]) == ("data", "blob-ref")
        assert "port" not in route

    def test_an_unknown_channel_is_a_stream_with_a_warning(self, compiled: Compile) -> None:
        result = compiled(PAIR.replace("routes", "edges").replace("to: b", "to: b, channel: streem"))
        assert result.output["routes"][0]["plane"] == "data"
        assert told(result) == [
            ('route a -> b: the channel "streem" is not known; the route is a stream', 'did you mean "stream"?')
        ]


class TestHarmlessValues:
    def test_numbers_are_taken_for_the_text_that_stands_there(self, compiled: Compile) -> None:
        result = compiled(
            f"nodes: [{{id: 007, version: 1.10, {RUNS}}}, {{id: 2, {RUNS}}}]\nroutes: [{{from: 007, to: 2}}]"
        )
        first = result.output["manifests"][0]
        assert (first["node_id"], first["version"]) == ("007", "1.10")
        assert (result.output["routes"][0]["from"], result.output["routes"][0]["to"]) == ("007", "2")
        assert ('node: id is a number, and is taken for the text "007"', 'write id: "007"') in told(result)

    def test_a_number_as_schema_version_is_the_wits(self, compiled: Compile) -> None:
        result = compiled(PAIR.replace("to: b", "to: b, schema_ver: 2"))
        assert result.output["routes"][0]["schema_ver"] == "v2"
        assert told(result) == [('route a -> b: schema_ver is a number, and is taken for "v2"', "write schema_ver: v2")]

    @pytest.mark.parametrize(
        ("field", "value", "near"), [("origin", "extern", "external"), ("category", "business", "Business")]
    )
    def test_an_unknown_origin_or_category_is_passed_on_with_a_warning(
        self, compiled: Compile, field: str, value: str, near: str
    ) -> None:
        result = compiled(PAIR.replace("id: a", f"id: a, {field}: {value}"))
        assert result.output["manifests"][0][field] == value
        assert any(f'the {field} "{value}" is not known' in message and near in hint for message, hint in told(result))

    def test_a_priority_up_to_255_counts_as_7_with_a_warning(self, compiled: Compile) -> None:
        result = compiled(PAIR.replace("id: a", "id: a, qos: {priority: 200}"))
        assert "is above the highest priority, and is taken for 7" in str(told(result))
        checked = parse_flow(result.output)
        assert checked.flow is not None
        assert [manifest.qos.priority for manifest in checked.flow.manifests] == [7, 7]

    def test_a_schedule_may_be_aligned_to_the_day(self, compiled: Compile) -> None:
        timer = "bindings: {timer: [{id: x, schedule: {interval_ms: 100, align_to: day}}]}"
        compiled(f"nodes: [{{id: t, plugin: {{type: timer-source}}, {timer}}}]")

    @pytest.mark.parametrize("written", ["application/json; charset=utf-8", "application/json;charset=UTF-8"])
    def test_a_charset_is_left_out(self, compiled: Compile, written: str) -> None:
        result = compiled(PAIR.replace("to: b", f'to: b, content_type: "{written}"'))
        assert result.output["routes"][0]["content_type"] == "application/json"
        assert told(result) == []

    def test_blanks_in_ids_are_encoded_in_topics_and_ports(self, output: Output) -> None:
        text = PAIR.replace("id: a", "id: my node").replace("from: a", "from: my node")
        compiled = output(text)
        [route] = compiled["routes"]
        assert compiled["manifests"][0]["node_id"] == route["from"] == "my node"
        assert (route["topic"], route["port"]) == ("flow/edge/my%20node-b", "dataport/my%20node-b")
        flow = parse_flow(compiled).flow
        assert flow is not None
        assert flow.routes[0].id == "dataport/my%20node-b"

    def test_features_may_mark_a_plugin_as_internal(self, output: Output) -> None:
        text = PAIR.replace("id: a", "id: a, features: {internal: true}").replace(
            "id: b", "id: b, features: {internal: 1}"
        )
        assert [manifest["origin"] for manifest in output(text)["manifests"]] == ["internal", "external"]

    @pytest.mark.parametrize(
        ("uri", "cure"),
        [
            ("wasm://edges", "write file://plugins/edges.wasm"),
            ("oci://registry.io/a/edges:1", "oras pull registry.io/a/edges:1"),
            ("https://host/edges.wasm", "curl -O https://host/edges.wasm"),
        ],
    )
    def test_what_is_fetched_from_nowhere_says_how_to_bring_it_here(self, uri: str, cure: str) -> None:
        with pytest.raises(CompileError) as caught:
            compile_text(f"nodes: [{{id: a, plugin: {{kind: wasm, artifact: {uri}}}}}]", "f.yaml")
        [problem] = caught.value.problems
        assert (problem.kind, problem.message) == (
            "MissingArtifact",
            f'node a: an artifact cannot be fetched from "{uri}"',
        )
        assert cure in problem.suggestion


def test_null_counts_as_not_given_also_where_a_field_tells_the_form(output: Output) -> None:
    text = 'manifests: ~\nnodes: [{id: a, plugin: ~, kind: source, entry: "python://m:f"}]\n'
    assert [manifest["node_id"] for manifest in output(text)["manifests"]] == ["a"]


class TestTheOlderOutput:
    TEXT = json.dumps(
        {
            "nodes": [
                {"id": "a", "kind": "source", "entry": "python://m:f", "resources": {"cpu_millis": 5}},
                {"id": "b", "kind": "sink", "entry": "python://m:g"},
            ],
            "edges": [
                {"from": "a", "to": "b", "channel": "stream", "topic_or_label": "raw frames"},
                {"from": "a", "to": "b", "channel": "event-bus", "topic_or_label": "alarms"},
            ],
        }
    )

    def test_is_read_and_converted(self, compiled: Compile) -> None:
        result = compiled(self.TEXT)
        assert result.output["manifests"][0]["resource_claims"] == {"cpu_millis": 5}
        assert "resources" not in result.output["manifests"][0]
        stream, event = result.output["routes"]
        assert (stream["plane"], stream["topic"]) == ("data", "flow/edge/a-b")
        assert (event["plane"], event["topic"]) == ("control", "alarms")
        assert told(result) == []


names = st.text("ab c1", min_size=1, max_size=4).filter(lambda text: text == text.strip())
plain = st.one_of(st.none(), st.booleans(), st.integers(0, 300), st.sampled_from(["v1", "a/b", "Business", "x"]))
ports = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "content_type": st.sampled_from(["application/cbor", "application/json; charset=utf-8", "image/png"]),
            "schema_ver": st.one_of(st.sampled_from(["v1", "v2"]), st.integers(0, 3)),
            "schema_ref": st.just("registry://x@v1"),
            "required": st.just(False),
        },
    ),
    max_size=2,
)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """A graph in both forms and any mixture, without mistakes that a compile error would be about."""
    ids = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    nodes = []
    for id in ids:
        form = draw(st.sampled_from(["long", "short", "timer", "bus"]))
        node: dict[str, Any] = {"id": id}
        if form == "long":
            node["plugin"] = {"kind": draw(st.sampled_from(["python", "process", "wasm", "dylib"])), "artifact": "m:f"}
        elif form == "short":
            node |= {"kind": draw(st.sampled_from(["source", "sink", "map", "Judge"])), "entry": "python://m:f"}
        else:
            node["plugin"] = {"kind": "platform", "type": "timer-source" if form == "timer" else "eventbus-sink"}
        if draw(st.booleans()):
            node["io"] = {"inputs": [{**port, "required": False} for port in draw(ports)], "outputs": []}
        node |= draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "qos": st.fixed_dictionaries({"priority": st.integers(0, 255)}),
                    "params": st.dictionaries(st.sampled_from("xyz"), plain),
                    "category": st.sampled_from(["Business", "System", "Resource", "Odd"]),
                    "origin": st.sampled_from(["internal", "elsewhere"]),
                    "colour": plain,
                    "bus": st.just({"publish": {"topic": "a.b"}}),
                },
            )
        )
        nodes.append(node)
    lists: dict[str, list[dict[str, Any]]] = {"routes": [], "edges": []}
    for index in range(len(ids) - 1):
        if nodes[index + 1].get("io", {}).get("inputs"):
            continue
        form = draw(st.sampled_from(["routes", "edges"]))
        edge: dict[str, Any] = {"from": ids[index], "to": ids[index + 1]}
        if form == "edges":
            edge |= {"channel": draw(st.sampled_from(["stream", "event-bus", "blob-ref", "other"]))}
            edge |= draw(st.fixed_dictionaries({}, optional={"label": st.sampled_from(["a.b", "c/d", "words here"])}))
        edge |= draw(
            st.fixed_dictionaries(
                {}, optional={"buffer": st.integers(1, 2000), "watermark": st.integers(1, 2000), "colour": plain}
            )
        )
        lists[form].append(edge)
    return {"nodes": nodes, **{form: found for form, found in lists.items() if found or draw(st.booleans())}}


@given(graphs())
def test_the_output_is_stable_idempotent_and_accepted_by_its_reader(graph: dict[str, Any]) -> None:
    text = json.dumps(graph)
    once = compile_text(text, "graph.json").output
    written = json.dumps(once)
    assert json.dumps(compile_text(text, "graph.json").output) == written
    assert json.dumps(compile_text(written, "out.json").output) == written
    checked = parse_flow(once)
    assert checked.problems == []
    assert checked.flow is not None
    assert [manifest.node for manifest in checked.flow.manifests] == [node["id"] for node in graph["nodes"]]
    assert all(schema["schema_ref"] for schema in once["schemas"])
    for route in once["routes"]:
        assert " " not in route["topic"] + route.get("port", "") or route["topic"] == "words here"
    for node, manifest in zip(graph["nodes"], once["manifests"], strict=True):
        for kept in ("colour", "bus", "params"):
            assert kept not in node or manifest[kept] == node[kept]
