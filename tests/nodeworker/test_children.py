"""Child processes that a plugin forks: they end by themselves, and their parent goes on to its last frame."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from chronetix.nodeworker.engine import children

PLUGINS = """
import asyncio, atexit, multiprocessing, os, signal, subprocess, sys, threading, time

FRAMES = 5

def forever(*_):
    while True:
        signal.pause()

def numbers(ctx):
    yield from range(FRAMES)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def child(what, ctx):
    "The exit code of a forked child that does this."
    pid = os.fork()
    if pid:
        return ended(pid)
    if what == "exits with 0": sys.exit(0)
    if what == "exits with 7": sys.exit(7)
    if what == "exits with None": sys.exit()
    if what == "exits with text": sys.exit("why")
    if what == "ends hard": os._exit(5)
    if what == "raises": raise ValueError("in the child")
    if what == "raises KeyboardInterrupt": raise KeyboardInterrupt
    if what == "sends": ctx.send("of the child")
    if what == "publishes": ctx.publish("topic", "of the child")
    if what == "is told to end":
        os.kill(os.getpid(), signal.SIGTERM)
        forever()
    if what == "is interrupted":
        os.kill(os.getpid(), signal.SIGINT)
        forever()
    return None

def pool(context):
    workers = multiprocessing.get_context(context).Pool(2)
    found = workers.map(abs, [-1, -2])
    workers.terminate()
    workers.join()
    return found

def process(context):
    one = multiprocessing.get_context(context).Process(target=forever)
    one.start()
    one.terminate()
    one.join()
    return one.exitcode

def executed():
    one = subprocess.Popen(["sleep", "3600"])
    one.terminate()
    return one.wait()

def work(what, ctx):
    kind, _, detail = what.partition(" of ")
    if kind == "pool": return pool(detail)
    if kind == "process": return process(detail)
    if kind == "program": return executed()
    return child(what, ctx)

class Plain:
    def __init__(self): self.seen = []
    def on_frame(self, frame, ctx):
        self.seen.append([frame.value(), work(ctx.params["what"], ctx)])
    def on_stop(self): return self.seen

class Waiting(Plain):
    async def on_frame(self, frame, ctx):
        await asyncio.sleep(0)
        Plain.on_frame(self, frame, ctx)

class Source:
    def produce(self, ctx):
        for n in range(FRAMES):
            yield [n, work(ctx.params["what"], ctx)]

class Keep(Plain):
    def on_frame(self, frame, ctx): self.seen.append(frame.value())

class AtTheEnd:
    def on_frame(self, frame): pass
    def on_stop(self):
        def late():
            one = multiprocessing.get_context("fork").Process(target=forever)
            one.start()
            one.terminate()
            one.join()
            print("the", "end:", one.exitcode, ended_of_returning(), file=sys.stderr, flush=True)
        atexit.register(late)

def ended_of_returning():
    pid = os.fork()
    if pid:
        return ended(pid)
    sys.exit(3)  # Python ignores this in an atexit handler
