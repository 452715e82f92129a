"""The artifact of a node: the DSL's ``plugin`` (long form) or ``kind, impl_kind, entry`` (short form) → artifact.

Rules: a platform type has its own artifact; every other node must name one, else MissingArtifact. A bare path or
``module:object`` gets its scheme. Whether the file exists is not checked, because a flow may be compiled on another
machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from chronetix.protocol.contract.wording import cure_of_scheme
from chronetix.protocol.nearest import did_you_mean, nearest
from chronetixd.compile import catalogue, form
from chronetixd.compile.fields import mapping_of, text_of, warn_near_misses
from chronetixd.compile.problems import Findings, Position
from chronetixd.compile.tree import SyntaxNode

_READ = ("kind", "artifact", "type", "id")
"""Fields of a plugin that are read here; the others are the artifact's as they are."""

_CANONICAL = {kind.lower(): kind for kind in catalogue.ARTIFACT_KINDS.values()}


@dataclass(frozen=True, slots=True)
class PluginReference:
    """Kind and uri of an artifact, and the role and category that follow from the form in which it was written."""

    kind: str = ""
    uri: str = ""
    type: str = ""
    id: str = ""
    role: str = ""
    category: str = "Business"
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def last_part(self) -> str:
        """The last part of the uri's path."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class _Written:
    """The fields of a plugin, under the same names for both forms."""

    kind: str | None
    uri: str | None
    type: str
    place: Position
    kind_place: Position
    uri_place: Position
    said_in: str
    id: str = ""
    short_kind: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def read_plugin(node: SyntaxNode, owner: str, findings: Findings) -> PluginReference:
    """Return the node's plugin; its kind or uri is empty if a problem was noted."""
    if node.get("plugin") is not None:
        plugin = mapping_of(node, "plugin", findings, owner)
        if plugin is None:
            return PluginReference()
        written = _long(plugin, owner, findings)
    else:
        written = _short(node, owner, findings)
    return _settle(written, owner, findings)


def _long(plugin: SyntaxNode, owner: str, findings: Findings) -> _Written:
    where = f"{owner}: plugin"
    warn_near_misses(plugin, form.PLUGIN, findings, where)
    return _Written(
        kind=text_of(plugin, "kind", findings, where),
        uri=text_of(plugin, "artifact", findings, where),
        type=text_of(plugin, "type", findings, where) or "",
        id=text_of(plugin, "id", findings, where) or "",
        place=plugin.place,
        kind_place=_value_place(plugin, "kind"),
        uri_place=_value_place(plugin, "artifact"),
        said_in="plugin.artifact",
        extra={key: value.plain() for key, value in plugin.fields.items() if key not in _READ},
    )


def _short(node: SyntaxNode, owner: str, findings: Findings) -> _Written:
    kind = text_of(node, "kind", findings, owner) or ""
    impl_kind = text_of(node, "impl_kind", findings, owner)
    known = {*catalogue.SHORT_KINDS, *catalogue.PLATFORM, *catalogue.ARTIFACT_KINDS}
    if kind and kind.lower() not in known and (meant := nearest(kind, known)) is not None:
        message = f'{owner}: unknown kind "{kind}" is taken for a role of its own'
        findings.warning(_value_place(node, "kind"), "InvalidField", message, f'did you mean "{meant}"?')
    names_implementation = kind in catalogue.ARTIFACT_KINDS and impl_kind is None
    type_ = "timer-source" if kind == "timer" and node.get("entry") is None else kind
    return _Written(
        kind=kind if names_implementation else impl_kind,
        uri=text_of(node, "entry", findings, owner),
        type=type_ if type_ in catalogue.PLATFORM else "",
        place=node.place,
        kind_place=_value_place(node, "kind" if names_implementation else "impl_kind"),
        uri_place=_value_place(node, "entry"),
        said_in="entry",
        short_kind="" if names_implementation else kind,
        extra={key: node.fields[key].plain() for key in form.OF_ARTIFACT if key in node.fields},
    )


def as_timer(plugin: PluginReference, node: SyntaxNode, owner: str, findings: Findings) -> PluginReference:
    """Return the plugin of a timer source of category System: always the builtin, whatever the file names."""
    builtin = catalogue.PLATFORM[catalogue.TIMER].uri
    if plugin.uri not in ("", builtin):
        message = f'{owner}: a timer source of category System is the builtin; "{plugin.uri}" is not used'
        findings.warning(node.place_of("plugin"), "InvalidField", message, "leave the artifact out, or the type")
    return replace(plugin, kind="WasmComponent", uri=builtin, extra={})


def _value_place(node: SyntaxNode, key: str) -> Position:
    found = node.fields.get(key)
    return node.place if found is None else found.place


