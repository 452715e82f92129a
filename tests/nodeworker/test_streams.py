"""What a worker prints while nobody reads: no EPIPE for whoever prints, and every byte is there or counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BEGINS = """
import fcntl, json, os, subprocess, sys, termios
from struct import unpack
from chronetix.nodeworker.process.streams import Streams

def left(fd):
    return unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]

streams = Streams()
streams.hold()
os.write(1, b"held\\n")
sys.stdin.readline()  # the reader is gone by now
"""

ENDS = """
sys.stdout.flush()
streams.end()
told = {name: streams.lost.get(name, 0) for name in ("stdout", "stderr")}
there = dict(zip(("stdout", "stderr"), map(left, streams.shown)))
open(sys.argv[1], "w").write(json.dumps([told, there]))
streams.silence()
print("to nowhere" * 1_000_000, flush=True)
streams.close()
"""

PRINTERS = {
    "nobody": ("", 0, 0),
    "little": ("streams.begin(); print('x' * 99)", 100, 0),
    "little, before it is known that the daemon is gone": (
        "print('x' * 99); sys.stdout.flush(); streams.begin()",
        100,
        0,
    ),
    "much": ("streams.begin(); [print('x' * 99) for _ in range(100_000)]", 10_000_000, 0),
    "in pieces that fill half a page": (
        "streams.begin(); [os.write(1, bytes(2049)) for _ in range(2000)]",
        4_098_000,
        0,
    ),
    "at once": ("streams.begin(); os.write(2, bytes(10_000_000))", 0, 10_000_000),
    "a child": (
        "streams.begin(); subprocess.run(['sh', '-c', 'yes child | head -n 100000 >&2'], check=True)",
        0,
        600_000,
    ),
    "a child that was there before": (
        "child = subprocess.Popen(['sh', '-c', 'read go; yes child | head -n 100000'], stdin=subprocess.PIPE);"
        "streams.begin(); child.communicate(b'go'); assert child.returncode == 0",
        600_000,
        0,
    ),
}


@pytest.mark.parametrize("who", PRINTERS)
def test_whoever_prints_without_a_reader_goes_on_and_each_byte_is_there_or_counted(who: str, tmp_path: Path) -> None:
    does, *printed = PRINTERS[who]
    report = tmp_path / "report"
    out, err = os.pipe(), os.pipe()
    command = [sys.executable, "-c", BEGINS + does + ENDS, str(report)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out[1], stderr=err[1]) as worker:
        os.close(out[1])
        os.close(err[1])
        assert os.read(out[0], 5) == b"held\n"
        os.close(out[0])
        os.close(err[0])
        worker.communicate(b"go\n")
    assert worker.returncode == 0
    told, there = json.loads(report.read_text())
    assert [told[name] + there[name] for name in ("stdout", "stderr")] == printed
    if max(printed) < 10_000:
        assert told == {"stdout": 0, "stderr": 0}, "what fits is kept"


EMPTIED = """
import chronetix.nodeworker.process.streams as module
real, once = module._waiting, [True]

def emptied_meanwhile(fd):
    there = real(fd)
    if once and there and sys._getframe(1).f_code.co_name == "_make_room":
        once.pop()
        os.read(fd, 1 << 20)
        return 1 << 20
    return there

module._waiting = emptied_meanwhile
streams.begin()
print("to be taken", flush=True)
while once: pass
[print("x" * 99) for _ in range(100_000)]
sys.stdout.flush()
streams.silence()
streams.close()
"""


def test_a_daemon_that_empties_a_pipe_just_now_does_not_end_the_thread_that_keeps_room() -> None:
    out, err = os.pipe(), os.pipe()
    command = [sys.executable, "-c", BEGINS + EMPTIED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out[1], stderr=err[1]) as worker:
        for end in (out[1], err[1]):
            os.close(end)
        assert os.read(out[0], 5) == b"held\n"
        for end in (out[0], err[0]):
            os.close(end)
        worker.communicate(b"go\n")
    assert worker.returncode == 0


def test_what_is_no_pipe_is_left_alone(tmp_path: Path) -> None:
    program = "from chronetix.nodeworker.process.streams import Streams\n"
    program += "s = Streams()\ns.hold()\nassert not s.shown\ns.begin()\ns.close()"
    with (tmp_path / "file").open("w") as file:
        done = subprocess.run([sys.executable, "-c", program + "\nprint('there')"], stdout=file, stderr=file)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "there\n"
