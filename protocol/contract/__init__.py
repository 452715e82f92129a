"""What a flow is: the compiled graph (CompileOutput) that the orchestrator hands to the daemon, read and checked.

``parse_flow`` takes the map as it came from JSON or CBOR and gives either a typed :class:`Flow` or every problem at
once, each with the path of its field (``routes[2].from``) and, where one is near, the name that was probably meant.
Rules:

* other programs may add fields: unknown ones stay in ``raw`` and are passed on; one that looks misspelt gives a
warning;
* nothing about the map is taken for granted: a value of a wrong type gives a problem, never an exception;
* pure: whether an artifact exists is not checked here.
"""

from chronetix.protocol.contract.parse import parse_flow
from chronetix.protocol.contract.types import (
    Artifact,
    Flow,
    Io,
    Liveness,
    Manifest,
    PortType,
    Problem,
    Publication,
    Qos,
    ResourceClaims,
    Restart,
    Route,
    Schedule,
    SchemaDescriptor,
    Subscription,
    Timer,
    Validation,
)

__all__ = [
    "Artifact",
    "Flow",
    "Io",
    "Liveness",
    "Manifest",
    "PortType",
    "Problem",
    "Publication",
    "Qos",
    "ResourceClaims",
    "Restart",
    "Route",
    "Schedule",
    "SchemaDescriptor",
    "Subscription",
    "Timer",
    "Validation",
    "parse_flow",
]