"""

CODES = {
    "exits with 0": 0,
    "exits with 7": 7,
    "exits with None": 0,
    "exits with text": 1,
    "ends hard": 5,
    "raises": 1,
    "raises KeyboardInterrupt": 1,
    "sends": 1,
    "publishes": 1,
    "returns": 1,
    "is told to end": -signal.SIGTERM,
    "is interrupted": 1,
    "pool of fork": [1, 2],
    "pool of forkserver": [1, 2],
    "process of fork": -signal.SIGTERM,
    "process of spawn": -signal.SIGTERM,
    "program": -signal.SIGTERM,
}

NOT_ASYNCHRONOUS = {"sends"}
"""There a send is awaited."""


@pytest.mark.parametrize("what", CODES)
@pytest.mark.parametrize("entry", ["Plain", "Waiting"])
class TestAChildOfACallback:
    def test_ends_and_its_parent_handles_every_frame(self, daemon, configure, plugin, entry, what):
        if entry == "Waiting" and what in NOT_ASYNCHRONOUS:
            pytest.skip("sends of asynchronous plugins are awaited")
        uri = plugin(PLUGINS)
        results = daemon.run(
            configure("a", f"{uri}:numbers", "ab>b"), configure("b", f"{uri}:{entry}", "ab<a", params={"what": what})
        )
        assert results["b"] == [[n, CODES[what]] for n in range(5)]

    def test_ends_in_a_flow_of_one_process_too(self, inproc, entry, what):
        if entry == "Waiting" and what in NOT_ASYNCHRONOUS:
            pytest.skip("sends of asynchronous plugins are awaited")
        code, nodes, err = inproc(["numbers", entry], what)
        assert code == 0, err
        assert nodes["n1"] == [[n, CODES[what]] for n in range(5)]


@pytest.mark.parametrize("what", ["exits with 0", "raises", "returns", "pool of fork"])
class TestAChildOfASource:
    def test_ends_and_its_parent_makes_every_item(self, daemon, configure, plugin, what):
        uri = plugin(PLUGINS)
        results = daemon.run(
            configure("a", f"{uri}:Source", "ab>b", params={"what": what}), configure("b", f"{uri}:Keep", "ab<a")
        )
        assert results["b"] == [[n, CODES[what]] for n in range(5)]

    def test_ends_in_a_flow_of_one_process_too(self, inproc, what):
        code, nodes, err = inproc(["Source", "Keep"], what)
        assert code == 0, err
        assert nodes["n1"] == [[n, CODES[what]] for n in range(5)]


@pytest.mark.parametrize("entry", ["Plain", "Waiting"])
def test_a_child_does_not_try_its_parents_frame_again(daemon, configure, plugin, entry):
    uri = plugin(PLUGINS)
    results = daemon.run(
        configure("a", f"{uri}:numbers", "ab>b"),
        configure("b", f"{uri}:{entry}", "ab<a", params={"what": "raises"}, qos={"retry": 3}),
    )
    assert results["b"] == [[n, 1] for n in range(5)]


def test_a_child_that_is_forked_at_the_end_has_no_handlers_of_the_end_and_does_not_go_on_with_it(
    daemon, configure, plugin
):
    uri = plugin(PLUGINS)
    daemon.run(configure("a", f"{uri}:numbers", "ab>b"), configure("b", f"{uri}:AtTheEnd", "ab<a"))
    assert daemon.stderr.count("the end:") == daemon.stderr.count("the end: -15 0") == 1


@pytest.fixture
def inproc(tmp_path):
    """Runs a flow of two nodes in one process: exit code, results, stderr."""

    def run(entries, what):
        (tmp_path / "plugins.py").write_text(PLUGINS)
        manifests = [
            {
                "plugin_id": f"n{i}",
                "node_id": f"n{i}",
                "version": "0",
                "artifact": {"kind": "Python", "uri": f"python://plugins.py:{entry}"},
                "params": {"what": what},
            }
            for i, entry in enumerate(entries)
        ]
        route = {"from": "n0", "to": "n1", "plane": "data", "topic": "t", "schema_ver": "v1"}
        route["content_type"] = "application/json"
        flow = {"manifests": manifests, "routes": [route], "schemas": []}
        (tmp_path / "flow.json").write_text(json.dumps(flow))
        command = [sys.executable, "-m", "chronetix.nodeworker.inprocess.command"]
        done = subprocess.run(
            [*command, str(tmp_path / "flow.json"), "-o", "json"], capture_output=True, text=True, check=False
        )
        return done.returncode, json.loads(done.stdout)["nodes"] if done.stdout else None, done.stderr

    return run


class TestSignals:
    def test_that_a_plugin_handles_itself_stay_handled_in_its_children(self, plugin_of_its_own_handler):
        assert plugin_of_its_own_handler == 9

    def test_are_blocked_in_the_parent_no_longer_than_the_fork(self):
        before = children.handle(signal.SIGTERM, lambda *_: None)
        try:
            one = multiprocessing.get_context("fork").Process(target=os.getpid)
            one.start()
            one.join()
            assert one.exitcode == 0
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
        finally:
            children.put_back(signal.SIGTERM, before)


@pytest.fixture
def plugin_of_its_own_handler():
    """The exit code of a child whose parent has installed a handler over ours."""
    before = children.handle(signal.SIGTERM, lambda *_: None)
    try:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        children.put_back(signal.SIGTERM, before)
