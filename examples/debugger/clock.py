"""Counts the ticks of a clock; a debugger can attach to the counter's worker."""

import debugpy


class Counter:
    """Sink: listens for a debugger where its flow says so, and goes on without one."""

    count = 0

    def on_start(self, ctx):
        if "debugger_port" in ctx.params:
            host, port = debugpy.listen(("127.0.0.1", ctx.params["debugger_port"]))
            ctx.log.info("a debugger may attach", host=host, port=port)

    def on_frame(self, frame, ctx):
        self.count += 1
        debugpy.breakpoint()  # stops here while a debugger is attached

    def on_stop(self, ctx):
        return self.count
