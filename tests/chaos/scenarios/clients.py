"""Clients that do what no client should: garbage, half frames, descriptors, silence, and ten thousand at once."""

from __future__ import annotations

import errno
import os
import random
import resource
import socket
import struct
import time
from collections import deque
from contextlib import ExitStack, suppress

from chronetix import shm
from chronetix.protocol import messages as wire
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.framing import encode
from tests.chaos import processes
from tests.chaos.flows import FLOWS
from tests.chaos.plan import Args
from tests.chaos.scenarios.scenario import Scenario
from tests.chaos.world import Violation, World

HELLO = encode(wire.Hello(protocol=[1], role="client", pid=1))
GARBAGE = ("random", "flipped", "oversized", "cut", "descriptors", "nested", "worker", "half-closed")


def _connected(world: World) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(str(world.socket))
    return sock


def _garbage(world: World, args: Args) -> None:
    """Each of its own kind; whatever is answered is read to its end."""
    chance = random.Random(args["seed"])
    with ExitStack() as stack:
        socks = []
        for kind in args["kinds"]:
            sock = stack.enter_context(_connected(world))
            with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
                _throw(sock, kind, chance)
            socks.append(sock)
        for sock in socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass


def _throw(sock: socket.socket, kind: str, chance: random.Random) -> None:
    call = encode(wire.Call(id=1, verb="describe", args={"flow": chance.choice(sorted(FLOWS))}))
    match kind:
        case "random":
            sock.sendall(chance.randbytes(chance.randint(1, 20_000)))
        case "flipped":
            sock.sendall(_flipped(HELLO + call * 20, chance))
        case "oversized":
            sock.sendall(HELLO + struct.pack(">I", chance.choice([2**32 - 1, 2**31, wire.MAX_FRAME + 1])) + b"x" * 100)
        case "cut":
            sock.sendall((HELLO + call)[: chance.randint(1, len(HELLO + call) - 1)])
        case "descriptors":
            with open(os.devnull, "rb") as file:
                if chance.random() < 0.5:  # before it is known who sends them they may be refused at once
                    with suppress(PermissionError):
                        socket.send_fds(sock, [HELLO + call], [file.fileno()] * chance.randint(1, 200))
                sock.sendall(HELLO)
                sock.recv(65536)
                socket.send_fds(sock, [call], [file.fileno()] * chance.randint(1, 200))
        case "nested":
            body = b"\x81" * chance.randint(10, 100_000)
            sock.sendall(HELLO + struct.pack(">I", len(body)) + body)
        case "worker":
            hello = wire.Hello(protocol=[1], role="worker", features=[wire.REATTACH], pid=os.getpid())
            sock.sendall(encode(hello) + _flipped(call, chance))
        case "half-closed":
            sock.sendall(HELLO + call * 5)
            sock.shutdown(socket.SHUT_WR)


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _slow(world: World, args: Args) -> None:
    """Some send a byte now and then, some ask for everything and read nothing, some say nothing at all."""
    call = encode(wire.Call(id=1, verb="logs", args={"follow": True}))
    greedy = b"".join(encode(wire.Call(id=n, verb="describe", args={"flow": "diamond"})) for n in range(1, 60))
    with ExitStack() as stack:
        trickling = [stack.enter_context(_connected(world)) for _ in range(args["trickling"])]
        deaf = [stack.enter_context(_connected(world)) for _ in range(args["deaf"])]
        for _ in range(args["silent"]):
            stack.enter_context(_connected(world))
        for sock in deaf:
            sock.setblocking(False)
            with suppress(OSError):
                sock.sendall(HELLO + call.replace(b"\x01", b"\x01") + greedy)
        for byte in HELLO[: args["bytes"]]:
            for sock in tuple(trickling):
                try:
                    sock.send(bytes([byte]))
                except OSError:
                    trickling.remove(sock)
            time.sleep(0.01)


def _lingering(opened: ExitStack, seconds: int) -> socket.socket:
    """A TCP socket whose last close waits for ``seconds``."""
    listener = opened.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    sock = opened.enter_context(socket.create_connection(listener.getsockname()))
    opened.enter_context(listener.accept()[0])
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    return sock


def _keepsakes(world: World, args: Args) -> None:
    """Descriptors whose close waits, with calls, with half of one, and left unread. Who asks is answered meanwhile."""
    tap = encode(wire.Call(id=1, verb="tap", args={"flow": "diamond", "route": "r"}, descriptors=1))
    with world.client() as other, ExitStack() as opened:
        sent = []
        for how in args["how"]:
            sock = opened.enter_context(_connected(world))
            sock.sendall(HELLO)
            sock.recv(65536)
            kept = _lingering(opened, args["seconds"])
            sent.append(kept)
            with suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(sock, [tap[:3] if how == "half" else tap], [kept.fileno()])
                if how == "unread":
                    socket.send_fds(sock, [tap], [kept.fileno()])
            other.call("version", timeout=args["seconds"] / 2)
        for kept in sent:
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # or our own close waits


def _listeners(world: World, args: Args) -> None:
    """Who listen to a route and do to their end of the line what they can: frames go on, and who asks is answered."""
    with ExitStack() as opened:
        for how in args["how"]:
            consumer = shm.Consumer("tap", credits=4)
            client = opened.enter_context(world.client())
            listening = {"flow": args["flow"], "route": args["route"], "credits": 4}
            try:
                first = next(client.stream("tap", descriptors=[consumer.fd], **listening))
            except ChronetixError:
                continue  # its producer is about to be started again
            _, line, *_ = first.descriptors
            for fd in first.descriptors:
                if fd != line:
                    os.close(fd)
            end = opened.enter_context(socket.socket(fileno=line))
            end.setblocking(True)
            with suppress(BrokenPipeError):
                end.send(bytes(64), socket.MSG_DONTWAIT)
                raise Violation("a listener can ring its producer")
            if how == "shut":
                end.shutdown(socket.SHUT_RDWR)
            with world.client() as other:
                other.call("version", timeout=10)


