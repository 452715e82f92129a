"""Squares numbers for the flow beside it, in a process that the daemon has not started."""

import chronetix


def square(frame, ctx):
    """Map: what it returns is sent on."""
    return {"square": frame.value()["n"] ** 2}


if __name__ == "__main__":
    chronetix.attach("square", square)
