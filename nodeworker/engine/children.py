"""Child processes that a plugin forks: they are not the node.

Rules: a child gets the default signal dispositions back, unless the plugin has set one of its own; a signal that comes
to a child before that waits for it. A child that comes back from the plugin's callback, however it does, ends there: it
does not go on with the node's work, and speaks to nobody in the node's name. :class:`Owner` tells the two apart.

Only ``fork`` needs this: what a process executes (``subprocess``, the ``spawn`` and ``forkserver`` of
``multiprocessing``) has no handlers of its parent. A raw clone (``_clone.fork``) makes a new node, not a child of one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable
from typing import Any, NoReturn

from chronetix.nodeworker import _clone
from chronetix.nodeworker.api.tracebacks import told

OK, FAILED = 0, 1

_DEFAULTS: dict[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}

STOPPING = tuple(_DEFAULTS)
"""Signals that mean: end, orderly."""

_generation = 0
"""How many forks of a Python process lie between its first ancestor here and this one."""

_handlers: dict[signal.Signals, Any] = {}
"""Handlers of the node that are installed."""

_before_fork = threading.local()
"""``mask``: the signals that this thread had blocked before it forked."""


class Owner:
    """The process that has made this object."""

    __slots__ = ("_generation",)

    def __init__(self) -> None:
        self._generation = _generation

    @property
    def is_here(self) -> bool:
        """This is that process, and not a child that it has forked."""
        return self._generation == _generation

    def check(self) -> None:
        """Raises RuntimeError in a forked child."""
        if self._generation != _generation:
            raise RuntimeError(
                "this is a forked child of the node's process: only the node's own process sends, publishes and asks; "
                "let the parent send what the child has computed"
            )


def handle(number: signal.Signals, handler: Any) -> Any:
    """Install a ``handler`` that forked children do not inherit; the one that was there before, to be put back by
    :func:`put_back`. From the main thread."""
    before = signal.signal(number, handler)
    _handlers[number] = handler
    return before


def put_back(number: signal.Signals, before: Any) -> None:
    """The handler that was there before :func:`handle`."""
    _handlers.pop(number, None)
    signal.signal(number, before)


def ring_on(numbers: Iterable[int], descriptor: int) -> None:
    """What sleeps on the eventfd ``descriptor`` (-1: nobody) is woken by these signals."""
    for number in numbers:
        _clone.ring_on_signal(number, descriptor)


def end_child(reason: BaseException | None) -> NoReturn:
    """End this forked child, which has come back from the plugin: with the status that its ``sys.exit`` asks for, else
    1 after the traceback of ``reason``."""
    status = reason.code if isinstance(reason, SystemExit) else FAILED
    if reason is not None and not isinstance(reason, SystemExit):
        print(told(reason), end="", file=sys.stderr)
    elif status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit((status & 0xFF) if isinstance(status, int) else OK if status is None else FAILED)


def _forking() -> None:
    if _handlers:
        _before_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def _forked_here() -> None:
    mask, _before_fork.mask = getattr(_before_fork, "mask", None), None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _forked_there() -> None:
    global _generation
    _generation += 1
    if _handlers:
        ring_on(STOPPING, -1)
        for number, handler in _handlers.items():
            if signal.getsignal(number) == handler:
                signal.signal(number, _DEFAULTS[number])
        _handlers.clear()
    _forked_here()


os.register_at_fork(before=_forking, after_in_parent=_forked_here, after_in_child=_forked_there)
