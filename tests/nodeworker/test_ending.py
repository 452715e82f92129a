"""The end of an interpreter, in programs of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FORKED = """
import atexit, logging, os, sys, weakref
from chronetix.nodeworker import _clone
from chronetix.nodeworker.engine import ending

class Thing: ...
parents = Thing()
weakref.finalize(parents, print, "finalizer of the parent", flush=True)
atexit.register(print, "handler of the parent", flush=True)
atexit.unregister(logging.shutdown)
logging.shutdown = lambda: print("logging", flush=True)
ending.share()
pid, _ = _clone.fork(False)
if pid == 0:
    ending.forked()
    atexit.register(print, "handler of the child", flush=True)
    thing = Thing()
    weakref.finalize(thing, print, "finalizer of the child", flush=True)
    ending.Shutdown(3, 10, print).run()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0x40000000)[1]), flush=True)
os._exit(0)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_a_forked_process_runs_its_own_handlers_and_those_of_modules_and_none_of_its_parent() -> None:
    done = run(FORKED)
    assert done.stderr == ""
    *said, code = done.stdout.splitlines()
    assert sorted(said) == ["finalizer of the child", "handler of the child", "logging"]
    assert code == "3"


ALONE = """
import os, sys
from chronetix.nodeworker.engine.ending import Shutdown
{before}
Shutdown(3, {limit}, lambda text: None).run()
"""


@pytest.mark.parametrize(
    "before",
    [
        "sys.stdout.close()",
        "sys.stdout = None; sys.stderr = None",
        "sys.stdout = object()",
        "print('x', end=''); os.close(1)",
        "print('x', end=''); os.close(1); os.close(2)",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)",
        "import threading; threading.stack_size(1 << 40)",
        "import atexit; atexit.register(lambda: 1 / 0)",
        "import atexit; atexit.register(sys.exit, 7)",
    ],
)
def test_what_is_done_ends_with_its_code_whatever_became_of_its_streams(before: str) -> None:
    assert run(ALONE.format(before=before, limit=30)).returncode == 3


@pytest.mark.parametrize(
    ("before", "named"),
    [
        (
            "import threading, time; threading.Thread(target=lambda: time.sleep(99), name='slow').start()",
            "thread 'slow'",
        ),
        ("import atexit, time; atexit.register(time.sleep, 99)", "an atexit handler"),
        (
            "import multiprocessing as m, time; m.set_start_method('fork'); m.Process(target=time.sleep, args=(2,), "
            "name='child').start()",
            "child (pid",
        ),
        ("class C:\n    def __del__(self):\n        while True: pass\nc = C()", "a finalizer of an object"),
        ("import atexit, ctypes; atexit.register(ctypes.PyDLL(None).sleep, 99)", "has kept the interpreter"),
    ],
)
def test_what_hangs_is_named_and_ended(before: str, named: str) -> None:
    done = run(ALONE.format(before=before, limit=0.2))
    assert done.returncode == 1
    assert "the process did not end within 0.2 s" in done.stderr
    assert named in done.stderr


def test_a_signal_that_comes_at_the_end_leaves_it_less_time() -> None:
    hurried = """
import atexit, os, signal, time
from chronetix.nodeworker.engine import ending
end = ending.Shutdown(3, 1000, lambda text: None)
ending.signals(end, 0.2)
atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), os.kill(os.getpid(), signal.SIGTERM), time.sleep(99)))
end.run()
"""
    done = run(hurried)
    assert done.returncode == 1
    assert "an atexit handler does not return from <lambda>" in done.stderr
