"""Sources whose consumer lies."""


def few(ctx):
    for number in range(3):
        yield b"%d" % number


def endless(ctx):
    while not ctx.stopping:
        yield b"frame"
