"""What a loaded object offers, as plain callables: the one form that the loops know.

Rules: a class is instantiated (with the context, if its constructor takes it); a generator function of ``ctx`` is a
source, of ``(frame, ctx)`` a map with any number of results; a plain function is called for frames and, at a node
without data inputs, for messages and ticks. What a callback returns (not None) is sent to the node's outputs, or, at
a node that has only control routes, published on them. A plugin with an ``async def`` among its callbacks is
asynchronous: all of them run in an event loop, those that are coroutines are awaited, and its context's sends are too.
A plugin that could never be called by its node is refused here.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, WrapperDescriptorType
from typing import Any, Final

from chronetix.nodeworker.api.context import Context
from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.messages import Configure

Callback = Callable[..., Any]

CALLBACKS: Final = ("on_start", "on_frame", "on_batch", "on_tick", "on_message", "on_stop", "produce")
"""What a class may define."""

ASYNCHRONOUS: Final = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
"""Code flags of what has to be awaited."""

WANTED: Final = {"on_start": 1, "on_frame": 2, "on_batch": 2, "on_tick": 2, "on_message": 2, "on_stop": 1, "produce": 1}
"""Arguments that each is called with; the last is the context and may be left out."""

MOST_CALLED: Final = 16
"""Objects with ``__call__`` whose ``__call__`` is such an object again, that are looked through."""

_CALLED_THEMSELVES: Final = (FunctionType, MethodType, BuiltinFunctionType, partial, type)


@dataclass(frozen=True, slots=True)
class Plugin:
    """The callbacks of one plugin; None where it has none. ``ctx`` may be left out of each. Of an asynchronous plugin
    each may return something to be awaited instead."""

    on_start: Callback | None = None
    """``on_start(ctx)`` is called once, before anything else. From here on the plugin can send and ask."""
    on_frame: Callback | None = None
    """``on_frame(frame, ctx)`` is called for each frame of each incoming data route. What it returns is sent, unless it
    is None."""
    on_batch: Callback | None = None
    """``on_batch(batch, ctx)``, instead of ``on_frame``, is called with the frames of one route that have arrived."""
    on_tick: Callback | None = None
    """``on_tick(tick, ctx)`` is called for each tick of the node's timers. What it returns is sent, unless it is
    None."""
    on_message: Callback | None = None
    """``on_message(message, ctx)`` is called for each message of the node's subscriptions and control routes. What it
    returns is sent, unless it is None."""
    on_stop: Callback | None = None
    """``on_stop(ctx)`` is called once, after everything else. What it returns is the node's result."""
    produce: Callback | None = None
    """``produce(ctx)`` is a generator: the source of a class. Each item that it yields is sent, unless it is None."""
    asynchronous: bool = False
    """Whether one of the callbacks is an ``async def``: then all of them run in an event loop."""
    ordered: bool = True
    """A class attribute of an asynchronous plugin: whether what comes of its frames leaves in the order of the
    frames."""


def is_asynchronous(found: Any) -> bool:
    """One of its callbacks (the function itself, if it is one) is a coroutine function or an asynchronous generator."""
    callbacks = [getattr(found, name, None) for name in CALLBACKS]
    if not any(callbacks) and not inspect.isclass(found):
        callbacks = [found]
    return any(_flags(callback) & ASYNCHRONOUS for callback in callbacks if callback is not None)


def bind(found: Any, config: Configure, ctx: Context) -> Plugin:
    """The plugin that ``found`` (class, instance or function) is for the node of ``config``.

    Raises ChronetixError ``plugin-not-loadable`` when it does not fit the node, and whatever its constructor raises.
    """
    asynchronous, ordered = is_asynchronous(found), bool(getattr(found, "ordered", True))
    if asynchronous and hasattr(found, "on_batch"):
        raise _unfit(config, f"{_name(found)} is asynchronous, whose frames come one by one: on_frame, not on_batch")
    if inspect.isclass(found):
        make: Callable[..., Any] = found
        found = make(ctx) if _wants_context(found) else make()
    if any(hasattr(found, name) for name in CALLBACKS):
        callbacks: dict[str, Any] = {name: _callback(found, name, config, ctx) for name in CALLBACKS}
        plugin = Plugin(**callbacks)
        _notice_misspelt(found, ctx)
    elif callable(found):
        plugin = _of_function(found, config, ctx)
    else:
        raise _unfit(config, f"{_name(found)} is no function and has none of {', '.join(CALLBACKS)}{_near(found)}")
    _check(plugin, config, found)
    return replace(plugin, asynchronous=asynchronous, ordered=ordered) if asynchronous else plugin


def _callback(found: Any, name: str, config: Configure, ctx: Context) -> Callback | None:
    function = getattr(found, name, None)
    return None if function is None else _adapt(function, WANTED[name], config, ctx)


def _of_function(function: Callback, config: Configure, ctx: Context) -> Plugin:
    if config.inputs:
        return Plugin(on_frame=_adapt(function, 2, config, ctx))
    if config.subscriptions or config.timers:
        handler = _adapt(function, 2, config, ctx)
        messages, ticks = handler if config.subscriptions else None, handler if config.timers else None
        return Plugin(on_message=messages, on_tick=ticks)
    return Plugin(produce=_adapt(function, 1, config, ctx))


