"""Admits or refuses new connections on the control socket, by the peer's rights and the quotas.

Rules: a peer without any right, or beyond a quota, is refused before anything that it sends is read; it gets the
reason, and the audit log a record. An admitted connection counts until it has ended. New rules also apply to clients
that are connected already.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from typing import Any

import structlog

from chronetix.protocol.errors import ChronetixError, error
from chronetixd.control.client import ControlClient, not_allowed
from chronetixd.control.verbs import VerbContext
from chronetixd.core.access import Peer, Right, Rules
from chronetixd.core.quota import Quota, QuotaGate, Refusal
from chronetixd.linux.peer import group_id, look_up_rules, peer_of
from chronetixd.loop.inspection import MAX_ENDING, Inspection
from chronetixd.records.audit import Audit
from chronetixd.settings import Settings


def rules_of(settings: Settings, inherited_group: int | None = None) -> Rules:
    """Return the access rules of the settings, with names looked up. ``inherited_group`` is the group of a socket that
    the service manager made. Raises ChronetixError ``config-invalid``."""
    given = socket_group(settings) if settings.socket_group else inherited_group
    names = {name: getattr(settings, name) for name in ("allow_read", "allow_operate", "allow_admin")}
    return look_up_rules(os.geteuid(), given, names)


def socket_group(settings: Settings) -> int | None:
    """Return the group that the socket's file is to belong to; None to leave its group unchanged."""
    return group_id(settings.socket_group, "socket_group") if settings.socket_group else None


def quota_of(settings: Settings) -> Quota:
    """Return the quotas of the settings. Clients get at most half of the descriptors; the other half is for workers."""
    half = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    clients = min(settings.max_clients, half)
    return Quota(clients, min(settings.max_clients_per_user, clients), settings.connect_rate, settings.call_rate)


class Admission:
    """Makes a :class:`ControlClient` of each connection, and refuses those that are not admitted."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: VerbContext,
        audit: Audit,
        settings: Settings,
        daemon: str,
        inspection: Inspection,
    ) -> None:
        self._loop = loop
        self._context = context
        self._audit = audit
        self._settings = settings
        self._daemon = daemon
        self._inspection = inspection
        self._gate = QuotaGate(quota_of(settings))
        self._rules = Rules(os.geteuid())
        self.clients: set[ControlClient] = set()

    def configure(self, settings: Settings, rules: Rules) -> None:
        """Put new quotas and rules into force. Clients that have no right any more are disconnected."""
        self._settings = settings
        self._rules = rules
        self._gate.quota = quota_of(settings)
        for client in tuple(self.clients):
            client.allow(rules.right_of(client.peer))
            if client.right is Right.NONE:
                client.refuse(self._stranger(client.peer))

    async def part(self, reason: ChronetixError, timeout_s: float) -> None:
        """End every call and every connection with ``reason``, within ``timeout_s``."""
        parting = [self._loop.create_task(client.part(reason)) for client in tuple(self.clients)]
        if parting:
            await asyncio.wait(parting, timeout=timeout_s)
        for client in tuple(self.clients):
            client.abort()
        for task in parting:
            task.cancel()

    def connected(self, sock: socket.socket) -> None:
        """Admit or refuse the connection ``sock``, which this object owns from now on."""
        try:
            peer = peer_of(sock)
        except OSError as reason:
            structlog.get_logger("chronetixd.control.client").warning(
                "a client could not be identified", reason=str(reason)
            )
            self._inspection.close(-1, sock)
            return
        right = self._rules.right_of(peer)
        refusal = self._refusal(peer, right)
        client = ControlClient(
            self._loop,
            sock,
            self._context,
            peer=peer,
            right=right,
            gate=self._gate,
            daemon=self._daemon,
            hello_s=self._settings.hello_timeout,
            frame_s=self._settings.frame_timeout,
            max_frame=self._settings.max_frame,
            on_closed=self._closed if refusal is None else _forget,
            inspection=self._inspection,
        )
        if refusal is None:
            self.clients.add(client)
        else:
            self._audit.refused(peer, "connect", refusal.name)
            client.refuse(refusal)

    def _refusal(self, peer: Peer, right: Right) -> ChronetixError | None:
        if right is Right.NONE:
            return self._stranger(peer)
        if self._inspection.refuses(peer.uid):
            what = f"another client of user {peer.uid}, who has sent descriptors that cannot be closed yet"
            return error("quota-exceeded", what=what, limit=MAX_ENDING)
        return self._one_too_many(peer, right)

    @staticmethod
    def _stranger(peer: Peer) -> ChronetixError:
        return not_allowed(peer, Right.READ, "talk to this daemon")

    def _one_too_many(self, peer: Peer, right: Right) -> ChronetixError | None:
        refusal: Refusal | None = self._gate.admit(peer.uid, right, time.monotonic_ns())
        return error("quota-exceeded", what=refusal.what, limit=refusal.limit) if refusal else None

    def _closed(self, client: ControlClient) -> None:
        if client in self.clients:
            self.clients.discard(client)
            self._gate.leave(client.peer.uid, time.monotonic_ns())


def _forget(_client: Any) -> None:
    """Do nothing when a refused connection ends, because it was never counted."""
