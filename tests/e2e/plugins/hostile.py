"""Plugins that do what a plugin should not."""

import subprocess


def leaves_a_writer_behind(ctx):
    """Source: a process of its own session goes on writing to our stdout until that is closed."""
    writer = subprocess.Popen(["setsid", "yes"])
    ctx.log.info("left behind", writer=writer.pid)
    return
    yield


def raises_a_long_text(ctx):
    raise ValueError("z" * ctx.params["size"])
    yield


def has_no_text(ctx):
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

    raise Silent
    yield


class LongResult:
    """Source of nothing with a long result."""

    def produce(self, ctx):
        return ()

    def on_stop(self, ctx):
        return "x" * ctx.params["size"]


def logs_anything(ctx):
    """Source: field names that loggers use themselves, and a record as long as a frame allows."""
    ctx.log.error("odd", method_name="f", exception={"a": 1}, stack=3, exc_info=True)
    ctx.log.info("L" * (16 * 1024 * 1024 - 200))
    return
    yield


def prints_much(ctx):
    """Source: eight megabytes in lines."""
    for n in range(8000):
        print(f"{n} ".ljust(1000, "."))
    return
    yield
