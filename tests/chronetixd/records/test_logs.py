"""The daemon's log takes whatever plugins say, and its own end never becomes a flow's."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from chronetixd.records.log_record import CUT, MAX_LINE
from chronetixd.records.logs import Logs, configure


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("fmt", ["json", "console"])
@pytest.mark.parametrize(
    "fields",
    [
        {"method_name": "f", "self": 1, "event": "e", "level": 3, "name": "n"},
        {"exception": {"a": 1}, "stack": 3, "exc_info": True, "stack_info": 1, "timestamp": None},
        {"flow": "elsewhere", "pid": -1, "positional_args": 2, "logger": 5},
    ],
)
def test_a_plugin_may_call_its_fields_what_it_likes(fmt: Any, fields: dict[str, Any]) -> None:
    out, logs = io.StringIO(), Logs()
    configure("debug", fmt, out)
    logs.logged("f", "n", 1, "info", "said", 0, fields)
    assert logs.feed.recent(lambda _: True)[0].fields == fields
    assert "said" in out.getvalue()
    if fmt == "json":
        record = json.loads(out.getvalue())
        assert (record["flow"], record["pid"], record["fields"]) == ("f", 1, fields)


def test_a_record_that_is_too_long_is_cut_and_counted() -> None:
    logs = Logs()
    logs.logged("f", "n", 1, "info", "x" * (MAX_LINE + 1), 0, {"text": "y" * (MAX_LINE + 1)})
    kept = logs.feed.recent(lambda _: True)[0]
    assert kept.line == "x" * MAX_LINE + CUT
    assert "left_out" in kept.fields
    assert logs.cut_lines == 1


def test_a_log_that_nobody_takes_is_lost_quietly() -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    configure("info", "json", Gone())
    Logs().logged("f", "n", 1, "error", "said", 0, {})


def test_a_traceback_has_no_values_of_variables() -> None:
    out = io.StringIO()
    configure("debug", "json", out)
    token = "a worker's token"
    try:
        raise ValueError("wrong")
    except ValueError:
        structlog.get_logger().exception("it failed")
    assert "ValueError" in out.getvalue()
    assert token not in out.getvalue()
