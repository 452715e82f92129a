"""The daemon's configuration: every setting, and from where it comes.

A flag wins over ``CHRONETIX_NAME``, that over the configuration files, those over the default. Without ``--config`` or
$CHRONETIX_CONFIG the files are the user's ($XDG_CONFIG_HOME/chronetix/chronetixd.toml) and, behind it,
/etc/chronetix/chronetixd.toml, each if it is there. A setting that does not exist, or of the wrong type, is an error.
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
    """What can be set, under these names in TOML and in upper case after ``CHRONETIX_`` in the environment."""

    socket: str = ""
    """Path of the control socket."""
    state_dir: str = ""
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"
    log_files: Annotated[int, Meta(ge=0, le=100)] = 4
    """Files of what each node prints and logs that are kept in the state folder; 0 for none."""
    log_file_bytes: Annotated[int, Meta(ge=4096, le=1 << 40)] = 4 * 1024 * 1024
    """Size at which the next one is begun."""
    start_timeout: Seconds = 30.0
    """Seconds until every worker of a flow must be ready and started."""
    drain_timeout: Seconds = 10.0
    """Seconds that a flow may take to drain before its workers get SIGTERM."""
    failure_timeout: Seconds = 3.0
    """The same for what is left of a flow that failed."""
    terminate_timeout: Seconds = 2.0
    """Seconds between SIGTERM and SIGKILL."""
    hello_timeout: Seconds = 5.0
    """Seconds that a client may stay silent after connecting."""
    held_warning: Seconds = 30.0
    """Seconds after which a frame that its consumer keeps is worth a warning."""
    spares: Annotated[int, Meta(ge=0, le=256)] = 8
    """Workers that are forked ahead, so that as many nodes start without a fork; each takes some MiB."""
    cgroup: str = "auto"
    """Below which control group (v2) workers get theirs: a folder, ``auto``: our own if it is delegated to us, or
    ``off``."""
    max_clients: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    """Connections on the control socket at once; admins have some more."""
    max_clients_per_user: Annotated[int, Meta(ge=1, le=100_000)] = 256
    """The same of one user who is no admin, and so on."""
    connect_rate: Rate = 100.0
    """Connections a second of one user."""
    call_rate: Rate = 1000.0
    """Calls a second of one user."""
    max_frame: Annotated[int, Meta(ge=4096, le=1 << 30)] = MAX_FRAME
    """Largest frame in bytes that is taken from clients and workers."""
    frame_timeout: Seconds = 10.0
    """Seconds from a frame's first byte to its last that a client may take."""
    socket_group: str = ""
    """Group that the control socket is given to, by name or number. Its members may operate, unless ``allow_operate``
    says otherwise."""
    allow_read: Names = ()
    """Who may look: users, @groups, or * for everyone."""
    allow_operate: Names | None = None
    """Who may also submit, stop and publish, and so run programs as the daemon's user."""
    allow_admin: Names = ()
    """Who may do everything that root and the daemon's own user may."""
    audit_reads: bool = False
    """Whether calls that only look are recorded in the audit log too."""
    audit_bytes: Annotated[int, Meta(ge=64 * 1024, le=1 << 40)] = 32 * 1024 * 1024
    """What the audit log may take on the disk."""

    @property
    def limits(self) -> Limits:
        """The timeouts as the flow machine wants them."""
        return Limits(
            start_ns=round(self.start_timeout * 1e9),
            drain_ns=round(self.drain_timeout * 1e9),
            failure_drain_ns=round(self.failure_timeout * 1e9),
            terminate_ns=round(self.terminate_timeout * 1e9),
        )


NAMES = tuple(field.name for field in msgspec.structs.fields(Settings))
LISTS = ("allow_read", "allow_operate", "allow_admin")
"""Settings that are lists; in the environment their members are separated by commas."""

FIXED = ("socket", "socket_group", "state_dir", "max_frame", "log_format", "log_files", "log_file_bytes", "cgroup")
"""Settings that need a restart; all others are taken over by a reload."""


@dataclass(frozen=True, slots=True)
class Configured:
    """The settings, and for each that is not a default where it comes from."""

    settings: Settings
    origins: dict[str, str]

    def shown(self) -> list[dict[str, Any]]:
        """Every setting in force as it travels: {name, value, origin, reload}; ``origin`` is "default" for what nobody
        has set, ``reload`` says whether a reload takes a new value over."""
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
        """Names of settings that differ in ``new``: those that can be taken over now, and those that need a restart."""
        differ = [name for name in NAMES if getattr(self.settings, name) != getattr(new, name)]
        return [name for name in differ if name not in FIXED], [name for name in differ if name in FIXED]


class Source(NamedTuple):
    """What the daemon was started with. Called, it reads the configuration again: same flags, same environment, the
    files as they are now; raises ChronetixError."""

    flags: dict[str, Any]
    config: str | None

    def __call__(self) -> Configured:
        return configure(self.flags, os.environ, os.geteuid(), self.config)


def keep_fixed(old: Settings, new: Settings) -> Settings:
    """``new`` as far as it can be taken over by a daemon that runs with ``old``."""
    return msgspec.structs.replace(new, **{name: getattr(old, name) for name in FIXED})


def configure(flags: Mapping[str, Any], env: Mapping[str, str], uid: int, config: str | None = None) -> Configured:
    """The settings in force. ``flags`` that are None were not given. Raises ChronetixError ``config-invalid``,
    ``socket-unusable`` or ``state-dir-unknown``."""
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
    """The files to read, the weakest first. One that was named must be there."""
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
    """Put ``new`` over ``values``, each checked by itself, so that an error can name its source."""
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
