"""What makes a flow fit to be submitted: its contract, what this release supports, and its artifacts.

The daemon refuses a submission by this, and `chronetixctl validate` tells the same without a daemon. So this imports
nothing of the daemon but what it takes to look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chronetix.protocol import configure
from chronetix.protocol.contract import Flow, Problem, Validation, parse_flow
from chronetixd.flows.artifacts import artifact_problems
from chronetixd.flows.code import missing_modules

Search = Callable[[Flow, str], list[Problem]]
"""Looks for problems in what a flow names, which is anywhere; the text is the flow's folder."""


def validate(raw: Mapping[str, Any], bindings: Mapping[str, str], base_dir: str) -> Validation:
    """Check the contract, whether this release supports it, and whether the artifacts and what they import exist."""
    return _validate(raw, bindings, base_dir, artifact_problems, missing_modules)


def validate_again(raw: Mapping[str, Any], bindings: Mapping[str, str], base_dir: str) -> Validation:
    """Check a flow that was accepted before, when a daemon starts: as :func:`validate`, without searching the plugins'
    files for what they import."""
    return _validate(raw, bindings, base_dir, artifact_problems)


def _validate(raw: Mapping[str, Any], bindings: Mapping[str, str], base_dir: str, *searches: Search) -> Validation:
    checked = parse_flow(raw, bindings=bindings)
    if checked.flow is None:
        return checked
    flow = checked.flow
    problems, warnings = unsupported(flow)
    problems = [*checked.problems, *problems, *(each for search in searches for each in search(flow, base_dir))]
    return Validation(flow if not problems else None, problems, [*checked.warnings, *warnings])


def unsupported(flow: Flow) -> tuple[list[Problem], list[Problem]]:
    """Return what this daemon refuses in ``flow``, and what it accepts without effect: (problems, warnings)."""
    problems, warnings = configure.unsupported(flow)
    for index, manifest in enumerate(flow.manifests):
        args = manifest.params.get("args")
        if manifest.artifact.kind == "Process" and manifest.artifact.args and args is not None:
            text = "both this and artifact.args give the program's arguments"
            problems.append(Problem(f"manifests[{index}].params.args", text, "leave one of them out"))
        if manifest.artifact.kind == "Process" and not _is_text_list(args):
            problems.append(Problem(f"manifests[{index}].params.args", "must be a list of texts", 'as in ["-v", "3"]'))
    return problems, warnings


def problem_maps(problems: list[Problem]) -> list[dict[str, str]]:
    """Return problems as they are sent to a client."""
    return [{"path": each.path, "message": each.message, "suggestion": each.suggestion} for each in problems]


def _is_text_list(args: Any) -> bool:
    """Return whether ``args`` can be passed on a command line; None can."""
    return args is None or (isinstance(args, list) and all(isinstance(arg, str) and "\0" not in arg for arg in args))
