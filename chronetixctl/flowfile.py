"""Reads a flow from a file or stdin, in any form: JSON, CBOR or YAML, DSL or CompileOutput.

Rules: the form is told by the content, not by the file's name (no UTF-8 text begins with the first byte of a CBOR map);
problems of the text are printed as ``file:line:column`` and end the command with exit code 1; warnings are printed and
the command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from chronetix.protocol import cbor
from chronetix.protocol.contract.endpoints import place_of
from chronetix.protocol.errors import error
from chronetix.protocol.json_text import json_text
from chronetix.protocol.messages import MAX_FRAME
from chronetix.protocol.nearest import did_you_mean
from chronetixctl import exits, output
from chronetixd.compile import Compiled, CompileError, SourceProblem, compile_text, kind_of_uri

_CBOR_MAPS = range(0xA0, 0xC0)


@dataclass(frozen=True, slots=True)
class FlowFile:
    """A compiled flow and where it came from. ``compiled`` is None for a flow that came compiled as CBOR, which has no
    lines."""

    flow: dict[str, Any]
    source: str
    base_dir: str
    compiled: Compiled | None = None
    warnings: tuple[SourceProblem, ...] = field(default=())

    def where(self, path: str) -> str:
        """Return ``file:line:column`` of a path in the flow; only the file for a flow that has no lines."""
        if self.compiled is None:
            return self.source
        place = self.compiled.locate(path)
        return f"{self.source}:{place.line}:{place.column}"

    def placed(self, problem: dict[str, Any]) -> SourceProblem:
        """Return a problem that the daemon reports by its path in the flow, at its place in the text."""
        path, suggestion = str(problem.get("path") or ""), str(problem.get("suggestion") or "")
        message = f"{path}: {problem['message']}" if path else str(problem["message"])
        if self.compiled is None:
            return SourceProblem(self.source, 1, 1, "InvalidField", message, suggestion)
        place = self.compiled.locate(path)
        return SourceProblem(self.source, place.line, place.column, "InvalidField", message, suggestion)

    def further(self, warnings: Iterable[dict[str, Any]]) -> tuple[SourceProblem, ...]:
        """Return those of the daemon's ``warnings`` about this flow that the text's own warnings do not tell yet."""
        told = {(warning.line, warning.suggestion) for warning in self.warnings}
        found = map(self.placed, warnings)
        return tuple(warning for warning in found if (warning.line, warning.suggestion) not in told)


def read_flow(file: str) -> FlowFile:
    """Read and compile ``file`` (``-``: stdin).

    Raises CompileError with the text's problems, ChronetixError ``flow-unreadable`` for content that is neither UTF-8
    text nor a CBOR map, or is larger than a message may be.
    """
    if file == "-":
        data, source, base_dir = sys.stdin.buffer.read(MAX_FRAME + 1), "<stdin>", Path.cwd()
    else:
        data, source, base_dir = _bytes_of(file), file, Path(file).resolve().parent
    if len(data) > MAX_FRAME:
        raise error("flow-unreadable", source=source, reason=f"it has more than the {MAX_FRAME >> 20} MiB of a message")
    if data[:1] and data[0] in _CBOR_MAPS:
        return _from_cbor(data, source, str(base_dir))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as cause:
        line = data.count(b"\n", 0, cause.start) + 1
        reason = f"it is neither UTF-8 text (line {line}) nor a CBOR map"
        raise error("flow-unreadable", source=source, reason=reason) from None
    compiled = compile_text(text, source)
    return FlowFile(compiled.output, source, str(base_dir), compiled, compiled.warnings)


def _bytes_of(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(MAX_FRAME + 1)
    except OSError as cause:
        raise error("flow-unreadable", source=file, reason=cause.strerror or str(cause)) from cause


def _from_cbor(data: bytes, source: str, base_dir: str) -> FlowFile:
    try:
        flow = cbor.loads(data)
    except cbor.CborError as reason:
        raise error("flow-unreadable", source=source, reason=str(reason)) from None
    if flow.get("manifests") is not None or "nodes" not in flow:
        return FlowFile(flow, source, base_dir)
    compiled = compile_text(json_text(flow, indent=1), source)
    return FlowFile(compiled.output, source, base_dir, compiled, compiled.warnings)


def load_flow(file: str, artifacts: Mapping[str, str], bindings: Mapping[str, str]) -> FlowFile:
    """Read a flow as :func:`read_flow` does, with other ``artifacts`` for some of its nodes, and print its problems and
    warnings; problems end the command."""
    try:
        flow = with_artifacts(read_flow(file), artifacts, bindings)
    except CompileError as reason:
        print_problems(reason.problems)
        raise click.exceptions.Exit(exits.FAILED) from None
    print_warnings(flow.warnings)
    return flow


def with_artifacts(flow: FlowFile, artifacts: Mapping[str, str], bindings: Mapping[str, str]) -> FlowFile:
    """Return the flow with another artifact for each node in ``artifacts``: a uri by the node's id, by a plugin_id that
    only one node has, by its place (``#2``), or by an endpoint that one of the ``bindings`` binds to it. Raises
    click.UsageError for a node that the flow does not have."""
    listed = flow.flow.get("manifests")
    manifests = listed if isinstance(listed, list) else []
    names = [_name(each) for each in manifests]
    swapped = list(manifests)
    for given, uri in artifacts.items():
        node = given if given in names else bindings.get(given, given)
        index = place_of(node, len(names))
        if index is None and names.count(node) != 1:
            known = [name for name in names if name]
            nearest = did_you_mean(node, known, f"nodes: {', '.join(known[:12])}")
            places = " or ".join(f"#{at + 1}" for at, name in enumerate(names) if name == node)
            several = f'{names.count(node)} nodes of {flow.source} have the name "{node}"; name its place: {places}'
            none = f'{flow.source} has no node "{node}"; {nearest}'
            raise click.UsageError(f"--artifact: {several if places else none}")
        index = names.index(node) if index is None else index
        artifact = {"kind": kind_of_uri(uri) or "Process", "uri": uri}
        swapped[index] = {**manifests[index], "artifact": artifact}
    return replace(flow, flow={**flow.flow, "manifests": swapped}) if artifacts else flow


def _name(manifest: Any) -> str:
    found = (manifest.get("node_id") or manifest.get("plugin_id")) if isinstance(manifest, dict) else None
    return found if isinstance(found, str) else ""


def print_problems(problems: tuple[SourceProblem, ...]) -> None:
    """Print every problem, then how many there are."""
    for problem in problems:
        _print("error", "red", problem)
    count = len(problems)
    output.say(f"{problems[0].file}: {count} problem{'s' if count > 1 else ''}")


def print_warnings(warnings: tuple[SourceProblem, ...]) -> None:
    """Print every warning."""
    for warning in warnings:
        _print("warning", "yellow", warning)


def _print(word: str, colour: str, problem: SourceProblem) -> None:
    head = click.style(f"{problem.file}:{problem.line}:{problem.column}:", bold=True)
    output.say(f"{head} {click.style(word, fg=colour)}: {problem.kind}: {output.printable(problem.message)}")
    if problem.suggestion:
        output.say(f"  {click.style('hint:', fg='cyan')} {output.printable(problem.suggestion)}")
