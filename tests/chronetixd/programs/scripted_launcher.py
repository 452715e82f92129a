"""A launcher that does what a plan says: it lies where the real one is looked for. Each takes the first word of the
plan, which is in the folder of its package, and is the real one when there is none left."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[3]


def next_word() -> str:
    plan = FOLDER / "plan"
    word, *rest = plan.read_text().split() or ["good"]
    plan.write_text(" ".join(rest))
    return word


def become_real() -> None:
    """From here on ``chronetix`` is the real one."""
    sys.path.remove(str(FOLDER))
    for name in [name for name in sys.modules if name.split(".")[0] == "chronetix"]:
        del sys.modules[name]


SOCKET: list[socket.socket] = []
"""Open until we end."""


def wait_for_a_request() -> socket.socket:
    from chronetix.protocol.framing import encode
    from chronetix.protocol.messages import LauncherReady

    sock = socket.socket(fileno=int(os.environ["CHRONETIX_FD"]))
    SOCKET.append(sock)
    sock.sendall(encode(LauncherReady(pid=os.getpid())))
    sock.recv(1, socket.MSG_PEEK)
    return sock


def answer_one_by_one() -> None:
    """One for each line that is written into the fifo beside the plan; the plan tells how many were asked for."""
    from chronetix.protocol.framing import MessageDecoder, encode
    from chronetix.protocol.messages import Spawn, SpawnFailed

    sock = wait_for_a_request()
    decoder: MessageDecoder[Spawn] = MessageDecoder(Spawn)
    asked: list[int] = []
    told = 0
    with (FOLDER / "fifo").open() as fifo:
        for _ in fifo:
            told += 1
            while len(asked) < told:
                data, descriptors, _, _ = socket.recv_fds(sock, 1 << 16, 253)
                for fd in descriptors:
                    os.close(fd)
                asked += [spawn.id for spawn in decoder.feed(data)]
            sock.sendall(encode(SpawnFailed(id=asked[told - 1], errno=0, message=f"{told}")))


def serve(word: str) -> None:
    match word:
        case "dies":
            sys.exit("not today")
        case "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "dies-when-asked":
            wait_for_a_request()
            os.kill(os.getpid(), signal.SIGKILL)
        case "stops-when-asked":
            wait_for_a_request()
            os.kill(os.getpid(), signal.SIGSTOP)
        case "answers-garbage":
            wait_for_a_request().sendall(b"\xff" * 1000)
            signal.pause()
        case "closes-when-asked":
            wait_for_a_request().close()
            signal.pause()
        case "forks-and-dies":
            become_real()
            link = importlib.import_module("chronetix.nodeworker.process.link")
            real = importlib.import_module("chronetix.nodeworker.process.launcher")
            send = link.ControlLink.send

            def send_but_spawned(self: object, message: object, *descriptors: object) -> None:
                if type(message).__name__ == "Spawned":
                    os.kill(os.getpid(), signal.SIGKILL)
                send(self, message, *descriptors)

            link.ControlLink.send = send_but_spawned
            real.main()
        case "answers-one-by-one":
            answer_one_by_one()
        case _:
            become_real()
            importlib.import_module("chronetix.nodeworker.process.launcher").main()


if __name__ == "__main__":
    serve(next_word())
