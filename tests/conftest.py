"""A leak check around every test: descriptors, child processes, threads, mappings and named shared memory.

A test that leaves something behind fails at its end, with a list of what is left. Nothing here waits: a test ends what
it has started. One check costs a millisecond, and there are thousands of tests; so the garbage collector does not scan
objects that are older than the test, and the kernel is asked only for the children of this process.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, Phase, settings

from chronetix.shm.names import maker
from tests.warm import Warm

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
"""If this variable were set, each program that a test starts would compile all of its imports again, which takes half
of its time."""

settings.register_profile("chronetix", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("chronetix")
"""How long an example takes says nothing on a machine that others use too."""
settings.register_profile("mutants", settings.get_profile("chronetix"), phases=(Phase.explicit, Phase.generate))
"""Of a mutant nobody wants the smallest example."""


LONGEST = (
    "tests/bench/",
    "tests/chaos/",
    "tests/chronetixd/core/test_wiring_search.py",
    "tests/sdk/",
    "tests/shm/test_native.py",
    "tests/shm/test_older_kernels.py",
    "tests/shm/test_sanitized_extension.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that at the end no process waits for one of them."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


MAX_LOG_BYTES = 32 << 10
"""How many of the last bytes of each daemon's log a failed test shows."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the daemons of a failed test."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and folder is not None:
        for log in sorted(folder.rglob("daemon.log")):
            text = log.read_bytes()[-MAX_LOG_BYTES:].decode(errors="replace")
            report.sections.append((f"{log.relative_to(folder)} after {report.when}", text))
    return report


def open_descriptors() -> dict[int, str]:
    """Return what each descriptor refers to, without the descriptor that lists them."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue
    return found


def children_of(pid: int | str) -> set[int]:
    """Return the children of all threads of a process, including zombies."""
    found: set[int] = set()
    for listed in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            found.update(map(int, Path(listed).read_text().split()))
    return found


def child_processes() -> set[int]:
    """Return every process that this one has started and not reaped, and their descendants."""
    if not KERNEL_LISTS_CHILDREN:
        return {child.pid for child in psutil.Process().children(recursive=True)}
    found: set[int] = set()
    todo = children_of("self")
    while todo:
        found |= todo
        todo = set().union(*map(children_of, todo)) - found
    return found


KERNEL_LISTS_CHILDREN = Path("/proc/thread-self/children").exists()
"""Whether the kernel lists children (CONFIG_PROC_CHILDREN); otherwise the parent of each process of the machine is
read."""


def shared_mappings() -> list[str]:
    """Return rings, credits and arenas that are still mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split()[5] for line in lines if "/memfd:" in line or "/dev/shm/chronetix" in line]


def named_segments() -> set[str]:
    """Return names in /dev/shm that this process has made. (Other tests run at the same time.)"""
    makers = {name: maker(name) for name in os.listdir("/dev/shm")}
    return {name for name, made_by in makers.items() if made_by is not None and made_by.pid == os.getpid()}


@pytest.fixture(autouse=True, scope="session")
def signals_are_as_a_terminal_leaves_them() -> None:
    """Programs that tests start ignore and block no signal, also when pytest runs below nohup or in the background of a
    script: each such signal gets its default. (Python ignores SIGPIPE and SIGXFSZ itself, and subprocess resets
    them.)"""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for each in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(each) is signal.SIG_IGN:
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else lambda *_: None)


@pytest.fixture(scope="session")
def warm_programs(signals_are_as_a_terminal_leaves_them: None) -> Iterator[Warm]:
    """Starts programs without the time of their imports."""
    warm = Warm()
    yield warm
    warm.close()


@pytest.fixture
def warm(request: pytest.FixtureRequest, warm_programs: Warm) -> Warm | None:
    """None in tests that are marked ``cold``, which start programs as a user does."""
    return None if request.node.get_closest_marker("cold") else warm_programs


@pytest.fixture(autouse=True, scope="module")
def collects_everything() -> Iterator[None]:
    """Collect cycles of a module's fixtures at the end of the module, so that no later test sees them."""
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # the next collection goes through what the test makes, not through all that was imported
    descriptors, children = open_descriptors(), child_processes()
    threads, mappings, names = set(threading.enumerate()), shared_mappings(), named_segments()
    yield
    for thread in threading.enumerate():
        if thread.name == "closer":  # closes what may wait, then ends by itself (chronetixd.loop.closing)
            thread.join(60)
    gc.collect()
    leaks = []
    new_descriptors = {
        fd: target
        for fd, target in open_descriptors().items()
        if descriptors.get(fd) != target and target != "/dev/urandom"
    }
    if new_descriptors:
        leaks.append(f"descriptors {new_descriptors}")
    if new_children := child_processes() - children:
        leaks.append(f"processes {sorted(new_children)}")
    if new_threads := set(threading.enumerate()) - threads:
        leaks.append(f"threads {[thread.name for thread in new_threads]}")
    if len(shared_mappings()) > len(mappings):
        leaks.append(f"mappings {shared_mappings()[len(mappings) :]}")
    if new_names := named_segments() - names:
        leaks.append(f"shared memory {sorted(new_names)}")
    assert not leaks, "the test left behind: " + "; ".join(leaks)
