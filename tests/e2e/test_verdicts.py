"""`validate` and `submit` agree about every flow: what one accepts the other accepts, and they name the same faults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

FLOW = """
name: f
nodes:
  - { id: a, kind: source, impl_kind: python, entry: "python://p.py:numbers" }
  - { id: b, kind: sink, impl_kind: python, entry: "python://p.py:Sink" }
edges:
  - { from: a, to: b, channel: stream }
"""
PLUGIN = """
def numbers(ctx):
    yield from range(3)

class Sink:
    def on_frame(self, frame, ctx): ...
    def on_tick(self, tick, ctx): ...
    def on_message(self, message, ctx): ...
"""
TIMER = "id: b, bindings: { timer: [{ id: t, schedule: { %s } }] },"
LONG = """
name: f
nodes:
  - { id: a, plugin: { kind: python, artifact: "python://p.py:numbers" } }
  - { id: b, plugin: { kind: python, artifact: "python://p.py:Sink" }, bindings: { %s } }
routes:
  - { from: a, to: b, plane: data, topic: t }
"""

FLOWS = {
    "right": ("", ""),
    "a wrong function": ("p.py:numbers", "p.py:number"),
    "a wrong class": ("p.py:Sink", "p.py:Snik"),
    "a missing file": ("p.py:Sink", "q.py:Sink"),
    "a missing folder": ("p.py:Sink", "no/p.py:Sink"),
    "a missing module": ("python://p.py:Sink", "python://nowhere:Sink"),
    "a missing submodule": ("python://p.py:Sink", "python://json.nowhere:Sink"),
    "a module beside": ("python://p.py:Sink", "python://p:Sink"),
    "no object": ("p.py:Sink", "p.py"),
    "an unknown builtin": ("python://p.py:Sink", "builtin://chronetix/system/timr"),
    "an unknown kind": ("kind: sink", "kind: snik"),
    "an unknown kind of plugin": ("b, kind: sink, impl_kind: python", "b, kind: sink, impl_kind: pyton"),
    "a kind that does not run": (
        'impl_kind: python, entry: "python://p.py:Sink"',
        'impl_kind: wasm, entry: "file://p.py"',
    ),
    "a library that is none": (
        'impl_kind: python, entry: "python://p.py:Sink"',
        'impl_kind: dylib, entry: "file://p.py"',
    ),
    "a misspelt field": ("id: b,", "id: b, pramas: {},"),
    "a misspelt field of the flow": ("name: f", "name: f\nstrategi: one_for_all"),
    "a misspelt field of a route": ("channel: stream", "channel: stream, polcy: latest"),
    "a missing node": ("to: b", "to: c"),
    "two nodes of one name": ("id: b", "id: a"),
    "an edge that is there twice": (
        "edges:\n",
        "edges:\n  - { from: a, to: b, channel: stream }\n",
    ),
    "an edge that is there twice in another way": (
        "edges:\n",
        "edges:\n  - { from: a, to: b, channel: stream, policy: latest }\n",
    ),
    "a control route that is there twice": (
        FLOW,
        (LONG % "") + "  - { from: a, to: b, plane: control, topic: c }\n" * 2,
    ),
    "a circle": ("from: a, to: b", "from: b, to: b"),
    "an unknown channel": ("channel: stream", "channel: strem"),
    "an unknown policy": ("channel: stream", "channel: stream, policy: lates"),
    "a value out of range": ("id: b,", "id: b, qos: { priority: 256 },"),
    "a priority above the highest": ("id: b,", "id: b, qos: { priority: 99 },"),
    "an unknown category": ("id: b,", "id: b, category: Odd,"),
    "a number as version": ("id: b,", "id: b, version: 1.10,"),
    "a watermark above the buffer": ("channel: stream", "channel: stream, buffer: 4, watermark: 9"),
    "an artifact that nobody fetches": (
        'impl_kind: python, entry: "python://p.py:Sink"',
        'impl_kind: wasm, entry: "oci://registry.io/sink:1"',
    ),
    "an unknown restart": ("id: b,", "id: b, restart: sometimes,"),
    "a name that no flow may have": ("name: f", 'name: "a\\nb"'),
    "a name that is no text": ("name: f", "name: 7"),
    "no YAML": ("name: f", "name: ["),
    "an empty flow": (FLOW.strip(), "nodes: []\nedges: []"),
    "arguments that are no texts": (
        'impl_kind: python, entry: "python://p.py:Sink"',
        'impl_kind: process, entry: "file:///bin/cat", params: { args: [1] }',
    ),
    "a program that is not there": (
        'impl_kind: python, entry: "python://p.py:Sink"',
        'impl_kind: process, entry: "file:///bin/no-such-program"',
    ),
    "a program that is not executable": (
        'impl_kind: python, entry: "python://p.py:Sink"',
        'impl_kind: process, entry: "file://p.py"',
    ),
    "cron": (FLOW, LONG % 'timer: [{ id: t, schedule: { cron: "*/5 * * * *" } }]'),
    "no cron": (FLOW, LONG % 'timer: [{ id: t, schedule: { cron: "often" } }]'),
    "a timer without a time": (FLOW, LONG % "timer: [{ id: t, schedule: {} }]"),
    "a timer": (FLOW, LONG % "timer: [{ id: t, schedule: { interval_ms: 5 } }]"),
    "a timer with a field that has no effect": (
        FLOW,
        LONG % "timer: [{ id: t, schedule: { interval_ms: 5, jitter_pct: 3 } }]",
    ),
    "a wildcard": (FLOW, LONG % "bus: { subscriptions: [{ pattern: 'a.*' }] }"),
    "a subscription": (FLOW, LONG % "bus: { subscriptions: [{ pattern: a }] }"),
    "at least once": (FLOW, LONG % "bus: { subscriptions: [{ pattern: a, delivery: at_least_once }] }"),
}
ACCEPTED = {
    "right",
    "an unknown channel",
    "a priority above the highest",
    "an unknown category",
    "a number as version",
    "a watermark above the buffer",
    "a module beside",
    "an unknown kind",
    "a misspelt field",
    "a misspelt field of the flow",
    "a misspelt field of a route",
    "an edge that is there twice in another way",
    "a control route that is there twice",
    "a subscription",
    "a timer",
    "a timer with a field that has no effect",
}


@pytest.mark.parametrize("half", [0, 1])
def test_both_accept_it_or_both_name_the_same_faults(half: int, daemon: Any, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(PLUGIN)
    for fault in list(FLOWS)[half::2]:
        judge(fault, daemon, tmp_path / "flow.yaml")


def judge(fault: str, daemon: Any, flow: Path) -> None:
    old, new = FLOWS[fault]
    assert old in FLOW
    before, _, after = FLOW.rpartition(old) if old else (FLOW, "", "")
    flow.write_text(before + new + after)

    validated = daemon.ctl("validate", str(flow))
    as_json = daemon.ctl("validate", str(flow), "-o", "json")
    remote = daemon.ctl("validate", str(flow), "--remote")
    submitted = daemon.ctl("submit", str(flow), "--wait", "stopped", "-o", "json")

    codes = {each.returncode for each in (validated, as_json, remote, submitted)}
    assert codes == {0 if fault in ACCEPTED else 1}, f"{fault}: {validated.stderr}{submitted.stderr}"
    verdict = json.loads(as_json.stdout)
    assert verdict["valid"] == (fault in ACCEPTED), fault
    assert (validated.stdout, validated.stderr) == (remote.stdout, remote.stderr), fault
    told = [*verdict["problems"], *verdict["warnings"]]
    assert bool(verdict["problems"]) == (fault not in ACCEPTED), fault
    for each in told:
        assert f"{flow}:{each['line']}:{each['column']}" in submitted.stderr, f"{fault}: at the same place"
        message = re.sub(r"^[\w.\[\]]+: ", "", each["message"])
        assert message in submitted.stderr.replace("\n", " "), f"{fault}: in the same words"
    assert submitted.stderr.count("warning:") == len(verdict["warnings"]), f"{fault}: each warning once"
