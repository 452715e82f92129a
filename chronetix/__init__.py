"""The package that plugin authors import.

A plugin is a function, a generator function or a class with any of ``on_start``, ``on_frame``, ``on_tick``,
``on_message``, ``on_stop`` and ``produce``; it gets a :class:`Context`. The same code runs in a process of its own, in
one process with the whole flow, and in unit tests (``chronetix.testing``). A separate program becomes a worker with
:func:`serve`, a running one with :func:`attach`. ``chronetix.client`` is the client of the daemon.

A name's module is imported when the name is first used, because the launcher has to set the environment before numpy is
imported. Type checkers read ``__init__.pyi``.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Context": "chronetix.nodeworker.api.context",
    "Encoded": "chronetix.nodeworker.api.codec",
    "Frame": "chronetix.shm",
    "Message": "chronetix.nodeworker.api.message",
    "Port": "chronetix.protocol.messages",
    "RequestFailed": "chronetix.nodeworker.api.errors",
    "RouteClosed": "chronetix.shm",
    "Tick": "chronetix.protocol.messages",
    "WouldBlock": "chronetix.shm",
    "attach": "chronetix.nodeworker.process.attach",
    "serve": "chronetix.nodeworker.process.worker",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value
