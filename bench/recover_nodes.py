"""The worker that is killed, once for each way to run it: it reports the number of its first frame to
``$BENCH_REPORT``.

Each is a Python process with the imports of its own transport and numpy; the sender makes a frame a millisecond.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy  # noqa: F401  (a worker of this kind imports it anyway)

PACE_S = 0.001


class Report:
    """Reports the first frame of this process to the host."""

    told = False

    def frame(self, number: int) -> None:
        """Report ``number`` if it is the first."""
        if not self.told:
            self.told = True
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(f"{os.getpid()} {number}".encode(), os.environ["BENCH_REPORT"])


def numbers() -> Iterator[int]:
    """Yield a number each millisecond."""
    number = 0
    while True:
        number += 1
        yield number
        time.sleep(PACE_S)


# -- chronetix -----------------------------------------------------------------------------------------------


def source(ctx: Any) -> Iterator[bytes]:
    """The source of the flow."""
    for number in numbers():
        if ctx.stopping:
            return
        yield number.to_bytes(8, "little")


class Sink:
    """The sink of the flow."""

    def __init__(self) -> None:
        self._report = Report()

    def on_frame(self, frame: Any, ctx: Any) -> None:  # noqa: ARG002
        """Take one number."""
        self._report.frame(int.from_bytes(frame, "little"))


# -- pyzmq, under supervisord --------------------------------------------------------------------------------


def zmq_source(address: str) -> None:
    """Push numbers; blocks while no process pulls."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.bind(address)
        for number in numbers():
            push.send(number.to_bytes(8, "little"))


def zmq_sink(address: str) -> None:
    """Take numbers until the process is killed."""
    import zmq

    report = Report()
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.connect(address)
        while True:
            report.frame(int.from_bytes(pull.recv(), "little"))


# -- dora ----------------------------------------------------------------------------------------------------


def dora_source() -> None:
    """Send numbers until the process is killed."""
    import pyarrow as pa
    from dora import Node

    node = Node()
    for number in numbers():
        node.send_output("numbers", pa.array([number], type=pa.int64()))


def dora_sink() -> None:
    """Take numbers until the process is killed."""
    from dora import Node

    report = Report()
    for event in Node():
        if event["type"] == "INPUT":
            report.frame(event["value"][0].as_py())


if __name__ == "__main__":
    {"zmq_source": zmq_source, "zmq_sink": zmq_sink, "dora_source": dora_source, "dora_sink": dora_sink}[sys.argv[1]](
        *sys.argv[2:]
    )
