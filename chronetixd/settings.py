"""The daemon's configuration: every setting, and from where it comes.

A flag wins over the environment variable ``CHRONETIX_NAME``, the variable over the configuration files, the files over
the default. Without ``--config`` or $CHRONETIX_CONFIG the files are the user's
($XDG_CONFIG_HOME/chronetix/chronetixd.toml) and, weaker, /etc/chronetix/chronetixd.toml; a missing file is skipped. An
unknown setting, or a value of the wrong type, is an error.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from chronetix.protocol.errors import error
from chronetix.protocol.messages import MAX_FRAME
from chronetix.protocol.nearest import nearest
from chronetix.protocol.paths import socket_path, state_dir
from chronetixd.core.flow_messages import Limits

SYSTEM_FILE = "/etc/chronetix/chronetixd.toml"
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]
Names = tuple[str, ...]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting, under its name in TOML and under ``CHRONETIX_`` and its name in upper case in the environment."""

    socket: str = ""
    """Path of the control socket that clients connect to."""
    state_dir: str = ""
    """Path of the state folder, which has the journal, the logs and the audit log. One daemon uses it at a time."""
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """Lowest level of the records in the daemon's own log."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """Form of the daemon's own log: for people, or one JSON object a line; ``auto`` is ``console`` on a terminal."""
    log_files: Annotated[int, Meta(ge=0, le=100)] = 4
    """How many log files of each node are kept in the state folder; 0 for none."""
    log_file_bytes: Annotated[int, Meta(ge=4096, le=1 << 40)] = 4 * 1024 * 1024
    """Size in bytes at which the next log file is begun."""
    start_timeout: Seconds = 30.0
    """Seconds within which every worker of a flow must be ready and started."""
    attach_timeout: Seconds = 600.0
    """Seconds for which a node waits for a worker that starts by itself and attaches (``attach://NAME``)."""
    drain_timeout: Seconds = 10.0
    """Seconds that a flow may take to drain before its workers get SIGTERM."""
    failure_timeout: Seconds = 3.0
    """Seconds that the remaining workers of a failed flow may take to drain before they get SIGTERM."""
    terminate_timeout: Seconds = 2.0
    """Seconds between SIGTERM and SIGKILL."""
    end_timeout: Seconds = 5.0
    """Seconds that the process of a node that has finished or failed may take for its end: asyncio tasks, threads that
    are no daemons, atexit handlers, finalizers. Then it is ended, and its exit says what hung."""
    hello_timeout: Seconds = 5.0
    """Seconds that a client may stay silent after connecting."""
    held_warning: Seconds = 30.0
    """Seconds for which a consumer may keep a frame before the event ``frame-held`` reports it."""
    spares: Annotated[int, Meta(ge=0, le=256)] = 8
    """How many spare workers are forked ahead, so that as many nodes start without a fork; each takes some MiB."""
    cgroup: str = "auto"
    """The control group (v2) below which workers get theirs: a folder; ``auto`` for the daemon's own group if that is
    delegated; or ``off``."""
    max_clients: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    """Largest number of connections on the control socket at once; admins have some more."""
    max_clients_per_user: Annotated[int, Meta(ge=1, le=100_000)] = 256
    """Largest number of connections at once of one user without the right to admin."""
    connect_rate: Rate = 100.0
    """Largest number of new connections a second of one user."""
    call_rate: Rate = 1000.0
    """Largest number of calls a second of one user."""
    max_frame: Annotated[int, Meta(ge=4096, le=1 << 30)] = MAX_FRAME
    """Size in bytes of the largest frame that the daemon accepts from clients and workers."""
    frame_timeout: Seconds = 10.0
    """Seconds that a client may take from a frame's first byte to its last."""
    socket_group: str = ""
    """Group of the control socket, by name or number. Its members may operate, unless ``allow_operate`` is set."""
    allow_read: Names = ()
    """Users, @groups, or * for everyone, with the right to read."""
    allow_operate: Names | None = None
    """Users and groups with the right to operate: to submit, stop and publish, and so to run programs as the daemon's
    user."""
    allow_admin: Names = ()
    """Users and groups with all rights that root and the daemon's own user have."""
    audit_reads: bool = False
    """Whether calls that only read are recorded in the audit log too."""
    audit_bytes: Annotated[int, Meta(ge=64 * 1024, le=1 << 40)] = 32 * 1024 * 1024
    """Largest size in bytes of the audit log with its rotated files."""

    @property
    def limits(self) -> Limits:
        """The timeouts in ns, as the flow machine takes them."""
        return Limits(
            start_ns=round(self.start_timeout * 1e9),
            drain_ns=round(self.drain_timeout * 1e9),
            failure_drain_ns=round(self.failure_timeout * 1e9),
            terminate_ns=round(self.terminate_timeout * 1e9),
            end_ns=round(self.end_timeout * 1e9),
            attach_ns=round(self.attach_timeout * 1e9),
        )


