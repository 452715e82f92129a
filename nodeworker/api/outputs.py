"""What a node sends: its data routes grouped by content type, so that a frame is encoded and copied once for each type.

Rules: a send reaches every addressed route or none (``WouldBlock`` leaves nothing behind), and none before the value
was encoded for all of them; bytes go to routes that carry bytes straight through one outlet, with one copy; senders
are made once and kept, because they are the hot path. A tap joins the outlets of the route that it listens to, which
costs a frame nothing but that route's share.

A frame's notes, the sender's time and metadata, lie behind its payload; who takes it never sees them as part of that.
"""

from __future__ import annotations

import difflib
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from chronetix.nodeworker.api import codec
from chronetix.protocol.content import octets
from chronetix.protocol.messages import Port
from chronetix.shm import Batch, Frame, Loan, Producer

if TYPE_CHECKING:
    from typing_extensions import Buffer


Origin = Frame | Batch | int | None
"""What a frame is made from: a frame or a batch, the number of a source's item, or nothing in particular."""


class OutletLike(Protocol):
    """What is needed of ``shm.Outlet``; inside one process a cooperative one takes its place."""

    def send(self, data: Buffer, timeout_ns: int = -1, origin: Origin = None) -> int:
        """Copy ``data`` and commit it to every route."""

    def send_many(self, data: Buffer, size: int, timeout_ns: int = -1, origin: Origin = None) -> int:
        """Send ``data`` as consecutive frames of ``size`` bytes; how many have gone."""

    def loan(self, length: int, timeout_ns: int = -1, origin: Origin = None) -> Loan:
        """A writable extent for every route."""

    def add(self, tap: Producer) -> None:
        """Send every frame from the next one on to ``tap`` as well."""

    def sweep(self) -> None:
        """Let go of taps that have ended."""

    def encode_with(self, encode: Callable[[Any], Buffer]) -> None:
        """``encode`` makes bytes of what has no plain memory, or raises."""


class Sender(Protocol):
    """Sends one value to a fixed set of routes."""

    def __call__(self, data: Any, timeout_ns: int = -1, origin: Origin = None) -> Any:
        """Raises WouldBlock when ``timeout_ns`` (-1: none) is up."""


MakeOutlet = Callable[[Sequence[Producer]], OutletLike]


