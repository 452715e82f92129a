"""Reads how a node's process is started: its arguments, environment variables, folder and user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from chronetix.protocol.contract.reading import Fields, quote
from chronetix.protocol.contract.types import ATTACH, Artifact

MAX_ENVIRONMENT: Final = 64 * 1024
"""Bytes of all variables of one node together. The kernel's limit for a program's arguments and environment is a
multiple of it."""

MAX_ARGUMENTS: Final = 64 * 1024
"""Bytes of all arguments of one node together."""

OURS: Final = ("CHRONETIX_FD", "CHRONETIX_FLOW", "CHRONETIX_NODE")
"""Variables that the daemon sets for each worker."""

AT_START: Final = ("LD_", "GLIBC_", "MALLOC_", "PYTHON")
"""Prefixes of variables that a program reads when it starts. A worker of a Python plugin is forked and starts no
program."""

LATER: Final = ("PYTHONBREAKPOINT",)
"""Variables with such a prefix that are read later."""


def read_args(fields: Fields, uri: str) -> tuple[str, ...]:
    """Return the arguments of an artifact's program."""
    given = fields.get("args")
    if given is None:
        return ()
    if not isinstance(given, list | tuple) or not all(map(_is_argument, given)):
        hint = 'as in ["-v", "3"]'
        fields.notes.problem(fields.at("args"), "must be a list of texts without zero characters", hint)
        return ()
    kind = fields.get("kind")
    if kind != "Process" and not uri.startswith(ATTACH):
        hint = "use params, or make the node a program of its own (kind Process)"
        fields.notes.problem(
            fields.at("args"), f"an artifact of kind {kind} is no program and takes no arguments", hint
        )
    size = sum(len(each.encode()) + 1 for each in given)
    if size > MAX_ARGUMENTS:
        message = f"the arguments take {size} bytes together, more than {MAX_ARGUMENTS}"
        fields.notes.problem(fields.at("args"), message, "put what is large into params or a file")
    return tuple(given)


def _is_argument(value: object) -> bool:
    if type(value) is not str or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_python_env(fields: Fields, uri: str) -> str:
    """Return the folder of the environment in whose Python the node runs."""
    folder = fields.text("python_env")
    if folder and "\0" in folder:
        fields.notes.problem(fields.at("python_env"), "holds a zero character")
        return ""
    if folder and (fields.get("kind") != "Python" or uri.startswith((ATTACH, "builtin://"))):
        hint = "use it with kind Python and python://…; a program names its interpreter in its first line"
        fields.notes.problem(fields.at("python_env"), "is for Python plugins that the daemon starts", hint)
    return folder


def read_env(parent: Fields, artifact: Artifact, others: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """Return the variables that are set for the process; ``others`` are those that another place sets."""
    fields = parent.child("env")
    made: dict[str, str] = dict(others or {})
    for name in fields.raw:
        value = _value(fields, name)
        reason = _unfit(name, artifact)
        if name in made:
            reason = "is set in the artifact too", "leave it out at one of the places"
        if reason:
            message, hint = reason
            fields.notes.problem(fields.at(str(name)), message, hint)
        elif value is not None:
            made[name] = value
    size = sum(len(name.encode()) + len(value.encode()) + 2 for name, value in made.items())
    if size > MAX_ENVIRONMENT:
        message = f"the variables take {size} bytes together, more than {MAX_ENVIRONMENT}"
        fields.notes.problem(fields.path, message, "put what is large into params or a file")
    return made


def read_cwd(parent: Fields, other: str = "") -> str:
    """Return the folder of the process, relative to the flow's; empty for the flow's folder itself. ``other`` is what
    another place says."""
    cwd = parent.text("cwd")
    if cwd and other:
        parent.notes.problem(parent.at("cwd"), "is given in the artifact too", "leave it out at one of the places")
    cwd = cwd or other
    if "\0" in cwd:
        parent.notes.problem(parent.at("cwd"), "holds a zero character")
        return ""
    return cwd


def read_user(parent: Fields) -> str:
    """Return the user whose the node's process is, a name or a number; empty for the daemon's."""
    value = parent.get("user")
    if type(value) is int and value >= 0:
        return str(value)
    user = parent.text("user")
    if user and (not user.isprintable() or ":" in user or "/" in user or user != user.strip()):
        parent.notes.problem(parent.at("user"), f"{quote(user)} is no name of a user", "give a login name or a number")
        return ""
    return user


def _value(fields: Fields, name: str) -> str | None:
    value = fields.get(name)
    if type(value) is not str:
        hint = f'write it as text, "{value}"' if type(value) in (int, float) else "write it as text"
        fields.notes.problem(fields.at(str(name)), f"must be text, not {type(value).__name__}", hint)
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        fields.notes.problem(fields.at(str(name)), "is text that UTF-8 cannot hold")
        return None
    if "\0" in value:
        fields.notes.problem(fields.at(str(name)), "holds a zero character")
        return None
    return value


def _unfit(name: str, artifact: Artifact) -> tuple[str, str] | None:
    """Why ``name`` is not set, and what to do instead."""
    if not name or "=" in name or "\0" in name or not name.isprintable():
        return f"{quote(name)} is no name of an environment variable", "use letters, digits and underscores"
    if name in OURS:
        return "is set by the daemon", "leave it out"
    process = artifact.kind in ("Process", "Dylib") and not artifact.uri.startswith("builtin://")
    program = process or artifact.python_env
    if not program and name.startswith(AT_START) and name not in LATER:
        message = "takes effect only when a program starts, and this node's worker is forked"
        return message, "set it for the daemon, or make the node a program of its own (kind Process)"
    return None
