"""The orderly end of an interpreter that has run plugins: its own, in order, and limited in time.

Rules:

* What Python does at its end is done: threads that are no daemons are waited for, ``atexit`` handlers run (and with
  them ``weakref.finalize``, temporary folders, ``multiprocessing``), files are flushed, objects and modules are
  finalized.
* All of it together has one limit. Whatever hangs then is named, with the place where it is; then the process exits.
* A process that was forked with everything imported takes down only what came after that: the rest would cost more than
  all it has done (copied pages), and there is nothing in it that has to be finalized.
"""

from __future__ import annotations

import _thread
import atexit
import faulthandler
import gc
import io
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType, ModuleType
from typing import NoReturn

from chronetix.nodeworker import _clone
from chronetix.nodeworker.api.tracebacks import is_users
from chronetix.nodeworker.engine import children

TRACKER_S = 1.0
"""How long to wait for multiprocessing's resource tracker, which waits for every process that it knows to end."""

DEAF_S = 0.5
"""How much longer a thread of Python's may need to say what hangs, before another one says it without Python."""

SHORTEST_S = 0.05

FAILED = 1
"""Exit code of a process that did not end in time."""

THREADS, HANDLERS, PLUGIN, INTERPRETER = range(4)
"""The parts of the end: threads, atexit handlers, the plugin with all that only it refers to, all the rest."""

DUMP_S = 0.2
"""For the stacks, which are printed where only an interpreter that is being taken down could tell more."""

WITHOUT_PYTHON = {
    THREADS: "while it waited for its threads, native code has kept the interpreter",
    HANDLERS: "in an atexit handler native code has kept the interpreter",
    PLUGIN: "in a finalizer of the plugin native code has kept the interpreter",
    INTERPRETER: "a finalizer of an object or a module (__del__, weakref), or a library's own end, does not return",
}

Say = Callable[[str], object]
"""Told what hangs, in a thread of its own; the process exits after that."""

Words = Callable[[str], tuple[int, bytes]]
"""A socket, -1 for none, and what is to be sent there to say so without Python."""

_shared: dict[str, ModuleType] = {}
"""Modules that are not taken down."""


_begun = False


def begun() -> bool:
    """A SystemExit that is under way is that of :meth:`Shutdown.run`."""
    return _begun


def share() -> None:
    """All modules that are there are for processes that are about to be forked: none of them takes them down."""
    _shared.update(sys.modules)


def forked() -> None:
    """This process was forked to begin a life of its own: whatever its parent wanted to do at its end is not for it.
    What modules of the standard library do for whoever uses them is."""
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    for name, handler in (("logging", "shutdown"), ("multiprocessing.util", "_exit_function")):
        if name in sys.modules:
            atexit.register(getattr(sys.modules[name], handler))


class Shutdown:
    """The end of this process with ``code``, within ``limit_s``. From the main thread; once."""

    def __init__(
        self, code: int, limit_s: float, say: Say, words: Words | None = None, let_go: Callable[[], None] = lambda: None
    ) -> None:
        """``let_go`` is called when threads and handlers have ended: nobody needs the plugin any more."""
        self._code = code
        self._limit_s = limit_s
        self._due = time.monotonic() + max(limit_s, SHORTEST_S)
        self._say: Say = say
        self._words = words or _nothing
        self._let_go = let_go
        self._part = THREADS
        self._main = threading.get_ident()
        self._frame: FrameType | None = None
        self._stir = _thread.allocate_lock()
        self._stir.acquire()
        self._watched = _thread.allocate_lock()
        self._owner = children.Owner()

    def hurry(self, seconds: float) -> None:
        """There is no more time than this. From a signal handler."""
        self._due = min(self._due, time.monotonic() + max(seconds, SHORTEST_S))
        self._arm()
        with suppress(RuntimeError):
            self._stir.release()

    def run(self) -> NoReturn:
        """All of it. Raises SystemExit, with which the interpreter's own end begins."""
        global _begun
        _begun = True
        self._frame = sys._getframe()
        self._arm()
        self._watched.acquire()
        try:
            _thread.start_new_thread(self._watch, ())
        except RuntimeError:  # there may be no more threads: then nobody says where it hangs, only that
            self._watched.release()
        threading._shutdown()  # type: ignore[attr-defined]
        self._part = HANDLERS
        atexit._run_exitfuncs()
        if not self._owner.is_here:  # an atexit handler has forked, and this is the child
            children.end_child(SystemExit(self._code))
        _end_tracker(max(SHORTEST_S, min(TRACKER_S, self._due - time.monotonic())))
        self._part = PLUGIN
        _flush_files()
        flush()
        self._let_go()
        self._part = INTERPRETER
        with suppress(RuntimeError):
            self._stir.release()
        with self._watched:  # a thread that is left in its middle keeps all that it refers to from being finalized
            pass
        self._arm()
        with suppress(Exception):
            faulthandler.dump_traceback_later(max(SHORTEST_S, self._due - time.monotonic()), file=2)
        self._leave_shared()
        self._frame = None
        self._say = self._words = _nothing
        self._let_go = _let_go_of_nothing
        _clone.end_with(self._code)
        raise SystemExit(self._code)

    def _leave_shared(self) -> None:
        for name, module in _shared.items():
            if name not in ("sys", "builtins", "__main__") and sys.modules.get(name) is module:
                del sys.modules[name]

    def _arm(self) -> None:
        """If nothing else says what hangs: without Python."""
        left = max(0.0, self._due - time.monotonic())
        text = self._told(WITHOUT_PYTHON[self._part])
        last = self._part == INTERPRETER
        control, frame = self._words(text) if last else (-1, b"")
        with suppress(OSError):
            within = left + (DUMP_S if last else DEAF_S)
            _clone.limit_end(within, FAILED, control, frame, f"chronetix: {text}\n".encode())

    def _watch(self) -> None:
        """The thread that says what hangs while there is an interpreter."""
        try:
            self._watch_parts()
        finally:
            self._watched.release()

    def _watch_parts(self) -> None:
        while self._part != INTERPRETER:
            left = self._due - time.monotonic()
            if left <= 0:
                exit_hung(self._told(self._hangs()), self._say)
            self._stir.acquire(timeout=left)

    def _told(self, what: str) -> str:
        return told(self._limit_s, what)

    def _hangs(self) -> str:
        frames = sys._current_frames()
        if self._part == THREADS:
            waited_for = [each for each in threading.enumerate() if not each.daemon and each.ident != self._main]
            if waited_for:
                return "; ".join(f"thread {t.name!r} {place(frames.get(t.ident or 0))}" for t in waited_for)
        here = place(frames.get(self._main), self._frame)
        return f"a finalizer of the plugin {here}" if self._part == PLUGIN else f"an atexit handler {here}{_children()}"


