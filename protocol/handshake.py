"""The first two messages of a connection, as a table.

The side that connects sends a hello. The daemon answers with a welcome, or with a failure that lists the supported
versions, and then closes. No other message may come before these two, and neither is ever repeated. Every cell of the
table, phase by event, is filled in; an event that may not come raises and changes nothing.

    HELLO ──hello, accepted──▶ OPEN          (the daemon's side)
      └────hello, refused────▶ REFUSED
    WELCOME ──welcome──▶ OPEN                (the side that connected)
      └───────failure──▶ REFUSED
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Final

from chronetix.protocol.errors import ChronetixError, error, from_failure
from chronetix.protocol.framing import type_of
from chronetix.protocol.messages import MAX_FRAME, PROTOCOL_VERSIONS, Failure, Hello, Welcome, WireMessage


class Phase(Enum):
    """The phase of one side of a connection."""

    HELLO = "awaiting a hello"
    WELCOME = "awaiting the answer to its hello"
    OPEN = "open"
    REFUSED = "refused"


class HandshakeEvent(Enum):
    """The kinds of messages that the handshake distinguishes."""

    HELLO = "hello"
    WELCOME = "welcome"
    FAILURE = "failure"
    OTHER = "any other message"


NEXT: Final[Mapping[tuple[Phase, HandshakeEvent], Phase | None]] = {
    (Phase.HELLO, HandshakeEvent.HELLO): Phase.OPEN,
    (Phase.HELLO, HandshakeEvent.WELCOME): None,
    (Phase.HELLO, HandshakeEvent.FAILURE): None,
    (Phase.HELLO, HandshakeEvent.OTHER): None,
    (Phase.WELCOME, HandshakeEvent.HELLO): None,
    (Phase.WELCOME, HandshakeEvent.WELCOME): Phase.OPEN,
    (Phase.WELCOME, HandshakeEvent.FAILURE): Phase.REFUSED,
    (Phase.WELCOME, HandshakeEvent.OTHER): None,
    (Phase.OPEN, HandshakeEvent.HELLO): None,
    (Phase.OPEN, HandshakeEvent.WELCOME): None,
    (Phase.OPEN, HandshakeEvent.FAILURE): Phase.OPEN,
    (Phase.OPEN, HandshakeEvent.OTHER): Phase.OPEN,
    (Phase.REFUSED, HandshakeEvent.HELLO): None,
    (Phase.REFUSED, HandshakeEvent.WELCOME): None,
    (Phase.REFUSED, HandshakeEvent.FAILURE): None,
    (Phase.REFUSED, HandshakeEvent.OTHER): None,
}
"""The phase after an event; None where the event may not come. A hello that :func:`answer` refuses ends in REFUSED."""

_WHEN: Final[Mapping[Phase, str]] = {
    Phase.HELLO: "before the hello",
    Phase.WELCOME: "before the welcome",
    Phase.OPEN: "after the handshake",
    Phase.REFUSED: "on a connection that was refused",
}


def event_of(message: WireMessage) -> HandshakeEvent:
    """Return the kind of ``message`` for the handshake."""
    if isinstance(message, Hello):
        return HandshakeEvent.HELLO
    if isinstance(message, Welcome):
        return HandshakeEvent.WELCOME
    return HandshakeEvent.FAILURE if isinstance(message, Failure) else HandshakeEvent.OTHER


def advance(phase: Phase, message: WireMessage) -> Phase:
    """Return the phase after ``message``. Raises ProtocolError ``unexpected-message`` if it may not come now."""
    following = NEXT[phase, event_of(message)]
    if following is None:
        raise error("unexpected-message", type=type_of(message), when=_WHEN[phase])
    return following


def answer(
    hello: Hello,
    *,
    daemon: str,
    roles: Collection[str] = ("client", "worker"),
    supported: Sequence[int] = PROTOCOL_VERSIONS,
    features: Sequence[str] = (),
    max_frame: int = MAX_FRAME,
) -> Welcome | Failure:
    """Return the daemon's answer: a welcome with the highest version that both sides support, or the refusal to send
    before closing.

    ``roles`` are those that this socket accepts. ``features`` are those of the daemon; the welcome names the ones that
    the peer asked for. The details of a refusal have the accepted values, ``supported`` or ``accepted``.
    """
    if hello.role not in roles:
        return error("role-not-accepted", role=hello.role, accepted=sorted(roles)).failure()
    common = set(hello.protocol).intersection(supported)
    if not common:
        offered = hello.protocol[:16]
        return error("version-unsupported", offered=offered, supported=list(supported)).failure()
    shared = [feature for feature in features if feature in hello.features]
    return Welcome(protocol=max(common), daemon=daemon, features=shared, max_frame=max_frame)


def concluded(hello: Hello, reply: WireMessage) -> Welcome:
    """Return the welcome that answers this side's ``hello``. Raises RemoteError if ``reply`` is a refusal,
    ProtocolError if it is another message or has a version that was not offered."""
    if isinstance(reply, Failure):
        raise from_failure(reply)
    if not isinstance(reply, Welcome):
        raise error("unexpected-message", type=type_of(reply), when=_WHEN[Phase.WELCOME])
    if reply.protocol not in hello.protocol:
        raise _not_offered(hello, reply)
    return reply


def _not_offered(hello: Hello, reply: Welcome) -> ChronetixError:
    reason = f"it chose protocol version {reply.protocol}, offered were {hello.protocol}"
    return error("malformed-message", type="welcome", reason=reason)
