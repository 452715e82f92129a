"""Runs one plugin: what plugin authors use, and the process around it.

A plugin is a function, a generator function or a class with any of ``on_start``, ``on_frame``, ``on_tick``,
``on_message``, ``on_stop`` and ``produce``; it gets a :class:`Context`. The same code runs in a process of its own
(``nodeworker.worker``), in one process with the whole flow (``nodeworker.inproc``) and in unit tests
(``nodeworker.testing``). A program of its own becomes a worker with :func:`serve`.

Names are imported when they are first used: the launcher has to set the environment before numpy comes in.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nodeworker.context import Context
    from nodeworker.errors import RequestFailed
    from nodeworker.message import Message
    from nodeworker.worker import serve
    from protocol.messages import Port, Tick
    from shm import Frame, RouteClosed, WouldBlock

__all__ = ["Context", "Frame", "Message", "Port", "RequestFailed", "RouteClosed", "Tick", "WouldBlock", "serve"]

_HOMES = {
    "Context": "nodeworker.context",
    "Frame": "shm",
    "Message": "nodeworker.message",
    "Port": "protocol.messages",
    "RequestFailed": "nodeworker.errors",
    "RouteClosed": "shm",
    "Tick": "protocol.messages",
    "WouldBlock": "shm",
    "serve": "nodeworker.worker",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value
