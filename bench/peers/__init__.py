"""The peers that are measured, one module each, and the one interface that they all have.

Rules:

* ``prepare`` runs in the host before it forks the two ends, ``connect`` in each end, ``release`` in the host after
  both have gone, however they went: what a peer leaves in the file system is removed there.
* ``send`` has taken the frame when it returns: the caller writes the next one into the same bytearray.
* Every peer is set up as fast as its own documentation allows while nothing is lost, with
  :func:`bench.cells.window` frames on their way at most. What differs is said in ``about``, which is printed.
"""

from __future__ import annotations

import abc
import importlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Protocol

from bench.cells import Cell


class Frames(Protocol):
    """Frames that were received at once."""

    @property
    def nbytes(self) -> int:
        """Of all frames together."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]:
        """Each has the buffer protocol."""

    def numpy(self, dtype: str) -> Any:
        """An array of all frames one after another."""

    def release(self) -> None:
        """They are not needed any more."""


@dataclass(frozen=True, slots=True)
class Link:
    """One end of a connection.

    ``receive`` blocks and returns something with the buffer protocol that stays valid until the next ``receive``, or
    None when it was woken for nothing;
    ``reply`` sends what ``receive`` returned back, whole; ``loan`` is ``send`` without its copy: room in place, of
    which only the first eight bytes are written.

    A link with ``send_many`` and ``receive_many`` sends and takes batches in throughput cells: ``send_many(buffer,
    size)`` sends it as frames of ``size`` bytes and says how many, ``receive_many`` returns at most BATCH frames as
    :class:`Frames`, or None as ``receive``.
    """

    send: Callable[[Any], object]
    receive: Callable[[], Any]
    reply: Callable[[Any], object]
    close: Callable[[], object]
    loan: Callable[[Any], object] | None = None
    send_many: Callable[[Any, int], int] | None = None
    receive_many: Callable[[], Frames | None] | None = None


class Peer(abc.ABC):
    """One way to get a frame from here to there."""

    name: ClassVar[str]
    about: ClassVar[str]
    distribution: ClassVar[str] = ""
    """The PyPI distribution whose version is reported."""
    one_process: ClassVar[bool] = False
    """Both ends are one thread: :meth:`connect_both` instead of :meth:`connect`."""
    modes: ClassVar[tuple[str, ...]] = ("throughput", "roundtrip")

    largest: ClassVar[int | None] = None
    """Bytes of the largest frame that it is measured with; None: any."""

    def version(self) -> str:
        """What is measured; raises when it is not installed."""
        return metadata.version(self.distribution)

    @abc.abstractmethod
    def prepare(self, cell: Cell, folder: Path) -> Any:
        """In the host: what both ends inherit. ``folder`` is private to this host and empty."""

    def connect(self, shared: Any, wire: socket.socket, cell: Cell, first: bool) -> Link:
        """In one end, ``wire`` leads to the other: connected, so that no frame sent from now on is lost."""
        raise NotImplementedError(f"{self.name} runs in one process")

    def connect_both(self, shared: Any, cell: Cell) -> tuple[Link, Link]:
        """In the host's child, for peers of one process."""
        raise NotImplementedError(f"{self.name} runs in two processes")

    def release(self, shared: Any, pids: tuple[int, ...]) -> None:  # noqa: B027 (most leave nothing)
        """In the host, after both ends (``pids``) have gone: remove what they left behind."""


PEERS = {
    "chronetix": "bench.peers.chronetix:Ipc",
    "chronetix-batch": "bench.peers.chronetix:Batches",
    "chronetix-inproc": "bench.peers.chronetix:InProcess",
    "memcpy": "bench.peers.memcpy:Memcpy",
    "pipe": "bench.peers.pipe:Pipe",
    "queue": "bench.peers.queue:Queue",
    "faster-fifo": "bench.peers.faster_fifo:FasterFifo",
    "pyzmq": "bench.peers.pyzmq:PyZmq",
    "iceoryx2-poll": "bench.peers.iceoryx2:Polling",
    "iceoryx2-event": "bench.peers.iceoryx2:Events",
    "zenoh": "bench.peers.zenoh:Zenoh",
    "dora": "bench.peers.dora:Dora",
}
"""Name on the command line and in the JSON file: where the class is. Imported only in the peer's own host."""


def load(name: str) -> Peer:
    """The peer called ``name``; ImportError and KeyError say which is not there."""
    module, _, attribute = PEERS[name].partition(":")
    peer: Peer = getattr(importlib.import_module(module), attribute)()
    return peer
