"""A client that is sent away and never reads is not kept for ever."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from chronetixd import client as clients
from chronetixd.core.access import Peer, Right
from chronetixd.core.quota import Gate, Quota
from protocol.errors import error
from protocol.messages import Item


def test_a_refused_client_that_never_reads_is_closed_in_the_end(
    loop: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "LINGER_S", 0)
    ours, theirs = socket.socketpair()
    gone: list[Any] = []
    with theirs:
        client = clients.Client(
            loop,
            ours,
            None,
            peer=Peer(pid=1, uid=7, gid=7),
            right=Right.READ,
            gate=Gate(Quota(1, 1, 1, 1)),
            daemon="d",
            hello_s=60,
            frame_s=60,
            max_frame=1 << 24,
            on_closed=gone.append,  # type: ignore[arg-type]
        )
        client._connection.send(Item(id=1, value="x" * 10_000_000))
        client.refuse(error("daemon-stopping"))
        assert gone == [client]
        until(lambda: client._connection.closed)