def _adapt(function: Callback, wanted: int, config: Configure, ctx: Context) -> Callback:
    """``function`` callable with ``wanted`` arguments, of which it may leave out the last, the context. A generator
    function of a thing and the context sends what it yields; others are left as they are, at no cost."""
    flags = _flags(function)
    required, takes = _positional(function)
    if required > wanted or takes < wanted - 1:
        called = "(thing, ctx)" if wanted == 2 else "(ctx)"
        hint = "" if config.inputs else "; the node has no data inputs"
        raise _unfit(config, f"{_name(function)} takes {required} arguments but is called with {called}{hint}")
    taking = _leaving_out_context(function, wanted) if takes < wanted else function
    if wanted != 2 or not flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
        return taking
    return _many_awaited(taking) if flags & inspect.CO_ASYNC_GENERATOR else _many(taking, ctx)


def _leaving_out_context(function: Callback, wanted: int) -> Callback:
    if wanted == 1:
        return lambda _ctx: function()
    return lambda thing, _ctx: function(thing)


def _many(function: Callback, ctx: Context) -> Callback:
    """A map with any number of results, each sent when it is yielded."""
    if ctx.awaited:
        return _many_sent(function)

    def send_each(thing: Any, context: Context) -> None:
        for result in function(thing, context):
            if result is not None:
                ctx.send(result)

    return send_each


def _many_sent(function: Callback) -> Callback:
    """The same in an asynchronous plugin, where a send is awaited."""

    async def send_each(thing: Any, context: Any) -> None:
        for result in function(thing, context):
            if result is not None:
                await context.send(result)

    return send_each


def _many_awaited(function: Callback) -> Callback:
    """The same for an asynchronous generator."""

    async def send_each(thing: Any, context: Any) -> None:
        async with aclosing(function(thing, context)) as results:
            async for result in results:
                if result is not None:
                    await context.send(result)

    return send_each


def _positional(function: Callback) -> tuple[int, int]:
    """How many positional arguments ``function`` needs and takes. What is written in C and silent takes what it gets.

    Functions and methods are read directly: ``inspect.signature`` would cost a starting worker more than all the rest.
    """
    if not hasattr(function, "__wrapped__"):
        function = _called(function)
    plain = function.__func__ if isinstance(function, MethodType) else function
    if not isinstance(plain, FunctionType) or hasattr(plain, "__wrapped__"):
        return _signature(function)
    code, bound = plain.__code__, int(plain is not function)
    takes = code.co_argcount - bound
    required = takes - len(plain.__defaults__ or ())
    return max(0, required), 2 if code.co_flags & inspect.CO_VARARGS else takes


def _signature(function: Callback) -> tuple[int, int]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0, 2
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return sum(p.default is p.empty for p in named), 2 if any_number else len(named)


def _wants_context(cls: type) -> bool:
    """Its constructor takes an argument."""
    make = getattr(cls, "__init__", None)
    if isinstance(make, FunctionType):
        return _positional(make)[1] > 1
    return make is not object.__init__ and inspect.signature(cls).parameters != {}


def _flags(function: Callback) -> int:
    """The code flags of a function, method, partial or callable object; 0 where there is no code."""
    target = _called(function)
    while isinstance(target, partial):
        target = _called(target.func)
    return int(getattr(getattr(target, "__code__", None), "co_flags", 0))


def _called(function: Any) -> Any:
    """What a call of ``function`` calls: of an object with ``__call__`` that, bound as Python binds it, be it a method,
    a static or class method, a partial, or another such object."""
    for _ in range(MOST_CALLED):
        if isinstance(function, _CALLED_THEMSELVES):
            break
        call = inspect.getattr_static(type(function), "__call__", None)
        if call is None or isinstance(call, WrapperDescriptorType):
            break
        function = call.__get__(function, type(function)) if hasattr(call, "__get__") else call
    return function


def _check(plugin: Plugin, config: Configure, found: Any) -> None:
    """Every way in that the flow gives the node must lead somewhere: nothing is thrown away unseen."""
    name = _name(found)
    if plugin.on_batch is not None:
        _check_batches(plugin, config, name)
    elif config.inputs and plugin.on_frame is None:
        raise _unfit(config, f"frames come in by {config.inputs[0].route}, but {name} has no on_frame{_near(found)}")
    if config.subscriptions and plugin.on_message is None:
        raise _unfit(
            config, f"messages of {config.subscriptions[0]} come in, but {name} has no on_message{_near(found)}"
        )
    if config.timers and plugin.on_tick is None:
        raise _unfit(config, f"timer {config.timers[0].id} ticks, but {name} has no on_tick{_near(found)}")


def _check_batches(plugin: Plugin, config: Configure, name: str) -> None:
    """Frames that are taken together are given back together: what treats them one by one does not fit."""
    if plugin.on_frame is not None:
        raise _unfit(config, f"{name} has on_frame and on_batch: a frame can come to only one of them")
    if config.qos.get("retry"):
        raise _unfit(config, f"qos.retry sets single frames aside, but {name} takes batches: leave one of them out")


def _notice_misspelt(found: Any, ctx: Context) -> None:
    """A callback that is never called, because it is called otherwise, is told in the log."""
    for method in dir(found):
        if not method.startswith("on_") or method in CALLBACKS:
            continue
        near = [each for each in difflib.get_close_matches(method, CALLBACKS, 1, 0.75) if not hasattr(found, each)]
        if near:
            ctx.log.warning(f"{method} of {_name(found)} is never called: did you mean {near[0]}?")


def _near(found: Any) -> str:
    """A method whose name comes close to a callback's."""
    for method in dir(found):
        near = difflib.get_close_matches(method, CALLBACKS, 1, 0.8)
        if near and method not in CALLBACKS:
            return f"; {method} should be called {near[0]}"
    return ""


def _name(found: Any) -> str:
    return str(getattr(found, "__qualname__", None) or type(found).__qualname__)


def _unfit(config: Configure, reason: str) -> ChronetixError:
    return error("plugin-not-loadable", uri=config.uri or config.plugin_id, reason=f"node {config.node}: {reason}")
