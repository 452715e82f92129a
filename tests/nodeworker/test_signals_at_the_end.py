"""SIGTERM that comes while a worker ends leaves the process less time, and interrupts nothing of its end.

The plugin of these tests traces its own worker: as soon as the node has ended, each line that Python executes is
preceded by a SIGTERM, until the interpreter is taken down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.messages import Fault, Finished

PLUGIN = """
    import atexit, signal, sys

    LINES = 100

    class Sink:
        {a}def on_start(self, ctx):
            self.into = ctx.params["into"]
            self.file = open(self.into + "/lines", "w")
            self.circle = self
            self.sent = 0
            atexit.register(self.at_exit)

        {a}def on_frame(self, frame, ctx):
            if frame.value() == LINES - 1:
                {last}
            print(frame.value(), file=self.file)

        {a}def on_stop(self, ctx):
            self.trace_from(sys._getframe())

        def trace_from(self, frame):
            while frame is not None:
                frame.f_trace = self.signal_at_each_line
                frame = frame.f_back
            sys.settrace(self.signal_at_each_line)

        def signal_at_each_line(self, frame, event, arg):
            current = sys.modules["__main__"]._current
            if event == "line" and current is not None and current._leaving:
                self.sent += 1
                signal.raise_signal(signal.SIGTERM)
            return self.signal_at_each_line

        def at_exit(self):
            with open(self.into + "/sent", "w") as file:
                print(self.sent, file=file)
"""
NUMBERS = """
    def numbers(ctx):
        yield from range(100)
"""
MINUTE_NS = 60 * 10**9
LAST = {"finishes": "pass", "fails": "self.trace_from(sys._getframe()); raise ValueError('the last one')"}


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("a", ["", "async "], ids=["sync", "async"])
def test_a_signal_before_each_line_of_the_end_changes_nothing(
    a: str, last: str, daemon: Any, configure: Any, plugin: Any, tmp_path: Path
) -> None:
    source = plugin(NUMBERS) + ":numbers"
    sink = plugin(PLUGIN.format(a=a, last=LAST[last])) + ":Sink"
    daemon.start(configure("a", source, "ab>b"))
    worker = daemon.start(
        configure("b", sink, "ab<a", params={"into": str(tmp_path)}, terminate_ns=MINUTE_NS, end_ns=MINUTE_NS)
    )
    daemon.wire()
    daemon.begin()
    daemon.until(lambda: not worker.open)
    assert worker.wait() == (0 if last == "finishes" else 1), daemon.stderr
    if last == "finishes":
        assert worker.said(Finished)
        assert not worker.said(Fault)
    else:
        assert [(fault.phase, fault.error) for fault in worker.said(Fault)] == [("frame", "ValueError")]
    written = (tmp_path / "lines").read_text().split()
    assert written == [str(n) for n in range(100 if last == "finishes" else 99)]
    assert int((tmp_path / "sent").read_text()) > 20
