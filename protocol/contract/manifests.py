"""Reads one node's manifest. Its ``node`` is the manifest's ``node_id``, empty if the manifest has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from chronetix.protocol.contract.environment import read_args, read_cwd, read_env, read_python_env, read_user
from chronetix.protocol.contract.reading import Fields, quote, unfit_name
from chronetix.protocol.contract.supervision import read_liveness, read_restart
from chronetix.protocol.contract.types import (
    ALIGNMENTS,
    ARTIFACT_KINDS,
    CATEGORIES,
    CODECS,
    DEFAULT_ARENA,
    DELIVERIES,
    MAX_NS,
    MIN_ARENA,
    MISS_POLICIES,
    ORIGINS,
    QOS_CLASSES,
    URI_SCHEMES,
    Artifact,
    Io,
    Manifest,
    PortType,
    Publication,
    Qos,
    ResourceClaims,
    Schedule,
    Subscription,
    Timer,
)
from chronetix.protocol.contract.wording import cure_of_scheme, read_content_type, read_priority, read_version

_COUNT = (1 << 31) - 1
_BYTES = (1 << 62) - 1


def read_manifest(fields: Fields) -> Manifest:
    """Return the manifest, with defaults for fields that are missing or wrong."""
    artifact = _artifact(fields)
    manifest = Manifest(
        node=fields.name("node_id", blanks=True),
        plugin_id=fields.name("plugin_id", required=True, blanks=True),
        version=fields.text("version", "0.1.0"),
        origin=fields.usual_choice("origin", ORIGINS, "external"),
        category=fields.usual_choice("category", CATEGORIES, "Business"),
        role=fields.text("role"),
        artifact=artifact,
        io=_io(fields.child("io")),
        qos=_qos(fields),
        restart=read_restart(fields),
        liveness=read_liveness(fields),
        resource_claims=_claims(fields.child("resource_claims")),
        timers=_timers(fields),
        bus_subscriptions=tuple(map(_subscription, fields.items("bus_subscriptions"))),
        bus_publications=tuple(map(_publication, fields.items("bus_publications"))),
        params=fields.free_map("params"),
        features=fields.free_map("features"),
        annotations=fields.free_map("annotations"),
        env=read_env(fields, artifact, artifact.env),
        cwd=read_cwd(fields, artifact.cwd),
        user=read_user(fields),
        raw=fields.raw,
    )
    fields.done()
    return manifest


def _artifact(parent: Fields) -> Artifact:
    if parent.get("artifact") is None:
        parent.notes.problem(parent.at("artifact"), "is required and missing", "give its kind and uri")
        return Artifact(kind="Python", uri="")
    fields = parent.child("artifact")
    if not fields.raw:
        if isinstance(parent.get("artifact"), Mapping):
            parent.notes.problem(fields.path, "is empty", "give its kind and uri")
        return Artifact(kind="Python", uri="")
    uri = fields.required_text("uri")
    artifact = Artifact(kind=fields.choice("kind", ARTIFACT_KINDS), uri=uri, args=read_args(fields, uri))
    artifact = replace(artifact, python_env=read_python_env(fields, uri))
    artifact = replace(artifact, env=read_env(fields, artifact), cwd=read_cwd(fields))
    scheme, separator, rest = artifact.uri.partition("://")
    if separator and (cure := cure_of_scheme(scheme, rest)) is not None:
        fields.notes.problem(fields.at("uri"), f"an artifact cannot be fetched from {quote(artifact.uri)}", cure)
    elif separator and scheme not in URI_SCHEMES:
        hint = fields.notes.did_you_mean(scheme, URI_SCHEMES, "one of: file, builtin, python, attach")
        fields.notes.problem(fields.at("uri"), f"the scheme {quote(scheme)} is not known", hint)
    elif separator and not rest:
        fields.notes.problem(fields.at("uri"), f"nothing comes after {quote(artifact.uri)}")
    elif "\0" in artifact.uri:
        fields.notes.problem(fields.at("uri"), "holds a zero character")
    elif artifact.attach and (reason := unfit_name(artifact.attach)):
        fields.notes.problem(fields.at("uri"), f"the name after attach:// {reason}", "use letters, digits, . _ -")
    fields.done()
    return artifact


def _io(fields: Fields) -> Io:
    checked = fields.free_child("batch_hints")
    checked.integer("preferred_rows", 1, _BYTES)
    checked.integer("preferred_bytes", 1, _BYTES)
    checked.done()
    io = Io(
        inputs=tuple(map(_port_type, fields.items("inputs"))),
        outputs=tuple(map(_port_type, fields.items("outputs"))),
        batch_hints=checked.raw,
    )
    fields.done()
    return io


def _port_type(fields: Fields) -> PortType:
    port = PortType(
        content_type=read_content_type(fields),
        schema_ver=read_version(fields),
        schema_ref=fields.text("schema_ref"),
    )
    fields.done()
    return port


def _qos(parent: Fields) -> Qos:
    fields = parent.free_child("qos")
    qos = Qos(
        deadline_ns=fields.integer("deadline_ns", 0, MAX_NS),
        priority=read_priority(fields),
        qos=fields.choice("qos", QOS_CLASSES, "normal"),
        retry=fields.integer("retry", 0, _COUNT),
        max_inflight=fields.integer("max_inflight", 1, _COUNT),
        credit_high=fields.integer("credit_high", 1, _COUNT),
        credit_low=fields.integer("credit_low", 0, _COUNT),
        raw=fields.raw,
    )
    if qos.credit_low is not None and qos.credit_high is not None and qos.credit_low > qos.credit_high:
        message = f"{qos.credit_low} is above credit_high, {qos.credit_high}"
        fields.notes.problem(fields.at("credit_low"), message, "it must not be")
    fields.done()
    return qos


def _claims(fields: Fields) -> ResourceClaims:
    arena = fields.integer("arena_bytes", MIN_ARENA, _BYTES)
    claims = ResourceClaims(
        cpu_millis=fields.integer("cpu_millis", 0, _COUNT),
        memory_bytes=fields.integer("memory_bytes", 1, _BYTES),
        arena_bytes=DEFAULT_ARENA if arena is None else arena,
        hugepages=fields.flag("hugepages"),
    )
    fields.done()
    return claims


def _timers(parent: Fields) -> tuple[Timer, ...]:
    timers: dict[str, Timer] = {}
    for fields in parent.items("timers"):
        timer = _timer(fields)
        if timer.id in timers and timer.id:
            fields.notes.problem(fields.at("id"), f"{quote(timer.id)} is the id of an earlier timer of this node")
        timers[timer.id] = timer
    return tuple(timers.values())


def _timer(fields: Fields) -> Timer:
    timer = Timer(
        id=fields.name("id", required=True),
        schedule=_schedule(fields.child("schedule")),
        miss_policy=fields.choice("miss_policy", MISS_POLICIES, "coalesce"),
        deadline_ns=fields.integer("deadline_ns", 0, MAX_NS),
        priority=read_priority(fields),
    )
    fields.done()
    return timer


def _schedule(fields: Fields) -> Schedule:
    ways = [name for name in ("interval_ms", "rate_hz", "cron") if fields.get(name) is not None]
    if len(ways) != 1:
        message = f"{' and '.join(ways)} exclude each other" if ways else "says not when"
        fields.notes.problem(fields.path, message, "give one of: interval_ms, rate_hz, cron")
    jitter = fields.integer("jitter_pct", 0, 100) if type(fields.get("jitter_pct")) is int else None
    schedule = Schedule(
        interval_ms=fields.number("interval_ms", 0, MAX_NS / 1_000_000),
        rate_hz=fields.number("rate_hz", 0, 1_000_000),
        cron=fields.text("cron") or None,
        start_at=_start_at(fields),
        align_to=_align_to(fields),
        jitter_pct=jitter if jitter is not None else fields.number("jitter_pct", 0, 100) or 0,
    )
    fields.done()
    return schedule


def _align_to(fields: Fields) -> Literal["second", "minute", "hour", "day"] | None:
    if fields.get("align_to") is None:
        return None
    alignment: Literal["second", "minute", "hour", "day"] = fields.choice("align_to", ALIGNMENTS)
    return alignment


def _start_at(fields: Fields) -> str | int | None:
    """Return the field ``start_at``: a time as text, or Unix time in ns; None if it is absent or wrong."""
    value: Any = fields.get("start_at")
    if value is None or type(value) is str:
        return value
    return fields.integer("start_at", 0, MAX_NS)


def _subscription(fields: Fields) -> Subscription:
    filter_ = fields.get("filter")
    subscription = Subscription(
        pattern=fields.required_text("pattern"),
        delivery=fields.choice("delivery", DELIVERIES, "at_most_once"),
        codec=fields.choice("codec", CODECS, "json"),
        filter=filter_,
    )
    fields.done()
    return subscription


def _publication(fields: Fields) -> Publication:
    checked = fields.free_child("default_envelope")
    read_priority(checked)
    checked.integer("deadline", 0, MAX_NS)
    publication = Publication(
        topic=fields.required_text("topic"),
        codec=fields.choice("codec", CODECS, "json"),
        default_envelope=checked.raw,
    )
    fields.done()
    return publication
