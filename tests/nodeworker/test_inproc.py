"""``python -m chronetix.nodeworker.inprocess.command``: flows from a file, results on stdout, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

PLUGINS = """
import asyncio, sys, time
from contextlib import suppress

def numbers(ctx):
    yield from range(ctx.params["count"])

class Sum:
    total = 0
    def on_frame(self, frame): self.total += frame.value()
    def on_stop(self): return self.total

class Beat:
    ticks = 0
    def on_message(self, message, ctx):
        self.ticks += 1
        if self.ticks == 1: ctx.log.info("ticking")
    def on_stop(self, ctx): return self.ticks > 0

def shouts(ctx):
    while True:
        print("x" * 4000, flush=True)
        yield None

def breaks(ctx):
    for n in range(2):
        breakpoint()
        yield n

def leaves(ctx):
    import os
    os._exit(ctx.params["code"])

class Interrupts:
    "The stream of stderr: Ctrl-C comes in the middle of each write."
    def __init__(self, stream): self.stream, self.writing = stream, False
    def write(self, text):
        import os, signal
        if self.writing: raise RuntimeError("reentrant call")
        self.writing = True
        if "once more" in text: os.kill(os.getpid(), signal.SIGINT)
        self.stream.write(text)
        self.writing = False
    def flush(self): self.stream.flush()

def logs(ctx):
    import sys
    sys.stderr = Interrupts(sys.stderr)
    n = 0
    while not ctx.stopping:
        n += 1
        ctx.log.info("once more" if n == 1 else "and on")
        yield n

def where(ctx):
    import os
    yield from ()
    return os.getcwd()

def surroundings(ctx):
    import os, time
    yield from ()
    return [os.environ.get("COLOUR"), time.tzname[0], os.getcwd()]

def four(ctx):
    ctx.send_many(b"1234", 1)

class First:
    def on_frame(self, frame, ctx): ctx.finish()

def say(text):
    print(text, file=sys.stderr, flush=True)

class SleepsAtItsEnd:
    def produce(self, ctx): yield 1
    def on_stop(self):
        say("on_stop")
        time.sleep(1000)

class SleepsAtItsEndInALoop:
    async def produce(self, ctx): yield 1
    async def on_stop(self):
        say("on_stop")
        await asyncio.sleep(1000)

class SleepsAtItsEndAndItsStart(SleepsAtItsEnd):
    def on_start(self):
        say("on_start")
    def produce(self, ctx):
        say("produce")
        time.sleep(1000)
        yield 1

class Never:
    async def produce(self, ctx):
        self.task = asyncio.create_task(self.never())
        yield 1
    async def never(self):
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)

class Blocks:
    async def produce(self, ctx):
        self.task = asyncio.create_task(self.blocks())
        yield 1
    async def blocks(self):
        try:
            await asyncio.sleep(1000)
        finally:
            time.sleep(1000)

async def count(ctx):
    for n in range(1000):
        yield n

class Five:
    taken = beats = 0
    async def on_start(self, ctx):
        self.task = asyncio.create_task(self.beat())
    async def beat(self):
        while True:
            await asyncio.sleep(0)
            self.beats += 1
    async def on_frame(self, frame, ctx):
        await asyncio.sleep(0)
        self.taken += 1
        if self.taken == 5: ctx.finish()
    async def on_stop(self): return [self.taken >= 5, self.beats > 0]
