"""Programs that attach by themselves: ``attached.py WAY NAME``. Each says a line for each thing that happens to it."""

import asyncio
import sys
import threading

import chronetix
from chronetix.protocol.errors import ChronetixError


def say(*words):
    print(*words, flush=True)


class Forward:
    """Map: the same bytes."""

    def on_start(self, ctx):
        say("started", ctx.incarnation)

    def on_frame(self, frame, ctx):
        return bytes(frame)

    def on_stop(self, ctx):
        say("stopping")
        return "forwarded"


class ForwardLater(Forward):
    """The same, asynchronous."""

    async def on_frame(self, frame, ctx):
        await asyncio.sleep(0)
        return bytes(frame)


class Chatter(Forward):
    """A source that sends for ever, into a route without credits sooner or later."""

    def produce(self, ctx):
        n = ctx.resume_after
        while True:
            n += 1
            yield n.to_bytes(8, "little")

    on_frame = None


class Fails(Forward):
    def on_frame(self, frame, ctx):
        raise ValueError("no such frame")


def attach(name, plugin=Forward):
    try:
        say("result", chronetix.attach(name, plugin))
    except ChronetixError as reason:
        say("refused", reason.name)
    except KeyboardInterrupt:
        say("interrupted")
    except ValueError as reason:
        say("raised", reason)


def plain(name):
    attach(name)


def failing(name):
    attach(name, Fails)


def chatting(name):
    attach(name, Chatter)


def twice(name):
    """Attach again as often as the node waits, as a supervisor would have it."""
    for _ in range(2):
        attach(name)


def leaving(name):
    """Stay when the worker has ended."""
    attach(name)
    say("bye", sys.stdin.readline().strip())


def notebook(name, plugin=Forward):
    """In the main thread, beside a running event loop, as a cell of a notebook; lives on and attaches again."""

    async def cell():
        attach(name, plugin)
        say("next", sys.stdin.readline().strip())
        attach(name, plugin)

    loop = asyncio.new_event_loop()  # asyncio.run would take the first interrupt for itself; notebooks do not
    loop.run_until_complete(cell())
    loop.close()
    say("bye", sys.stdin.readline().strip())


def notebook_async(name):
    notebook(name, ForwardLater)


def notebook_source(name):
    notebook(name, Chatter)


def thread(name):
    """In another thread than the main one."""
    running = threading.Thread(target=attach, args=(name,))
    running.start()
    running.join()
    say("bye", sys.stdin.readline().strip())


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