class Outputs:
    """The output routes of one node. ``ports`` and ``producers`` are in the same order."""

    def __init__(self, ports: Sequence[Port], producers: Sequence[Producer], make_outlet: MakeOutlet) -> None:
        self.ports = tuple(ports)
        self.producers = tuple(producers)
        self._make_outlet = make_outlet
        self._outlets: dict[tuple[int, ...], OutletLike] = {}
        self._senders: dict[str | None, Sender] = {}
        self._noted: dict[str | None, _Parts] = {}
        self._taps: list[tuple[int, Producer]] = []
        self._lock = threading.Lock()
        """Between the plugin's thread, which makes outlets, and another one that brings taps."""

    def connect(self, ports: Sequence[Port], producers: Sequence[Producer]) -> None:
        """These are the ends of its routes from now on; before the first nothing can be sent. Senders that were made
        before are old news. From the plugin's thread."""
        with self._lock:
            taps = [(self.ports[index].route, tap) for index, tap in self._taps]
            self.ports, self.producers = tuple(ports), tuple(producers)
            places = {port.route: index for index, port in enumerate(ports)}
            self._taps = [(places[route], tap) for route, tap in taps if route in places]
            self._outlets.clear()
            self._senders.clear()
            self._noted.clear()

    def add_tap(self, route: str, tap: Producer) -> None:
        """``tap`` gets what is sent to ``route`` from the next frame on. From any thread. Raises ValueError for a route
        that is not there."""
        index = next((i for i, port in enumerate(self.ports) if port.route == route), None)
        if index is None:
            raise ValueError(f"no output is called {route!r}, so there is nothing to listen to")
        with self._lock:
            self._taps.append((index, tap))
            for members, outlet in self._outlets.items():
                if index in members:
                    outlet.add(tap)

    def drop_tap(self, tap: Producer) -> None:
        """Close ``tap`` and let go of it. From any thread."""
        tap.close()
        with self._lock:
            self._taps = [(index, each) for index, each in self._taps if each is not tap]
            for outlet in self._outlets.values():
                outlet.sweep()

    def sender(self, to: str | None = None) -> Sender:
        """The sender for the routes that ``to`` names: a route, its topic or its peer; None for every output.

        Raises ValueError, naming the nearest, when nothing is called so.
        """
        made = self._senders.get(to)
        if made is None:
            made = self._senders[to] = self._make(self._matching(to))
        return made

    def send_noted(self, to: str | None, data: Any, notes: Notes, timeout_ns: int = -1, origin: Origin = None) -> None:
        """As the sender for ``to`` does, with notes. Raises what that raises, and ``payload-unencodable`` for metadata
        that cannot be sent."""
        parts = self._noted.get(to)
        if parts is None:
            parts = self._noted[to] = _Parts(self._parts(self._matching(to)))
        if not parts.parts:
            _send_nowhere(data)
        parts.send(data, timeout_ns, origin, notes.trailer(parts.parts[0].route))

    def outlet(self, to: str | None = None) -> OutletLike:
        """The one outlet for the routes that ``to`` names."""
        return self._outlet_of(self._matching(to))

    def records_outlet(self, to: str | None, data: Any, size: int) -> OutletLike:
        """The same for records of ``size`` bytes in ``data``, each of which is looked at where routes carry anything
        but bytes. Raises ChronetixError ``payload-unencodable`` for one that is not what a route carries."""
        for part in self._parts(self._matching(to)):
            if part.kind.check is None or size < 1:
                continue
            with octets.flat(data) as flat:
                for at in range(0, flat.nbytes - size + 1, size):
                    part.kind.encode(codec.Encoded(flat[at : at + size].tobytes()), part.route)
        return self.outlet(to)

    def outlets(self, to: str | None = None) -> tuple[Any, ...]:
        """All outlets by which a send to the routes that ``to`` names may go: what waits for it waits for all."""
        members = self._matching(to)
        if not members:
            return ()
        groups: dict[str, list[int]] = {}
        for index in members:
            groups.setdefault(codec.canonical(self.ports[index].content_type), []).append(index)
        return tuple(dict.fromkeys(self._outlet_of(tuple(group)) for group in (*groups.values(), members)))

    @property
    def high(self) -> bool:
        """A route's frames in use have reached its watermark."""
        return any(producer.high for producer in self.producers)

    def close(self) -> None:
        """End of stream on every route. Idempotent."""
        for producer in (*self.producers, *(tap for _, tap in self._taps)):
            producer.close()

    def _matching(self, to: str | None) -> tuple[int, ...]:
        if to is None:
            return tuple(range(len(self.ports)))
        found = tuple(i for i, port in enumerate(self.ports) if to in (port.route, port.peer, port.topic))
        if found and to:
            return found
        names = sorted({name for port in self.ports for name in (port.route, port.peer, port.topic) if name})
        near = difflib.get_close_matches(to, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"outputs are {', '.join(names) or 'none'}"
        raise ValueError(f"no output is called {to!r}: {hint}")

    def _outlet_of(self, members: tuple[int, ...]) -> OutletLike:
        made = self._outlets.get(members)
        if made is None:
            if not self.producers:
                raise RuntimeError("nothing can be sent before on_start")
            with self._lock:
                made = self._make_outlet([self.producers[i] for i in members])
                for index, tap in self._taps:
                    if index in members:
                        made.add(tap)
                self._outlets[members] = made
        return made

    def _parts(self, members: tuple[int, ...]) -> list[_Part]:
        """Routes of one content type go together."""
        groups: dict[str, list[int]] = {}
        for index in members:
            groups.setdefault(codec.canonical(self.ports[index].content_type), []).append(index)
        return [
            _Part(codec.of(kind), self._outlet_of(tuple(group)), self.ports[group[0]].route)
            for kind, group in groups.items()
        ]

    def _make(self, members: tuple[int, ...]) -> Sender:
        if not members:
            return _send_nowhere
        parts = self._parts(members)
        if len(parts) == 1:
            return _one_type(parts[0])
        if all(part.kind.check is None for part in parts):
            everyone = self._outlet_of(members)
            everyone.encode_with(partial(parts[0].kind.pack, where=parts[0].route))
            return everyone.send
        return _Parts(parts).send


@dataclass(frozen=True, slots=True)
class Notes:
    """What may go along with a frame: ``stamp_ns``, a time of the sender's own (0: none), and a map of metadata."""

    stamp_ns: int
    meta: Any

    def trailer(self, route: str) -> bytes:
        """As it lies behind the payload: the metadata in CBOR, the time, their length, zero (shm/SPEC.md, 3.1)."""
        meta = b"" if self.meta is None else codec.pack_meta(self.meta, route)
        try:
            return meta + _TRAILER.pack(self.stamp_ns, len(meta), 0)
        except struct.error:
            raise ValueError(f"stamp_ns is a whole number of ns that 64 bits hold, not {self.stamp_ns!r}") from None


_TRAILER: Final = struct.Struct("<qII")


@dataclass(frozen=True, slots=True)
class _Part:
    """Routes of one content type; ``route`` is the one that errors name."""

    kind: codec.Codec
    outlet: OutletLike
    route: str


def _send_nowhere(data: Any, timeout_ns: int = -1, origin: Origin = None) -> None:  # noqa: ARG001
    raise ValueError("this node has no data outputs: give it a data route, or publish")


def _one_type(part: _Part) -> Sender:
    kind, outlet, route = part.kind, part.outlet, part.route
    send, dump, pack = outlet.send, kind.dump, kind.pack
    if kind.check is None:
        outlet.encode_with(partial(pack, where=route))
        return send
    if kind.prepare is not None:
        return _Parts([part]).send
    values = frozenset({dict, list, str, int, float})

    def encode_and_send(data: Any, timeout_ns: int = -1, origin: Origin = None) -> int:
        if type(data) in values:
            try:
                data = dump(data)
            except Exception as reason:
                raise kind.unencodable(data, reason, route) from reason
        else:
            data = pack(data, route)
        return send(data, timeout_ns, origin)

    return encode_and_send


class _Parts:
    """Sends a value to routes of any types: it is encoded for each, then room is reserved for all, filled, and all are
    committed: never only some."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.parts = tuple(parts)

    def send(self, data: Any, timeout_ns: int = -1, origin: Origin = None, trailer: bytes = b"") -> None:
        """With ``trailer`` behind the payload, if there is one."""
        ready = [(part.outlet, part.kind.ready(data, part.route)) for part in self.parts]
        with ExitStack() as undo:
            loans = []
            for outlet, value in ready:
                loan = outlet.loan(value.size + len(trailer), timeout_ns, origin)
                undo.callback(loan.cancel)
                _fill(loan, value, trailer)
                loans.append(loan)
            undo.pop_all()
        for loan in loans:
            if trailer:
                loan.commit(noted=True)
            else:
                loan.commit()


def _fill(loan: Loan, value: codec.PreparedValue, trailer: bytes) -> None:
    with memoryview(loan) as view:
        if not trailer:
            value.write(view)
            return
        with view[: value.size] as payload:
            value.write(payload)
        view[value.size :] = trailer