"""


def manifest(node, uri, **fields):
    return {
        "plugin_id": node,
        "node_id": node,
        "version": "0.1.0",
        "origin": "external",
        "category": "Business",
        "role": "Transform",
        "artifact": {"kind": "Python", "uri": uri},
        "io": {},
        **fields,
    }


def route(source, target, plane="data", **fields):
    common = {"topic": f"{source}/{target}", "content_type": "application/json", "schema_ver": "v1"}
    return {"from": source, "to": target, "plane": plane, **common, **fields}


@pytest.fixture
def inproc(tmp_path):
    (tmp_path / "plugins.py").write_text(PLUGINS)

    def start(flow, *arguments, variables=None, **settings):
        (tmp_path / "flow.json").write_text(json.dumps(flow))
        return subprocess.Popen(
            [sys.executable, "-m", "chronetix.nodeworker.inprocess.command", str(tmp_path / "flow.json"), *arguments],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | settings,
            env={**os.environ, "PYTHONPATH": os.getcwd(), **(variables or {})},
        )

    return start


@pytest.fixture
def flow():
    return {
        "manifests": [
            manifest("src", "python://plugins.py:numbers", params={"count": 100}),
            manifest("sum", "python://plugins:Sum"),
        ],
        "routes": [route("src", "sum", buffer=4, watermark=3)],
        "schemas": [],
    }


def test_prints_results_and_counters_as_json(inproc, flow):
    process = inproc(flow, "-o", "json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    printed = json.loads(out)
    assert printed["nodes"] == {"src": None, "sum": 4950}
    (counters,) = printed["routes"]
    assert (counters["from"], counters["to"], counters["committed"], counters["credits"]) == ("src", "sum", 100, 4)


def test_prints_a_table_otherwise(inproc, flow):
    process = inproc(flow)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("sum: 4950\n")
    assert out.splitlines()[-1].split()[:2] == ["src-sum", "100"]


def test_a_failing_node_is_named_with_its_traceback(inproc, flow):
    flow["manifests"][0]["params"] = {}
    process = inproc(flow)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert "node src failed in source: KeyError: 'count'" in err
    assert "plugins.py" in err


def test_a_flow_that_is_not_valid_starts_nothing_and_lists_the_problems(inproc, flow):
    flow["routes"].append(route("src", "nowhere"))
    flow["manifests"].append(manifest("p", "file:///bin/true", artifact={"kind": "Process", "uri": "file:///bin/true"}))
    process = inproc(flow)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "nowhere" in err


def test_says_what_needs_a_process_of_its_own(inproc, flow):
    flow["manifests"].append(manifest("p", "file:///bin/true", artifact={"kind": "Process", "uri": "file:///bin/true"}))
    process = inproc(flow)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "run the flow with chronetixd" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_timer_flow_ticks_until_it_is_interrupted_and_then_finishes(inproc, number, code):
    timer = manifest(
        "clock",
        "builtin://chronetix/system/timer",
        artifact={"kind": "WasmComponent", "uri": "builtin://chronetix/system/timer"},
        timers=[{"id": "t", "schedule": {"interval_ms": 1}}],
    )
    process = inproc(
        {
            "manifests": [timer, manifest("beat", "python://plugins.py:Beat")],
            "routes": [route("clock", "beat", "control")],
            "schemas": [],
        },
        "-o",
        "json",
    )
    assert process.stderr is not None
    assert "ticking" in process.stderr.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert json.loads(out)["nodes"] == {"clock": None, "beat": True}


def test_a_file_that_is_no_flow_is_named(tmp_path):
    for content in ("", "{", "[]", "no json"):
        (tmp_path / "bad.json").write_text(content)
        run = [sys.executable, "-m", "chronetix.nodeworker.inprocess.command", str(tmp_path / "bad.json")]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "bad.json" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("output", ["table", "json"])
def test_bytes_in_a_result_are_shown_as_text_or_hex(inproc, output, tmp_path):
    (tmp_path / "b.py").write_text(
        "class B:\n    def produce(self): return ()\n    def on_stop(self): return [b'ab', b'\\xff']\n"
    )
    flow = {"manifests": [manifest("b", f"python://{tmp_path}/b.py:B")], "routes": [], "schemas": []}
    out, err = inproc(flow, "-o", output).communicate(timeout=60)
    assert '"ab"' in out, err
    assert '"ff"' in out


def single(entry, **fields):
    return {"manifests": [manifest("n", f"python://plugins.py:{entry}", **fields)], "routes": [], "schemas": []}


def test_a_plugin_whose_output_nobody_reads_any_more_ends_the_flow_quietly_with_141(inproc):
    process = inproc(single("shouts"))
    assert process.stdout.readline() == "x" * 4000 + "\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 141
    process.stderr.close()


def test_results_that_nobody_reads_are_no_failure(inproc, flow):
    read, write = os.pipe()
    os.close(read)
    process = inproc(flow, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_a_breakpoint_reads_its_commands_from_stdin(inproc):
    process = inproc(single("breaks"), stdin=subprocess.PIPE)
    out, err = process.communicate("p n * 100 + 7\nc\np n * 100 + 7\nc\n", timeout=60)
    assert process.returncode == 0, err
    assert "(Pdb) 7\n" in out
    assert "(Pdb) 107\n" in out


def test_ctrl_c_while_a_plugin_logs_ends_the_sources_and_fails_no_node(inproc):
    process = inproc(single("logs"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping: sources end now" in err
    assert "reentrant" not in err


@pytest.mark.parametrize("entry", ["SleepsAtItsEnd", "SleepsAtItsEndInALoop"])
def test_a_second_ctrl_c_ends_an_on_stop_that_sleeps_and_calls_none_again(inproc, entry):
    process = inproc(single(entry))
    seen = [process.stderr.readline()]
    process.send_signal(signal.SIGINT)
    seen.append(process.stderr.readline())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert seen[0] == "on_stop\n"
    assert seen[1].startswith("stopping: ")
    assert seen[1].endswith("(again to stop at once)\n")
    assert (process.returncode, err) == (130, "")


def test_the_second_ctrl_c_gives_every_on_stop_that_follows_two_seconds(inproc):
    process = inproc(single("SleepsAtItsEndAndItsStart"))
    assert [process.stderr.readline() for _ in range(2)] == ["on_start\n", "produce\n"]
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("stopping: ")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == [
        "on_stop",
        "chronetix: the flow did not end within 2 s after the second signal and was ended",
    ]


def test_a_task_that_still_runs_at_the_end_is_cancelled_and_the_flow_finishes(inproc):
    flow = {
        "manifests": [
            manifest("src", "python://plugins.py:count"),
            manifest("five", "python://plugins.py:Five", max_inflight=4),
        ],
        "routes": [route("src", "five", buffer=8)],
        "schemas": [],
    }
    out, err = inproc(flow, "-o", "json").communicate(timeout=60)
    assert "Error" not in err
    assert json.loads(out)["nodes"] == {"src": None, "five": [True, True]}


def test_a_task_that_does_not_end_fails_the_flow_by_name(inproc):
    process = inproc(single("Never"), variables={"CHRONETIX_END_TIMEOUT": "0.1"})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: the flow did not end within 0.1 s and was ended: task" in err
    assert "of Never.never (" in err
    assert "plugins.py, line" in err


def test_a_task_that_blocks_the_event_loop_at_the_end_fails_the_flow_with_its_place(inproc):
    process = inproc(single("Blocks"), variables={"CHRONETIX_END_TIMEOUT": "0.1"})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    told = (
        "error: the flow did not end within 0.1 s and was ended: a task of the event loop does not return from blocks ("
    )
    assert told in err
    assert "plugins.py, line" in err


@pytest.mark.parametrize(("code", "seen"), [(0, 1), (3, 3)])
def test_os_exit_in_a_plugin_is_told_and_is_no_success(inproc, code, seen):
    process = inproc(single("leaves", params={"code": code}))
    _, err = process.communicate(timeout=60)
    assert process.returncode == seen
    assert f"a plugin called os._exit({code})" in err


def test_nodes_run_in_the_flows_folder(inproc, tmp_path):
    process = inproc(single("where"), "-o", "json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["nodes"]["n"] == str(tmp_path)


def test_a_folder_that_is_not_there_is_named(inproc, tmp_path):
    process = inproc(single("where"), "--base-dir", str(tmp_path / "nowhere"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "nowhere" in err
    assert "Traceback" not in err


def test_the_table_tells_of_frames_that_were_not_read(inproc, flow):
    for node, entry in enumerate(("four", "First")):
        flow["manifests"][node]["artifact"]["uri"] = f"python://plugins.py:{entry}"
    process = inproc(flow)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    head, row = (line.split() for line in out.splitlines()[-2:])
    counters = dict(zip(head, row, strict=True))
    assert (counters["committed"], counters["dropped"], counters["unread"]) == ("4", "3", "3")


SURROUNDINGS = {"env": {"COLOUR": "red", "TZ": "Asia/Tokyo"}, "cwd": "below"}


def test_a_node_gets_its_environment_and_its_folder(inproc, tmp_path):
    (tmp_path / "below").mkdir()
    process = inproc(single("surroundings", **SURROUNDINGS), "-o", "json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["nodes"]["n"] == ["red", "JST", str(tmp_path / "below")]


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ({"env": {"A": "1"}}, {"env": {"A": "2"}}, "manifests[0].env.A: node sum has another value than node src"),
        ({"cwd": "a"}, {}, "manifests[0].cwd: node src runs in another folder than others"),
        ({"cwd": "a"}, {"cwd": "b"}, "manifests[1].cwd: node sum runs in another folder than others"),
    ],
)
def test_nodes_that_want_other_surroundings_than_others_need_processes(inproc, flow, first, second, says):
    for manifest, fields in zip(flow["manifests"], (first, second), strict=True):
        manifest.update(fields)
    process = inproc(flow)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert says in err
    assert "run the flow with chronetixd" in err
    assert "chronetixctl submit FILE" in err
    assert "validate" not in err


@pytest.mark.parametrize("piped", [False, True])
def test_chronetixctl_names_the_file_that_cannot_run_in_one_process(flow, piped, tmp_path):
    flow["manifests"][0]["cwd"] = "a"
    file = tmp_path / "flow.json"
    file.write_text(json.dumps(flow))
    command = [sys.executable, "-m", "chronetixctl", "run", "--inproc", "-" if piped else str(file)]
    done = subprocess.run(command, input=json.dumps(flow), capture_output=True, text=True)
    assert done.returncode == 1
    assert f"error: the flow {'<stdin>' if piped else file} cannot run in one process" in done.stderr


def test_variables_of_one_node_do_not_trouble_the_others(inproc, flow):
    flow["manifests"][0]["env"] = {"A": "1"}
    flow["manifests"][1]["env"] = {"A": "1", "B": "2"}
    process = inproc(flow)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
