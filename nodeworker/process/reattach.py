"""How a worker comes back after its daemon has died: it waits for the next one, says who it is and shows its memory.

The data plane needs no daemon and runs on meanwhile. What the worker has to say is kept by the link, and what it prints
by its pipes (``streams.py``), bounded. Only the IO thread calls this. The pauses between attempts grow to a second: an
absent daemon costs next to nothing. Whoever listens where the daemon did as another user than that, or root, is told
and shown nothing.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from chronetix.nodeworker.api.errors import DaemonGone
from chronetix.nodeworker.process.link import ControlLink
from chronetix.nodeworker.process.streams import ForeignStreams, Streams
from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.messages import (
    ACCUSE,
    HANDOVER,
    PROTOCOL_VERSIONS,
    REATTACH,
    Failure,
    Hello,
    Log,
    Reattach,
    Reattached,
    ToWorker,
    Welcome,
    WireMessage,
)
from chronetix.protocol.trust import listener

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 1.0

READ_S, LONGEST_READ_S = 0.001, 0.1
"""Between two looks whether the daemon has read the last message: no event tells that."""

ANSWER_S = 10.0
"""How long a daemon that was reached may take for its answer, before it is left and tried again."""

Describe = Callable[[], tuple[Reattach, Sequence[int], Sequence[WireMessage]]]


class Reattachment:
    """The way back of a worker to ``path``, once it was started. ``describe`` tells who it is and how far, with the
    descriptors of its memory, and what is to be told when it was taken back; it has the link renewed."""

    def __init__(
        self,
        path: str,
        link: ControlLink[ToWorker],
        describe: Describe,
        streams: Streams | ForeignStreams | None = None,
        features: Sequence[str] = (),
    ) -> None:
        """``streams``: by default those of a worker that prints to its daemon. ``features``: those of its hello, beside
        those that every worker of this kind has."""
        self._path = path
        self._features = features
        self._link = link
        self._daemon_user = link.peer_user
        self._describe = describe
        self._streams = streams or Streams()
        self._streams.hold()
        self._over = threading.Event()
        self._present = threading.Event()
        self._present.set()

    @property
    def armed(self) -> bool:
        """It may come back."""
        return self._link.survives

    def arm(self) -> None:
        """It was told to start. Before that it has done nothing that a later daemon would have to know of."""
        self._link.survives = True

    def settle(self) -> None:
        """Wait until a daemon is there and has read what was sent last, or none will be. Not from the IO thread."""
        pause = READ_S
        while self._present.wait() and not self._over.is_set() and not self._link.delivered:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_READ_S)

    def give_up(self) -> None:
        """The worker ends: whoever waits returns. From any thread."""
        self._over.set()
        self._present.set()

    def wait(self) -> bool:
        """The daemon is gone: return when one has taken the worker back; False when it was told to give up.

        Raises DaemonGone when a daemon refuses it: then it is nobody's.
        """
        self._present.clear()
        self._link.detach()
        returned = False
        try:
            returned = self._return()
        finally:
            if not returned:
                self._streams.silence()
            self._present.set()
        return returned

    def close(self) -> None:
        """Give back what it has. The IO thread has ended."""
        self._streams.close()

    def _return(self) -> bool:
        pause = 0.0
        while True:
            self._streams.begin()
            if self._over.wait(pause):
                return False
            pause = min(max(FIRST_PAUSE_S, 2 * pause), LONGEST_PAUSE_S)
            if self._attempt():
                self._streams.hold()
                return True

    def _attempt(self) -> bool:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(ANSWER_S)
        try:
            sock.connect(self._path)
            known = listener(sock) in (0, self._daemon_user)
        except OSError:
            known = False
        if not known:
            sock.close()
            return False
        try:
            self._link.attach(sock)
            self._introduce()
        except (OSError, EOFError, ChronetixError):
            self._link.detach()
            return False
        self._link.resume()
        return True

    def _introduce(self) -> None:
        """Raises DaemonGone when refused; OSError, EOFError or ProtocolError when this daemon is no good, or gone."""
        features = [REATTACH, HANDOVER, ACCUSE, *self._features]
        hello = Hello(protocol=list(PROTOCOL_VERSIONS), role="worker", features=features, pid=os.getpid())
        self._link.send_first(hello)
        self._expect(Welcome)
        reattach, descriptors, further = self._describe()
        pipes = self._streams.shown
        reattach = msgspec.structs.replace(reattach, pipes=bool(pipes))
        self._link.send_first(reattach, [*descriptors, *pipes])
        streams = self._expect(Reattached)
        self._streams.end()
        self._streams.take(streams)
        for message in (*self._losses(), *further):
            self._link.send_first(message)
        self._streams.told()

    def _losses(self) -> list[WireMessage]:
        """What is lost of what was printed, for the log."""
        return [
            Log(
                level="warning",
                message=f"{count} bytes that were printed to {stream} while no daemon was there are lost, the oldest",
                unix_ns=time.time_ns(),
                fields={"lost_bytes": count, "stream": stream},
            )
            for stream, count in self._streams.lost.items()
        ]

    def _expect(self, kind: type[Welcome | Reattached]) -> list[int]:
        answer, carried = self._link.receive()
        if isinstance(answer, kind):
            return carried
        for descriptor in carried:
            os.close(descriptor)
        if isinstance(answer, Failure):
            raise DaemonGone(f"the daemon does not take this worker back: {answer.message}")
        raise EOFError(f"a {type(answer).__name__} came where {kind.__name__} is due")