def told(limit_s: float, what: str) -> str:
    """That a process has not ended within its limit, because of ``what``."""
    return f"the process did not end within {limit_s:.3g} s and was ended: {what}"


def exit_hung(text: str, say: Say) -> NoReturn:
    """Exit at once, after stderr and ``say`` were told what hangs. From any thread."""
    with suppress(Exception):
        print(f"chronetix: {text}", file=sys.stderr, flush=True)
    with suppress(Exception):
        say(text)
    os._exit(FAILED)


def _nothing(_text: str) -> tuple[int, bytes]:
    return -1, b""


def _let_go_of_nothing() -> None:
    pass


def place(frame: FrameType | None, below: FrameType | None = None) -> str:
    """Where something that hangs is: the innermost function of somebody's own, else the innermost; only those called
    from ``below``."""
    frames = []
    while frame is not None and frame is not below:
        frames.append(frame)
        frame = frame.f_back
    own = next((each for each in frames if is_users(each.f_code.co_filename)), None)
    own = own or (frames[0] if frames else None)
    if own is None:
        return "does not return"
    return f"does not return from {own.f_code.co_name} ({own.f_code.co_filename}, line {own.f_lineno})"


def _children() -> str:
    """The child processes that multiprocessing waits for at the end."""
    process = sys.modules.get("multiprocessing.process")
    known: Iterable[object] = getattr(process, "_children", ())
    names = [f"{getattr(each, 'name', '?')} (pid {getattr(each, 'pid', '?')})" for each in list(known)]
    return f"; child processes that were not joined: {', '.join(names)}" if names else ""


def _end_tracker(seconds: float) -> None:
    """Let multiprocessing's resource tracker give back what is left (shared memory, semaphores): it does so when the
    last process that has its pipe ends, and would be ended with this process before it had."""
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    pipe, pid = getattr(tracker, "_fd", None), getattr(tracker, "_pid", None)
    if tracker is None or pipe is None or pid is None:
        return
    tracker._fd = tracker._pid = None
    os.close(pipe)
    with suppress(OSError):
        alive = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(alive, select.POLLIN)
            if poll.poll(seconds * 1000):
                os.waitpid(pid, os.WNOHANG)
                return
        finally:
            os.close(alive)
        print(
            "chronetix: child processes of the plugin live on, so multiprocessing's resource tracker does; shared "
            "memory that was not unlinked stays in /dev/shm",
            file=sys.stderr,
        )


def _flush_files() -> None:
    """Whatever was opened for writing and not closed. Python closes what is in no circle of references itself; of what
    is in one the descriptor may go first, and with it what was written last."""
    for each in gc.get_objects():
        if issubclass(type(each), (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
            with suppress(Exception):
                each.flush()


def flush() -> None:
    """What cannot be flushed (a closed descriptor, an object that only looks like a file) is no failure of the end,
    and is not tried again."""
    for name in ("stdout", "stderr"):
        try:
            stream = getattr(sys, name, None)
            if stream is not None:
                stream.flush()
        except Exception:
            setattr(sys, name, None)


def signals(ending: Shutdown, hurry_s: float) -> None:
    """What is about to end anyway cannot be told to: SIGTERM only leaves it less time, and SIGINT nothing."""
    with suppress(ValueError, OSError):
        children.handle(signal.SIGTERM, lambda *_: ending.hurry(hurry_s))
        children.handle(signal.SIGINT, signal.SIG_IGN)
