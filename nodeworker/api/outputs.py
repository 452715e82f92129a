"""What a node sends: its data routes grouped by content type, so that a frame is encoded and copied once for each type.

Rules: a send reaches every addressed route or none (``WouldBlock`` leaves nothing behind); bytes-like data goes to
all of them through one outlet, with one copy; senders are made once and kept, because they are the hot path. A tap
joins the outlets of the route that it listens to, which costs a frame nothing but that route's share.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from chronetix.nodeworker.api import codec
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

    def outlet(self, to: str | None = None) -> OutletLike:
        """The one outlet for the routes that ``to`` names."""
        return self._outlet_of(self._matching(to))

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

    def _make(self, members: tuple[int, ...]) -> Sender:
        if not members:
            return _send_nowhere
        groups: dict[str, list[int]] = {}
        for index in members:
            groups.setdefault(codec.canonical(self.ports[index].content_type), []).append(index)
        parts = [
            (codec.of(kind), self._outlet_of(tuple(group)), self.ports[group[0]].route)
            for kind, group in groups.items()
        ]
        if len(parts) == 1:
            return _one_type(*parts[0])
        return _several_types(parts, self._outlet_of(members))


def _send_nowhere(data: Any, timeout_ns: int = -1, origin: Origin = None) -> None:  # noqa: ARG001
    raise ValueError("this node has no data outputs: give it a data route, or publish")


def _one_type(kind: codec.Codec, outlet: OutletLike, route: str) -> Sender:
    send = outlet.send
    if kind.content_type == codec.OCTETS:
        return send
    if kind.measure is not None:
        return _in_place(kind, outlet, route)
    dump, is_bytes = kind.dump, codec.is_bytes
    values = frozenset({dict, list, str, int, float})

    def encode_and_send(data: Any, timeout_ns: int = -1, origin: Origin = None) -> int:
        if type(data) in values or not is_bytes(data):
            try:
                data = dump(data)
            except Exception as reason:
                raise kind.unencodable(data, reason, route) from reason
        return send(data, timeout_ns, origin)

    return encode_and_send


def _in_place(kind: codec.Codec, outlet: OutletLike, route: str) -> Sender:
    """For formats that can say their size beforehand: written straight into shared memory."""
    measure, place = kind.measure, kind.place
    assert measure is not None
    assert place is not None

    def write_and_commit(data: Any, timeout_ns: int = -1, origin: Origin = None) -> int:
        if codec.is_bytes(data):
            return outlet.send(data, timeout_ns, origin)
        try:
            size = measure(data)
        except Exception as reason:
            raise kind.unencodable(data, reason, route) from reason
        loan = outlet.loan(size, timeout_ns, origin)
        try:
            with memoryview(loan) as view:
                place(data, view)
        except BaseException:
            loan.cancel()
            raise
        seq: int = loan.commit()
        return seq

    return write_and_commit


def _several_types(parts: Sequence[tuple[codec.Codec, OutletLike, str]], everyone: OutletLike) -> Sender:
    """Each type is encoded, then room is reserved for all, then all are committed: never only some."""

    def send(data: Any, timeout_ns: int = -1, origin: Origin = None) -> None:
        if codec.is_bytes(data):
            everyone.send(data, timeout_ns, origin)
            return
        encoded = [(outlet, memoryview(kind.pack(data, route)).cast("B")) for kind, outlet, route in parts]
        with ExitStack() as undo:
            loans = []
            for outlet, payload in encoded:
                loan = outlet.loan(payload.nbytes, timeout_ns, origin)
                undo.callback(loan.cancel)
                with memoryview(loan) as view:
                    view[:] = payload
                loans.append(loan)
            undo.pop_all()
        for loan in loans:
            loan.commit()

    return send