def _settle(written: _Written, owner: str, findings: Findings) -> PluginReference:
    type_ = _platform_type(written, owner, findings)
    platform = catalogue.PLATFORM.get(type_)
    kind = _kind(written, platform is not None, owner, findings)
    uri = written.uri or (platform.uri if platform else "")
    if not uri:
        _missing(written.place, owner, findings, written)
    elif kind:
        uri = _checked_uri(uri, kind, written.uri_place, owner, findings)
    return PluginReference(
        kind=kind,
        uri=uri,
        type=type_ if platform else "",
        id=written.id,
        role=_short_role(written.short_kind),
        category=_category(platform is not None, written.short_kind),
        extra={**({"type": type_} if type_ and not platform else {}), **written.extra},
    )


def _category(is_platform: bool, short_kind: str) -> str:
    if is_platform:
        return "System"
    return "Resource" if short_kind == "resource" else "Business"


def _short_role(kind: str) -> str:
    return catalogue.SHORT_KINDS.get(kind.lower(), kind if kind not in catalogue.PLATFORM else "")


def _platform_type(written: _Written, owner: str, findings: Findings) -> str:
    asked = written.kind == "platform" or written.type
    if asked and written.type not in catalogue.PLATFORM and not written.uri:
        known = tuple(catalogue.PLATFORM)
        message = f'{owner}: "{written.type}" is no platform node' if written.type else f"{owner}: which platform node?"
        hint = did_you_mean(written.type, known, f"one of: {', '.join(known)}")
        findings.problem(written.kind_place, "MissingArtifact", message, hint)
        return next(iter(known))  # any known type, so that later steps do not report the same fault again
    return written.type


def _kind(written: _Written, is_platform: bool, owner: str, findings: Findings) -> str:
    if written.kind is None:
        return "WasmComponent" if is_platform else _guessed_kind(written, owner, findings)
    known = catalogue.ARTIFACT_KINDS
    found = known.get(written.kind.lower()) or _CANONICAL.get(written.kind.lower())
    if found is None:
        hint = did_you_mean(written.kind, tuple(known), f"one of: {', '.join(known)}")
        findings.problem(written.kind_place, "InvalidField", f'{owner}: "{written.kind}" is no plugin kind', hint)
        return ""
    return found


def kind_of_uri(uri: str) -> str:
    """Return the kind of artifact that a uri tells by itself; empty for one that may be of several kinds."""
    if uri.startswith("python://"):
        return "Python"
    if uri.endswith(".wasm") or uri.startswith("builtin://"):
        return "WasmComponent"
    return "Dylib" if uri.endswith(".so") else ""


def _guessed_kind(written: _Written, owner: str, findings: Findings) -> str:
    uri = written.uri or ""
    if kind := kind_of_uri(uri):
        return kind
    if uri:
        hint = f"add kind, one of: {', '.join(catalogue.ARTIFACT_KINDS)}"
        findings.problem(written.place, "InvalidField", f"{owner}: the plugin's kind is missing", hint)
    return ""


def _checked_uri(uri: str, kind: str, place: Position, owner: str, findings: Findings) -> str:
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "file", uri
    if kind == "Python" and scheme == "file":
        scheme = "python"
    allowed = catalogue.SCHEMES[kind]
    if (cure := cure_of_scheme(scheme, rest)) is not None:
        message = f'{owner}: an artifact cannot be fetched from "{uri}"'
        findings.problem(place, "MissingArtifact", message, cure)
    elif scheme not in allowed:
        schemes = ", ".join(f"{name}://" for name in allowed)
        message = f'{owner}: a {kind} artifact cannot come from "{scheme}://"'
        findings.problem(place, "MissingArtifact", message, did_you_mean(scheme, allowed, f"use one of: {schemes}"))
    elif not rest:
        findings.problem(
            place, "MissingArtifact", f'{owner}: artifact "{uri}" names nothing', f"write {scheme}://<what>"
        )
    elif scheme == "python" and not all(rest.rpartition(":")[::2]):
        message = f'{owner}: artifact "{uri}" names no object'
        findings.problem(place, "MissingArtifact", message, "write python://module:object or python://file.py:object")
    return f"{scheme}://{rest}"


def _missing(place: Position, owner: str, findings: Findings, written: _Written | None = None) -> None:
    if written is not None and written.kind == "python":
        hint = f"add {written.said_in}: python://module:object"
    elif written is not None and written.said_in == "entry" and written.kind is None and not written.short_kind:
        hint = "add plugin: {kind: python, artifact: python://module:object}"
    else:
        field_name = written.said_in if written else "plugin.artifact"
        hint = f"add {field_name}, e.g. file://plugins/name.wasm, or type: {' | '.join(catalogue.PLATFORM)}"
    findings.problem(place, "MissingArtifact", f"{owner}: nothing says what it runs", hint)
