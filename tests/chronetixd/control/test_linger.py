"""Clients that would have the daemon keep things for ever: answers that are not read, frames that do not end."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from chronetix.protocol.errors import error
from chronetix.protocol.messages import Item
from chronetixd.control import client as clients
from chronetixd.core import quota
from chronetixd.core.access import Peer, Right
from chronetixd.core.quota import Quota, QuotaGate


def test_a_refused_client_that_never_reads_is_closed_in_the_end(
    loop: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "LINGER_S", 0)
    ours, theirs = socket.socketpair()
    gone: list[Any] = []
    with theirs:
        client = clients.ControlClient(
            loop,
            ours,
            None,
            peer=Peer(pid=1, uid=7, gid=7),
            right=Right.READ,
            gate=QuotaGate(Quota(1, 1, 1, 1)),
            daemon="d",
            inspection=None,  # type: ignore[arg-type]
            hello_s=60,
            frame_s=60,
            max_frame=1 << 24,
            on_closed=gone.append,  # type: ignore[arg-type]
        )
        client._connection.send(Item(id=1, value="x" * 10_000_000))
        client.refuse(error("daemon-stopping"))
        assert gone == [client]
        until(lambda: client._connection.closed)


def test_a_user_s_unfinished_frames_are_bounded_over_all_of_his_connections(
    loop: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "MAX_PARTIAL", 1500)
    gate = QuotaGate(Quota(10, 10, 100, 100))
    gone: list[Any] = []
    peers: list[socket.socket] = []
    for _ in range(2):
        assert gate.admit(7, Right.OPERATE, 0) is None
        ours, theirs = socket.socketpair()
        peers.append(theirs)
        clients.ControlClient(
            loop,
            ours,
            None,  # type: ignore[arg-type]
            peer=Peer(pid=1, uid=7, gid=7),
            right=Right.OPERATE,
            gate=gate,
            daemon="d",
            inspection=None,  # type: ignore[arg-type]
            hello_s=60,
            frame_s=60,
            max_frame=1 << 24,
            on_closed=gone.append,
        )
    begun = (100_000).to_bytes(4, "big") + bytes(996)
    peers[0].send(begun)
    until(lambda: gate._users[7].partial == 1000)
    peers[1].send(begun)
    until(lambda: len(gone) == 1)
    assert b"quota-exceeded" in peers[1].recv(4096)
    assert gate._users[7].partial == 1000
    peers[0].close()
    until(lambda: len(gone) == 2)
    assert gate._users[7].partial == 0
    peers[1].close()
