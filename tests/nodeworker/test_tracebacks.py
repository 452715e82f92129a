"""Tracebacks: frames of the plugin and of what it has called, without ours and those of the event loop."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import operator
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from chronetix.nodeworker.api.tracebacks import FULL, told, users_frame
from chronetix.nodeworker.engine.waits import Waits
from chronetix.nodeworker.inprocess import testing


def places(text):
    """The files and functions of a traceback, without the test that has caught it."""
    found = re.findall(r'File "([^"]*)", line \d+, in (\S+)', text)
    return [(os.path.basename(file), name) for file, name in found if name != "failure"]


def failure(plugin, frames=(1,), **options):
    """What running ``plugin`` raises, as it is told."""
    with pytest.raises(Exception) as caught:
        testing.run(plugin, list(frames), **options)
    return told(caught.value)


HERE = os.path.basename(__file__)


async def helper():
    await asyncio.sleep(0)
    raise ValueError("deep down")


class TestAnAsynchronousPlugin:
    def test_is_shown_without_the_event_loop_that_runs_it(self):
        async def on_frame(frame):
            await helper()

        text = failure(on_frame)
        assert places(text) == [(HERE, "on_frame"), (HERE, "helper")]
        assert re.search(r"\(\d+ frames of chronetix are not shown: CHRONETIX_TRACEBACK=full shows them\)\n$", text)

    def test_keeps_the_frames_of_what_it_has_called_itself(self):
        async def on_frame(frame):
            await asyncio.wait_for(helper(), 30)

        assert places(failure(on_frame)) == [(HERE, "on_frame"), ("tasks.py", "wait_for"), (HERE, "helper")]

    def test_of_a_group_of_tasks_each_is_shown(self):
        async def on_frame(frame, ctx):
            async with asyncio.TaskGroup() as group:
                group.create_task(helper())
                group.create_task(ctx.send(object()))

        text = failure(on_frame)
        assert (HERE, "helper") in places(text)
        assert "payload-unencodable" in text
        assert {name for _, name in places(text)} <= {"on_frame", "helper", "__aexit__"}

    def test_that_leaves_a_task_which_fails_unseen_finds_it_in_the_log_of_asyncio(self, caplog):
        async def on_frame(frame):
            asyncio.create_task(helper(), name="the left one")  # noqa: RUF006 - that is the test
            for _ in range(5):
                await asyncio.sleep(0)

        with caplog.at_level(logging.ERROR, "asyncio"):
            testing.run(on_frame, [1])
        (record,) = [each for each in caplog.records if each.name == "asyncio"]
        assert "Task exception was never retrieved" in record.getMessage()
        assert "the left one" in record.getMessage()
        assert places(record.getMessage()) == [(HERE, "helper")]


class TestAPluginWithoutFrames:
    @pytest.mark.parametrize(
        ("plugin", "error"),
        [
            (functools.partial(operator.add, 1), "TypeError: unsupported operand"),
            (functools.partial(max, 1), "TypeError: '>' not supported"),
            (lambda frame: object(), "payload-unencodable"),
        ],
        ids=["partial", "builtin", "returned"],
    )
    def test_leaves_the_exception(self, plugin, error):
        text = failure(plugin)
        assert places(text) == []
        assert error in text
        assert "frames of chronetix are not shown" in text

    def test_that_is_a_function_of_the_library_shows_the_frames_of_that(self):
        assert [file for file, _ in places(failure(functools.partial(json.loads)))] == ["__init__.py"]


def test_the_cause_of_an_error_is_folded_like_the_error_and_a_cause_of_ours_is_in_its_text():
    def on_frame(frame, ctx):
        try:
            ctx.send(object())
        except Exception as reason:
            raise RuntimeError("no") from reason

    text = failure(on_frame)
    assert set(places(text)) == {(HERE, "on_frame")}
    assert text.count("direct cause") == 1


def test_all_frames_are_shown_on_request(monkeypatch):
    monkeypatch.setenv(FULL, "full")

    async def on_frame(frame):
        await helper()

    text = failure(on_frame)
    assert "nodeworker" in text
    assert "not shown" not in text


def test_a_defect_of_ours_in_which_no_plugin_has_a_part_is_shown_whole():
    with ThreadPoolExecutor(1) as pool:
        reason = pool.submit(Waits, None, None).exception()
    assert [file for file, _ in places(told(reason))] == ["thread.py", "waits.py"]
    assert users_frame(reason) is None


def test_a_forked_child_that_raises_shows_the_plugins_frames(capfd):
    def on_frame(frame):
        pid = os.fork()
        if pid == 0:
            raise ValueError("in the child")
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert testing.run(on_frame, [1]).sent == [1]
    assert places(capfd.readouterr().err)[-1] == (HERE, "on_frame")


class TestAWorker:
    @pytest.mark.parametrize("kind", ["def", "async def"])
    def test_shows_the_plugins_frames_alone(self, daemon, configure, plugin, kind):
        source = plugin(f"""
            class Plugin:
                {kind} on_start(self, ctx):
                    deep()
            def deep(): raise ValueError("here")
        """)
        worker = daemon.start(configure("a", source + ":Plugin"))
        daemon.wire()
        daemon.begin()
        text = daemon.fault(worker).traceback
        assert [name for _, name in places(text)] == ["on_start", "deep"]
        assert not re.search(r"uvloop|asyncio|nodeworker/", text)
