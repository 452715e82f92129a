"""The first messages on every connection: the hello of the side that connects, and the daemon's welcome or refusal."""

from __future__ import annotations

from typing import Any, Literal

from chronetix.protocol.messages.base import MAX_FRAME, Count, WireMessage

PROTOCOL_VERSIONS = (1,)
"""Versions of this protocol that this code supports, best first."""

HANDOVER = "handover"
"""The feature in the hello of a worker that can stand by, and can hand its node over to another worker."""

ACCUSE = "accuse"
"""The feature in the hello of a worker that reports a peer that broke the ABI. The welcome names it if the daemon knows
the message :class:`Accuse`."""

REATTACH = "reattach"
"""The feature in the hello of a worker that reattaches: a :class:`Reattach` is its next message."""


SHARED_PROCESS = "shared-process"
"""The feature in the hello of a worker that attaches from a process which does more than that, as a notebook: the
daemon never signals the process, but ends the connection."""

WORKER_FEATURES = (HANDOVER, REATTACH, ACCUSE, SHARED_PROCESS)
"""The features of workers that this daemon knows."""


class Hello(WireMessage, tag="hello", frozen=True):
    """The first message of the side that connects: the versions that it supports, and its role.

    ``attach``: the name in ``attach://NAME`` of the node whose worker a process that the daemon has not started is to
    become; ``token`` is the flow's attach token then. The process that has connected is the worker.
    """

    protocol: list[Count]
    role: Literal["client", "worker"]
    software: str = ""
    features: list[str] = []
    pid: Count = 0
    attach: str = ""
    token: str = ""


class Welcome(WireMessage, tag="welcome", frozen=True):
    """The daemon's answer to a hello that it accepts. A refusal is a :class:`Failure`, after which the daemon
    closes."""

    protocol: Count
    daemon: str
    features: list[str] = []
    max_frame: Count = MAX_FRAME


class Failure(WireMessage, tag="error", frozen=True):
    """An error; ``code`` and ``name`` are those of the error catalogue.

    With ``id`` it ends that call; without, it concerns the connection.
    """

    code: Count
    name: str
    message: str
    hint: str = ""
    id: Count | None = None
    details: dict[str, Any] = {}
