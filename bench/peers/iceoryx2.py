"""iceoryx2: publish-subscribe over POSIX shared memory with loaned samples.

Without overflow and with a blocking publisher, so that nothing is lost. Two peers: one polls the subscriber without
pause, one sleeps on an event service that the sender notifies after each sample. Its files live in this host's folder
and, with this host's own prefix, in /dev/shm; what a killed end leaves there is removed.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import iceoryx2 as iox2  # type: ignore[import-untyped,import-not-found,unused-ignore]

from bench.cells import Cell, window
from bench.peers import Link, Peer

MAX_BUFFER = 256
"""Samples a subscriber may have waiting."""
SHARED_MEMORY = Path("/dev/shm")


class Polling(Peer):
    """Both ends ask again and again; each keeps a processor busy."""

    name = "iceoryx2-poll"
    about = "iceoryx2 publish-subscribe, loaned slices, subscriber polled without pause (a whole processor each)"
    distribution = "iceoryx2"
    events = False

    def prepare(self, cell: Cell, folder: Path) -> tuple[str, Path]:
        return f"chx{os.getpid()}_", folder

    def connect(self, shared: Any, wire: socket.socket, cell: Cell, first: bool) -> Link:
        prefix, folder = shared
        return Ends(prefix, folder, cell, self.events).link(wire, first)

    def release(self, shared: Any, pids: tuple[int, ...]) -> None:
        for left in SHARED_MEMORY.glob(f"{shared[0]}*"):
            left.unlink(missing_ok=True)


class Events(Polling):
    """The receiver sleeps in a listener."""

    name = "iceoryx2-event"
    about = "iceoryx2 publish-subscribe, loaned slices, receiver sleeps in a listener, sender notifies each sample"
    events = True


class Ends:
    """Makes the ports of one end."""

    def __init__(self, prefix: str, folder: Path, cell: Cell, events: bool) -> None:
        iox2.set_log_level(iox2.LogLevel.Error)
        config = iox2.config.default()
        config.global_cfg.prefix = iox2.FileName.new(prefix)
        config.global_cfg.root_path = iox2.Path.new(str(folder / "iceoryx2"))
        self.node = iox2.NodeBuilder.new().config(config).create(iox2.ServiceType.Ipc)
        self.cell = cell
        self.events = events
        self.buffer = min(window(cell.size), MAX_BUFFER)

    def service(self, name: str) -> Any:
        """The publish-subscribe service ``name``: one publisher, one subscriber, no overflow."""
        builder = self.node.service_builder(iox2.ServiceName.new(name))
        builder = builder.publish_subscribe(iox2.Slice[ctypes.c_uint8])
        builder = builder.enable_safe_overflow(False).subscriber_max_buffer_size(self.buffer)
        return builder.max_publishers(1).max_subscribers(1).open_or_create()

    def event(self, name: str) -> Any:
        """The event service that says there is a sample in ``name``."""
        return self.node.service_builder(iox2.ServiceName.new(f"{name}-event")).event().open_or_create()

    def link(self, wire: socket.socket, first: bool) -> Link:
        """Connected: the other end's ports are there before this returns."""
        there, back = ("there", "back") if first else ("back", "there")
        send = self.sender(there) if first or self.cell.mode == "roundtrip" else None
        receive = self.receiver(back) if not first or self.cell.mode == "roundtrip" else None
        wire.send(b"p")
        wire.recv(1)

        return Link(send=send or not_here, receive=receive or not_here, reply=send or not_here, close=lambda: None)

    def sender(self, name: str) -> Callable[[Any], None]:
        """Loan a slice, copy the frame into it, send, and (with events) notify."""
        publisher = (
            self.service(name)
            .publisher_builder()
            .initial_max_slice_len(self.cell.size)
            .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        notifier = self.event(name).notifier_builder().create() if self.events else None
        loan, move = publisher.loan_slice_uninit, ctypes.memmove
        source_of = (ctypes.c_uint8 * 0).from_buffer

        def send(frame: Any) -> None:
            length = len(frame)
            sample = loan(length)
            move(sample.payload_ptr, frame if isinstance(frame, bytes) else source_of(frame), length)
            sample.assume_init().send()
            if notifier is not None:
                notifier.notify()

        return send

    def receiver(self, name: str) -> Callable[[], Any]:
        """The next sample's payload, in place; it is given back at the next call."""
        subscriber = self.service(name).subscriber_builder().buffer_size(self.buffer).create()
        listener = self.event(name).listener_builder().create() if self.events else None
        take = subscriber.receive
        number_at = ctypes.c_int64.from_address
        whole = self.cell.mode == "roundtrip"
        held: Any = None

        def receive() -> Any:
            nonlocal held
            if held is not None:
                held.delete()
            held = take()
            while held is None:
                if listener is not None:
                    listener.blocking_wait()
                held = take()
            if whole:
                return (ctypes.c_uint8 * held.header.number_of_elements).from_address(held.payload_ptr)
            return number_at(held.payload_ptr)

        return receive


def not_here(*_arguments: Any) -> Any:
    """In place of the direction that a throughput cell does not use."""
    raise RuntimeError("this end has no such port")
