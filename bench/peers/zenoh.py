"""eclipse-zenoh: two peer sessions on one Unix socket, payloads of 4 KiB and more through its shared-memory provider.

Its Python API gives a received payload as bytes only, which copies it; that copy is part of what a Python process
pays. A payload is sent back without touching it. What sessions leave in /dev/shm is found in their memory maps and
removed.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import zenoh

from bench.cells import IN_FLIGHT_BYTES, KIB, Cell, window
from bench.peers import Link, Peer

SHARED_FROM = 4 * KIB
MATCH_LIMIT = 5.0
"""Seconds for the two sessions to find each other."""


class Zenoh(Peer):
    """Publisher with congestion control BLOCK; express (no batching) for round trips."""

    name = "zenoh"
    about = "zenoh peers over unixsock-stream, shared-memory payloads from 4 KiB, CongestionControl.BLOCK, FIFO channel"
    distribution = "eclipse-zenoh"

    def prepare(self, cell: Cell, folder: Path) -> Path:
        return folder

    def connect(self, shared: Any, wire: socket.socket, cell: Cell, first: bool) -> Link:
        if first:
            wire.recv(1)
        session = zenoh.open(configuration(shared / "zenoh.sock", listening=not first))
        if not first:
            wire.send(b"l")
        there, back = ("there", "back") if first else ("back", "there")
        incoming = session.declare_subscriber(back, zenoh.handlers.FifoChannel(window(cell.size)))
        outgoing = session.declare_publisher(
            there, congestion_control=zenoh.CongestionControl.BLOCK, express=cell.mode == "roundtrip"
        )
        await_match(outgoing)
        provider = zenoh.shm.ShmProvider.default_backend(IN_FLIGHT_BYTES + 64 * KIB)
        wait = zenoh.shm.BlockOn(zenoh.shm.GarbageCollect())
        note_shared_memory(shared)
        wire.send(b"m")
        wire.recv(1)
        put, receive_sample = outgoing.put, incoming.recv
        last: Any = None

        def send(frame: Any) -> None:
            if len(frame) < SHARED_FROM:
                put(frame)
                return
            room = provider.alloc(len(frame), wait)
            room[:] = frame
            put(room)

        def receive() -> Any:
            nonlocal last
            last = receive_sample().payload
            return last.to_bytes()

        def reply(_frame: Any) -> None:
            put(last)

        def close() -> None:
            note_shared_memory(shared)
            session.close()  # type: ignore[no-untyped-call]

        return Link(send=send, receive=receive, reply=reply, close=close)

    def release(self, shared: Any, pids: tuple[int, ...]) -> None:
        for note in shared.glob("*.shm"):
            for path in note.read_text().split():
                Path(path).unlink(missing_ok=True)
            note.unlink()
        (shared / "zenoh.sock").unlink(missing_ok=True)
        (shared / "zenoh.sock.lock").unlink(missing_ok=True)


def configuration(path: Path, listening: bool) -> zenoh.Config:
    """Return the configuration of a session that connects only to one other session, over ``path``."""
    config = zenoh.Config()
    endpoint = json.dumps([f"unixsock-stream/{path}"])
    config.insert_json5("mode", '"peer"')
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("scouting/gossip/enabled", "false")
    config.insert_json5("listen/endpoints", endpoint if listening else "[]")
    if not listening:
        config.insert_json5("connect/endpoints", endpoint)
    config.insert_json5("transport/shared_memory/enabled", "true")
    return config


def await_match(publisher: zenoh.Publisher) -> None:
    """Return when the other end's subscriber is known."""
    give_up = time.monotonic() + MATCH_LIMIT
    while not publisher.matching_status.matching:  # type: ignore[attr-defined]
        if time.monotonic() > give_up:
            raise TimeoutError(f"the zenoh sessions did not find each other within {MATCH_LIMIT:.0f} s")
        time.sleep(0.002)


def note_shared_memory(folder: Path) -> None:
    """Write the names of the files in /dev/shm that this process has mapped to a file, for the host to remove them."""
    maps = Path("/proc/self/maps").read_text().split()
    paths = {word for word in maps if word.startswith("/dev/shm/") and word.endswith(".zenoh")}
    (folder / f"{os.getpid()}.shm").write_text("\n".join(sorted(paths)))
