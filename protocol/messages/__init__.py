"""Every message that is sent over a Unix socket, as one frozen struct each: a module for each subject, and in this
module the unions of messages that each side may send.

On the wire a message is a CBOR map whose key ``type`` names the struct (see PROTOCOL.md). Rules:

* Fields may be added, never removed or given another meaning; a reader ignores keys it does not know.
* A message whose struct has ``descriptors`` is followed, in order, by that many SCM_RIGHTS descriptors.
* Times are integers: ``*_ns`` on CLOCK_MONOTONIC unless the name says ``unix``.
* Nothing here reads a clock, opens a descriptor or knows a socket.
"""

from __future__ import annotations

from chronetix.protocol.messages.base import (
    LOG_LEVELS,
    MAX_FRAME,
    Count,
    LogLevel,
    Priority,
    WireMessage,
)
from chronetix.protocol.messages.bus import (
    Deliver,
    Envelope,
    MessagesDropped,
    Publish,
    Reply,
    Request,
    RequestFailure,
    Subscribe,
    Tick,
    Unsubscribe,
)
from chronetix.protocol.messages.call import (
    Call,
    Cancel,
    Item,
    Result,
)
from chronetix.protocol.messages.connection import (
    ACCUSE,
    HANDOVER,
    PROTOCOL_VERSIONS,
    REATTACH,
    SHARED_PROCESS,
    WORKER_FEATURES,
    Failure,
    Hello,
    Welcome,
)
from chronetix.protocol.messages.launcher import (
    LauncherReady,
    Spawn,
    Spawned,
    SpawnFailed,
)
from chronetix.protocol.messages.memory import (
    Accuse,
    Conclude,
    Detach,
    Drained,
    Extend,
    GaveUp,
    InputLink,
    Link,
    Linked,
    Offer,
    Port,
    Retract,
    Segment,
    SegmentDropped,
    SegmentMapped,
)
from chronetix.protocol.messages.node import (
    Assign,
    Configure,
    Drain,
    Fault,
    Finished,
    FrameFailed,
    Leave,
    Log,
    Ping,
    Pong,
    Ready,
    Start,
    Started,
    TimerSpec,
)
from chronetix.protocol.messages.reattach import (
    Reattach,
    Reattached,
    ReattachedStage,
)

__all__ = [
    "ACCUSE",
    "HANDOVER",
    "LOG_LEVELS",
    "MAX_FRAME",
    "PROTOCOL_VERSIONS",
    "REATTACH",
    "SHARED_PROCESS",
    "WORKER_FEATURES",
    "Accuse",
    "Assign",
    "Call",
    "Cancel",
    "ClientMessage",
    "Conclude",
    "Configure",
    "ConnectingMessage",
    "Count",
    "Deliver",
    "Detach",
    "Drain",
    "Drained",
    "Envelope",
    "Extend",
    "Failure",
    "Fault",
    "Finished",
    "FrameFailed",
    "GaveUp",
    "Hello",
    "InputLink",
    "Item",
    "LauncherMessage",
    "LauncherReady",
    "Leave",
    "Link",
    "Linked",
    "Log",
    "LogLevel",
    "MessagesDropped",
    "Offer",
    "Ping",
    "Pong",
    "Port",
    "Priority",
    "Publish",
    "Ready",
    "Reattach",
    "Reattached",
    "ReattachedStage",
    "Reply",
    "Request",
    "RequestFailure",
    "Result",
    "Retract",
    "Segment",
    "SegmentDropped",
    "SegmentMapped",
    "Spawn",
    "SpawnFailed",
    "Spawned",
    "Start",
    "Started",
    "Subscribe",
    "Tick",
    "TimerSpec",
    "ToClient",
    "ToLauncher",
    "ToWorker",
    "Unsubscribe",
    "Welcome",
    "WireMessage",
    "WorkerMessage",
]

ClientMessage = Hello | Call | Cancel
"""The messages that a client may send."""

ConnectingMessage = ClientMessage | Reattach
"""The messages that may come on the control socket before the daemon knows whether the peer is a client or a worker."""

WorkerMessage = (
    Hello
    | Reattach
    | Offer
    | Linked
    | Drained
    | GaveUp
    | Accuse
    | Segment
    | SegmentMapped
    | SegmentDropped
    | Ready
    | Started
    | Finished
    | Fault
    | FrameFailed
    | Pong
    | Log
    | Publish
    | Subscribe
    | Unsubscribe
    | MessagesDropped
    | Request
    | Reply
)
"""The messages that a worker may send."""

ToClient = Welcome | Failure | Item | Result
"""The messages that the daemon sends to clients."""

ToWorker = (
    Welcome
    | Failure
    | Assign
    | Configure
    | Reattached
    | Extend
    | Link
    | Drained
    | Conclude
    | Segment
    | SegmentMapped
    | SegmentDropped
    | Start
    | Detach
    | Retract
    | Drain
    | Leave
    | Ping
    | Deliver
    | Reply
    | RequestFailure
    | Tick
)
"""The messages that the daemon sends to workers."""

LauncherMessage = LauncherReady | Spawned | SpawnFailed
"""The messages that the launcher sends."""

ToLauncher = Spawn
"""The only message that the daemon sends to the launcher."""