def _crowds(world: World, args: Args) -> None:
    """Frames of up to a million items, some at once, their last bytes together; others are answered meanwhile."""
    item = bytes.fromhex(args["item"])
    count = min(args["items"], wire.MAX_FRAME // len(item) - 100)
    args_map = b"\xa1\x61a\x9a" + struct.pack(">I", count) + item * count
    body = b"\xa4\x64type\x64call\x62id\x01\x64verb\x68validate\x64args" + args_map
    frame = struct.pack(">I", len(body)) + body
    world.crowded = True
    with ExitStack() as stack:
        socks = [stack.enter_context(_connected(world)) for _ in range(args["abreast"])]
        for part in (HELLO + frame[:-1], frame[-1:]):
            for sock in socks:
                with suppress(OSError):  # a frame of more items than it may have ends its connection
                    sock.sendall(part)
        with world.client() as client:
            for _ in range(10):
                client.call("version", timeout=10)


def _unread(world: World, args: Args) -> None:
    """Many ask for much and read nothing of it: the daemon does not grow by what they asked for."""
    asked = b"".join(encode(wire.Call(id=n, verb="describe", args={"flow": args["flow"]})) for n in range(1, 64))
    before = processes.memory(world.pid, "VmRSS")
    with ExitStack() as stack:
        for _ in range(args["deaf"]):
            sock = stack.enter_context(_connected(world))
            sock.setblocking(False)
            with suppress(OSError):
                sock.sendall(HELLO + asked)
        with world.client() as client:
            for _ in range(10):
                client.call("version", timeout=10)
        grown = processes.memory(world.pid, "VmRSS") - before
    if grown > args["deaf"] * UNREAD_EACH + UNREAD_ALL:
        raise Violation(f"{args['deaf']} clients that read nothing cost {grown >> 20} MiB")


def _many(world: World, args: Args) -> None:
    """Ten thousand connections, as many at once as we can have; the daemon has few descriptors. Who is refused is told
    or cut off, and who asks on a connection that was there before gets his answer."""
    before = resource.prlimit(world.pid, resource.RLIMIT_NOFILE)
    limit = sum(processes.descriptors(world.pid).values()) + args["room"]
    held: deque[socket.socket] = deque()
    made = refused = 0
    try:
        with world.client() as old:
            resource.prlimit(world.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
            while made + refused < args["connects"]:
                sock = socket.socket(socket.AF_UNIX)
                sock.setblocking(False)
                try:
                    sock.connect(str(world.socket))
                    made += 1
                    held.append(sock)
                except OSError as reason:
                    sock.close()
                    if reason.errno != errno.EAGAIN:
                        raise Violation(f"connecting failed with {reason}") from None
                    refused += 1
                    if held:
                        held.popleft().close()
                if len(held) > args["abreast"]:
                    held.popleft().close()
                if (made + refused) % 1000 == 0:
                    old.call("list", timeout=30)
    finally:
        for sock in held:
            sock.close()
        resource.prlimit(world.pid, resource.RLIMIT_NOFILE, before)


HEARD = (("line", "map:sink"), ("diamond", "source:left"))
"""A flow, and a route of it."""

UNREAD_EACH = 1 << 20
UNREAD_ALL = 64 << 20
"""Bytes that the daemon may grow by for each client that reads nothing, and for anything else meanwhile."""

SCENARIOS = (
    Scenario(
        "garbage",
        lambda chance: {"kinds": chance.choices(GARBAGE, k=chance.randint(5, 40)), "seed": chance.randrange(2**32)},
        _garbage,
    ),
    Scenario(
        "slow-clients",
        lambda chance: {
            "trickling": chance.randint(1, 20),
            "deaf": chance.randint(1, 10),
            "silent": chance.randint(1, 20),
            "bytes": chance.randint(10, 40),
        },
        _slow,
    ),
    Scenario(
        "descriptors-that-linger",
        lambda chance: {
            "how": chance.choices(["whole", "half", "unread"], k=chance.randint(1, 12)),
            "seconds": chance.choice([20, 40]),
        },
        _keepsakes,
    ),
    Scenario(
        "wicked-listeners",
        lambda chance: {
            "how": chance.choices(["open", "shut"], k=chance.randint(1, 8)),
            **dict(zip(("flow", "route"), chance.choice(HEARD), strict=True)),
        },
        _listeners,
    ),
    Scenario(
        "crowded-frames",
        lambda chance: {
            "item": chance.choice(["80", "a0", "a1616200", "f6", "6161"]),
            "items": chance.choice([1000, 100_000, 1_000_000]),
            "abreast": chance.choice([1, 4, 16]),
        },
        _crowds,
    ),
    Scenario(
        "unread-answers",
        lambda chance: {"deaf": chance.randint(1, 40), "flow": chance.choice(sorted(FLOWS))},
        _unread,
    ),
    Scenario(
        "ten-thousand-connects",
        lambda chance: {"connects": 10_000, "abreast": chance.choice([50, 300]), "room": chance.choice([2, 20, 100])},
        _many,
    ),
)