NAMES = tuple(field.name for field in msgspec.structs.fields(Settings))
LISTS = ("allow_read", "allow_operate", "allow_admin")
"""Settings that are lists; in the environment their members are separated by commas."""

FIXED = ("socket", "socket_group", "state_dir", "max_frame", "log_format", "log_files", "log_file_bytes", "cgroup")
"""Settings whose new value takes a restart; a reload puts new values of all others into force."""


@dataclass(frozen=True, slots=True)
class Configured:
    """The settings, and the origin of each setting that is not a default."""

    settings: Settings
    origins: dict[str, str]

    def shown(self) -> list[dict[str, Any]]:
        """Return every setting in force as a map for the wire: {name, value, origin, reload}. ``origin`` is "default"
        for a setting that is set nowhere; ``reload`` tells whether a reload puts a new value into force."""
        values = msgspec.to_builtins(self.settings)
        return [
            {
                "name": name,
                "value": values[name],
                "origin": self.origins.get(name, "default"),
                "reload": name not in FIXED,
            }
            for name in NAMES
        ]

    def changed(self, new: Settings) -> tuple[list[str], list[str]]:
        """Return the names of settings that differ in ``new``: those that a reload puts into force, and those that take
        a restart."""
        differ = [name for name in NAMES if getattr(self.settings, name) != getattr(new, name)]
        return [name for name in differ if name not in FIXED], [name for name in differ if name in FIXED]


class Source(NamedTuple):
    """The flags and the configuration file that the daemon was started with. Calling it reads the configuration again,
    with the same flags, the same environment and the files as they are now; raises ChronetixError as :func:`configure`
    does."""

    flags: dict[str, Any]
    config: str | None

    def __call__(self) -> Configured:
        return configure(self.flags, os.environ, os.geteuid(), self.config)


def keep_fixed(old: Settings, new: Settings) -> Settings:
    """Return ``new`` with the values of ``old`` for the settings that take a restart."""
    return msgspec.structs.replace(new, **{name: getattr(old, name) for name in FIXED})


def configure(flags: Mapping[str, Any], env: Mapping[str, str], uid: int, config: str | None = None) -> Configured:
    """Read all sources and return the settings in force with their origins. A flag that is None was not given. Raises
    ChronetixError ``config-invalid``, ``socket-unusable`` or ``state-dir-unknown``."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source in _files(env, uid, config):
        _merge(values, origins, _read(source), str(source))
    given = {name: env[f"CHRONETIX_{name.upper()}"] for name in NAMES if env.get(f"CHRONETIX_{name.upper()}")}
    for name, text in given.items():
        _merge(values, origins, {name: text}, f"environment variable CHRONETIX_{name.upper()}")
    for name, value in flags.items():
        if value is not None:
            _merge(values, origins, {name: value}, f"flag --{name.replace('_', '-')}")
    settings = msgspec.convert(values, Settings, strict=False)
    return Configured(
        msgspec.structs.replace(
            settings,
            socket=str(Path(socket_path(env, uid, settings.socket or None)).absolute()),
            state_dir=str(Path(state_dir(env, uid, settings.state_dir or None)).absolute()),
        ),
        origins,
    )


def _files(env: Mapping[str, str], uid: int, config: str | None) -> list[Path]:
    """Return the configuration files to read, the weakest first. A file that the caller names is returned even if it
    does not exist, so that reading it fails."""
    named = config or env.get("CHRONETIX_CONFIG")
    if named:
        return [Path(named)]
    home = env.get("XDG_CONFIG_HOME") or (f"{env['HOME']}/.config" if env.get("HOME") else "")
    candidates = [Path(SYSTEM_FILE)]
    if home and uid != 0:
        candidates.append(Path(home) / "chronetix" / "chronetixd.toml")
    return [path for path in candidates if path.is_file()]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as reason:
        raise error("config-invalid", source=str(path), path="the file", reason=str(reason)) from None


def _merge(values: dict[str, Any], origins: dict[str, str], new: Mapping[str, Any], source: str) -> None:
    """Check each setting of ``new`` by itself, so that an error names its source, and write it into ``values`` and its
    source into ``origins``."""
    for name, value in new.items():
        if name not in NAMES:
            near = nearest(name, NAMES)
            text = f"there is no such setting{f', did you mean {near}?' if near else ''}"
            raise error("config-invalid", source=source, path=name, reason=text)
        if name in LISTS and isinstance(value, str):
            value = [part for part in (part.strip() for part in value.split(",")) if part]
        try:
            msgspec.convert({name: value}, Settings, strict=not isinstance(value, str))
        except msgspec.ValidationError as reason:
            text = str(reason).partition(" - at")[0]
            raise error("config-invalid", source=source, path=name, reason=text) from None
        values[name] = value
        origins[name] = source
