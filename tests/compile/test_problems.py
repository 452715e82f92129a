"""Every way a flow's text can be wrong is reported with its place, its kind and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from chronetixd.compile import CompileError, SourceProblem, compile_text

Problems = Callable[[str], tuple[SourceProblem, ...]]

NODES = """
nodes:
  - {id: a, plugin: {artifact: "python://m:f"}, io: {outputs: [{}]}}
  - {id: b, plugin: {artifact: "python://m:f"}, io: {inputs: [{}], outputs: [{}]}}
routes:
"""


def only(problems: tuple[SourceProblem, ...]) -> SourceProblem:
    assert len(problems) == 1, "\n".join(map(str, problems))
    return problems[0]


class TestInvalidGraph:
    def test_a_route_to_nowhere_names_the_nearest_node(self, problems: Problems) -> None:
        found = only(problems(NODES.replace("id: b", "id: writer") + "  - {from: a, to: writr}\n"))

        assert (found.kind, found.line, found.column) == ("InvalidGraph", 6, 19)
        assert "writr" in found.message
        assert found.suggestion == 'did you mean "writer"?'

    def test_two_nodes_with_one_id_name_the_first(self, problems: Problems) -> None:
        found = only(problems(NODES.replace("id: b", "id: a").replace("routes:", "") + "\n"))

        assert (found.kind, found.line) == ("InvalidGraph", 4)
        assert "line 3" in found.suggestion

    def test_an_input_that_no_route_reaches_is_open(self, problems: Problems) -> None:
        found = only(problems(NODES + "  []\n"))

        assert (found.kind, found.line) == ("InvalidGraph", 4)
        assert "left open" in found.message

    def test_an_input_that_a_timer_may_serve_is_not_open(self) -> None:
        text = (NODES + "  []\n").replace("id: b,", "id: b, bindings: {timer: [{id: t, schedule: {rate_hz: 1}}]},")

        assert compile_text(text, "f").output["routes"] == []

    @pytest.mark.parametrize("text", ["", "# nothing\n", "[]", "just words", "nodes: []", "routes: []", "{}", "12"])
    def test_a_file_without_nodes_is_no_flow(self, text: str) -> None:
        with pytest.raises(CompileError) as caught:
            compile_text(text, "flow.yaml")

        assert only(caught.value.problems).kind == "InvalidGraph"


class TestIncompatibleSchema:
    def test_a_route_must_carry_what_its_producer_makes(self, problems: Problems) -> None:
        found = problems(NODES + "  - {from: a, to: b, content_type: application/cbor}\n")

        assert [problem.kind for problem in found] == ["IncompatibleSchema"] * 2
        assert found[0].line == 6
        assert "application/cbor v1" in found[0].message

    def test_a_route_must_carry_what_its_consumer_takes(self, problems: Problems) -> None:
        text = NODES.replace("{inputs: [{}]", "{inputs: [{schema_ver: v2}]") + "  - {from: a, to: b}\n"

        found = only(problems(text))

        assert found.kind == "IncompatibleSchema"
        assert found.message == "route a -> b carries application/json v1, but b takes application/json v2"

    def test_both_spellings_of_arrow_are_one(self) -> None:
        text = NODES.replace("outputs: [{}]", "outputs: [{content_type: application/arrow+ipc}]", 1).replace(
            "inputs: [{}]", "inputs: [{content_type: application/arrow-ipc}]"
        )

        assert compile_text(text + "  - {from: a, to: b}\n", "f").warnings == ()

    def test_control_messages_do_not_count_where_data_flows(self) -> None:
        arrow = NODES.replace("[{}]", "[{content_type: application/arrow-ipc}]")
        text = arrow.replace("routes:", "  - {id: t, plugin: {type: timer-source}}\nroutes:")

        routes = "  - {from: a, to: b}\n  - {from: t, to: b, plane: control}\n"
        assert len(compile_text(text + routes, "f").output["routes"]) == 2


class TestMissingArtifact:
    @pytest.mark.parametrize(
        "node",
        [
            "{id: a}",
            "{id: a, plugin: }",
            "{id: a, plugin: {}}",
            "{id: a, plugin: {kind: wasm}}",
            "{id: a, plugin: {kind: platform}}",
            "{id: a, plugin: {kind: platform, type: timer-sorce}}",
            "{id: a, plugin: {type: timer-sorce}}",
            "{id: a, plugin: {kind: python, artifact: 'python://module'}}",
            "{id: a, plugin: {kind: python, artifact: 'python://'}}",
            "{id: a, plugin: {kind: wasm, artifact: 'ftp://x/y.wasm'}}",
            "{id: a, kind: source, impl_kind: python}",
        ],
    )
    def test_a_node_must_say_what_it_runs(self, problems: Problems, node: str) -> None:
        found = only(problems(f"nodes:\n  - {node}\n"))

        assert (found.kind, found.line) == ("MissingArtifact", 2)
        assert "a" in found.message
        assert found.suggestion

    def test_a_misspelt_platform_type_gets_the_right_one(self, problems: Problems) -> None:
        found = only(problems("nodes: [{id: a, plugin: {type: timer-sorce}}]"))

        assert found.suggestion == 'did you mean "timer-source"?'


class TestCyclicDependency:
    def test_names_the_whole_circle(self, problems: Problems) -> None:
        nodes = NODES.replace("{outputs", "{inputs: [{}], outputs")

        found = only(problems(nodes + "  - {from: a, to: b}\n  - {from: b, to: a}\n"))

        assert (found.kind, found.line) == ("CyclicDependency", 7)
        assert "a -> b -> a" in found.message

    def test_a_node_that_feeds_itself_is_one(self, problems: Problems) -> None:
        found = only(problems(NODES + "  - {from: a, to: b}\n  - {from: b, to: b}\n"))

        assert found.kind == "CyclicDependency"

    def test_control_routes_may_form_one(self) -> None:
        text = NODES + "  - {from: a, to: b}\n  - {from: b, to: a, plane: control}\n"

        assert len(compile_text(text, "f").output["routes"]) == 2

    def test_a_diamond_is_none(self) -> None:
        node = '{{id: {0}, plugin: {{artifact: "python://m:f"}}}}'
        text = f"nodes: [{', '.join(map(node.format, 'abcd'))}]\nroutes:\n" + "".join(
            f"  - {{from: {start}, to: {end}}}\n" for start, end in ("ab", "ac", "bd", "cd", "ad")
        )

        assert len(compile_text(text, "f").output["routes"]) == 5

    def test_a_chain_of_thousands_is_walked_without_recursion(self) -> None:
        count = 3000
        nodes = [{"id": f"n{i}", "plugin": {"artifact": "python://m:f"}} for i in range(count)]
        routes = [{"from": f"n{i}", "to": f"n{(i + 1) % count}"} for i in range(count)]

        with pytest.raises(CompileError) as caught:
            compile_text(json.dumps({"nodes": nodes, "routes": routes}), "f.json")

        assert only(caught.value.problems).kind == "CyclicDependency"


class TestInvalidField:
    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (("io: {outputs: [{}]}", "io: [1]"), 3),
            (("id: a", "id: true"), 3),
            (("id: a", "origin: 3, id: a"), 3),
            (("id: a", "category: [Business], id: a"), 3),
            (("id: a", "qos: {priority: high}, id: a"), 3),
            (("id: a", "qos: {deadline_ns: -1}, id: a"), 3),
            (("id: a", "params: [1], id: a"), 3),
            (("to: b", "to: b, buffer: 0"), 6),
            (("to: b", "to: b, buffer: true"), 6),
            (("to: b", "to: b, plane: datas"), 6),
            (("to: b", "to: b, topic: 3"), 6),
        ],
    )
    def test_a_value_of_the_wrong_type_is_named(self, problems: Problems, change: tuple[str, str], line: int) -> None:
        found = problems((NODES + "  - {from: a, to: b}\n").replace(*change, 1))

        assert (found[0].kind, found[0].line) == ("InvalidField", line)

    @pytest.mark.parametrize(
        ("change", "message", "suggestion"),
        [
            (("nodes:\n", "nodes: 3\nx:\n"), "flow: nodes must be a list, it is a number", ""),
            (
                ("routes:\n", "routes:\n  - 3\n"),
                "flow: every entry of routes must be a mapping, this one is a number",
                "",
            ),
            (("io: {outputs: [{}]}", "io: {outputs: yes}"), "node a: io: outputs must be a list, it is text", ""),
            (
                ('plugin: {artifact: "python://m:f"}', "plugin: [x]"),
                "node a: plugin must be a mapping, it is a list",
                "",
            ),
            (("id: a", "id: ''"), "node: id must be text, it is empty", ""),
            (("id: a", "id: [x]"), "node: id must be text, it is a list", ""),
            (("id: a", "id: {x: 1}"), "node: id must be text, it is a mapping", ""),
            (
                ("id: a", "id: true"),
                "node: id must be text, it is true or false",
                "put it in quotes if it is meant as text",
            ),
            (
                ("to: b", "to: b, buffer: 0"),
                "route a -> b: buffer must be a whole number of at least 1, it is 0",
                "",
            ),
            (
                ("to: b", "to: b, buffer: 1.5"),
                "route a -> b: buffer must be a whole number of at least 1, it is 1.5",
                "",
            ),
            (
                ("to: b", "to: b, buffer: true"),
                "route a -> b: buffer must be a whole number of at least 1, it is true or false",
                "",
            ),
            (
                ("to: b", "to: b, buffer: [1]"),
                "route a -> b: buffer must be a whole number of at least 1, it is a list",
                "",
            ),
            (("to: b", "to: b, plane: Data"), 'route a -> b: "Data" is no plane', 'write "data"'),
            (("to: b", "to: b, plane: dat"), 'route a -> b: "dat" is no plane', 'did you mean "data"?'),
            (("to: b", "to: b, plane: x"), 'route a -> b: "x" is no plane', "one of: control, data"),
        ],
    )
    def test_what_is_wrong_is_said_in_the_words_of_the_text(
        self, problems: Problems, change: tuple[str, str], message: str, suggestion: str
    ) -> None:
        found = problems((NODES + "  - {from: a, to: b}\n").replace(*change, 1))[0]

        assert (found.kind, found.message, found.suggestion) == ("InvalidField", message, suggestion)

    def test_a_node_without_id_is_told_to_have_one(self, problems: Problems) -> None:
        found = only(problems("nodes: [{plugin: {artifact: 'python://m:f'}}]"))

        assert (found.message, found.suggestion) == ("node without id", "give it one: id: my-node")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ("io: 3", "node c: io must be a mapping, it is a number"),
            ("io: {inputs: 3}", "node c: io: inputs must be a list, it is a number"),
            ("io: {outputs: [3]}", "node c: io: every entry of outputs must be a mapping, this one is a number"),
            ("io: {outputs: [{content_type: 3}]}", "node c: io.outputs: content_type must be text, it is a number"),
            ("io: {inputs: [{schema_ver: [3]}]}", "node c: io.inputs: schema_ver must be text, it is a list"),
            ("qos: [3]", "node c: qos must be a mapping or the name of a class, it is a list"),
            ("qos: {priority: x}", "node c: qos: priority must be a whole number of at least 0, it is 'x'"),
            ("qos: {deadline_ns: -1}", "node c: qos: deadline_ns must be a whole number of at least 0, it is -1"),
            ("priority: x", "node c: priority must be a whole number of at least 0, it is 'x'"),
            ("deadline_ns: -1", "node c: deadline_ns must be a whole number of at least 0, it is -1"),
            ("bindings: 3", "node c: bindings must be a mapping, it is a number"),
            ("bindings: {timer: 3}", "node c: bindings: timer must be a list, it is a number"),
            ("bindings: {bus: 3}", "node c: bindings: bus must be a mapping, it is a number"),
            (
                "bindings: {bus: {subscriptions: 3}}",
                "node c: bindings.bus: subscriptions must be a list, it is a number",
            ),
            ("bindings: {bus: {publications: 3}}", "node c: bindings.bus: publications must be a list, it is a number"),
            ("bus: 3", "node c: bus must be a mapping, it is a number"),
            ("bus: {subscribe: 3}", "node c: bus: subscribe must be a list, it is a number"),
            ("features: 3", "node c: features must be a mapping, it is a number"),
            ("annotations: 3", "node c: annotations must be a mapping, it is a number"),
            ("params: 3", "node c: params must be a mapping, it is a number"),
            ("version: true", "node c: version must be text, it is true or false"),
            ("role: 3", "node c: role must be text, it is a number"),
            ("origin: 3", "node c: origin must be text, it is a number"),
            ("category: 3", "node c: category must be text, it is a number"),
        ],
    )
    def test_whatever_is_wrong_in_a_node_says_where_in_it(self, problems: Problems, fields: str, message: str) -> None:
        found = problems(f"nodes:\n  - {{id: c, plugin: {{artifact: 'python://m:f'}}, {fields}}}\n")

        assert message in [each.message for each in found]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ("versoin: x", 'node c: unknown field "versoin"'),
            ("io: {output: []}", 'node c: io: unknown field "output"'),
            ("qos: {priorty: 1}", 'node c: qos: unknown field "priorty"'),
            ("bindings: {timr: []}", 'node c: bindings: unknown field "timr"'),
            (
                "bindings: {bus: {publication: []}}",
                'node c: bindings.bus: unknown field "publication"',
            ),
        ],
    )
    def test_a_field_that_is_nearly_one_that_is_known_is_warned_of(self, fields: str, message: str) -> None:
        text = f"nodes:\n  - {{id: c, plugin: {{artifact: 'python://m:f'}}, {fields}}}\n"

        told = [each.message for each in compile_text(text, "f").warnings]
        assert f"{message} is passed on unread" in told

    def test_what_only_the_contract_knows_has_its_place_too(self, problems: Problems) -> None:
        found = only(
            problems(
                """\
                nodes:
                  - id: a
                    plugin: {artifact: "python://m:f"}
                    bindings:
                      timer:
                        - id: t
                          schedule: {interval_ms: soon}
                """
            )
        )

        assert (found.kind, found.line) == ("InvalidField", 7)


def test_all_problems_are_reported_at_once_in_the_order_of_the_text(problems: Problems) -> None:
    found = problems(
        """\
        nodes:
          - {id: a}
          - {id: b, plugin: {kind: wasn, artifact: x.wasm}}
          - {id: b, plugin: {artifact: "python://m:f"}}
        routes:
          - {from: a, to: c}
          - {from: b, to: b}
        """
    )

    assert [(problem.line, problem.kind) for problem in found] == [
        (2, "MissingArtifact"),
        (3, "InvalidField"),
        (4, "InvalidGraph"),
        (6, "InvalidGraph"),
        (7, "CyclicDependency"),
    ]


def test_a_problem_reads_like_a_compilers_message(problems: Problems) -> None:
    text = str(problems("nodes: [{id: a}]")[0])

    assert text.startswith("flow.yaml:1:9: MissingArtifact: node a: nothing says what it runs\n  hint: add plugin")
