"""``service``: installs the systemd units, removes them, and shows the service's state.

Rules: every step is shown, and with --dry-run none is taken; a file that has the right content is left alone, so that
a second install changes nothing; a file that chronetixctl did not write is never changed or removed. With --root only
files are written.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from chronetix.protocol.errors import error
from chronetixctl import exits, output
from chronetixctl.app import Session
from chronetixctl.options import command
from chronetixctl.output import Column
from chronetixd.systemd.units import BOOTED, UNITS, Scope, ours, out_of_reach, program, scope_of, texts

SHOWN = (
    "LoadState",
    "UnitFileState",
    "ActiveState",
    "SubState",
    "Result",
    "MainPID",
    "NRestarts",
    "StatusText",
    "ActiveEnterTimestamp",
    "WatchdogUSec",
    "NFileDescriptorStore",
)
"""Properties of the service that ``status`` shows."""


@dataclass(frozen=True, slots=True)
class ServiceStep:
    """One step that was taken or, in a dry run, would be: ``action`` is write, remove or run."""

    action: str
    what: str
    result: str


class Steps:
    """Takes steps and records them in ``done``; with ``dry`` it only records them."""

    def __init__(self, scope: Scope, dry: bool) -> None:
        self.scope = scope
        self.dry = dry
        self.done: list[ServiceStep] = []

    @property
    def changed(self) -> bool:
        """Whether any file was or would be written, changed or removed."""
        return any(step.result != "unchanged" for step in self.done if step.action in ("write", "remove"))

    def write(self, path: Path, text: str) -> None:
        """Write ``text`` to ``path`` unless it has that content. Raises ChronetixError ``file-not-ours`` or
        ``service-failed``; the file is unchanged then."""
        before = path.read_text(errors="replace") if path.exists() else None
        if before is not None and not ours(path):
            raise error("file-not-ours", path=str(path))
        result = "new" if before is None else "unchanged" if before == text else "changed"
        if result != "unchanged":
            self._take(str(path), lambda: _replace(path, text))
        self.done.append(ServiceStep("write", str(path), result))

    def remove(self, path: Path) -> None:
        """Remove ``path`` if it exists. Raises ChronetixError ``file-not-ours`` or ``service-failed``; the file is
        unchanged then."""
        if not path.exists():
            self.done.append(ServiceStep("remove", str(path), "unchanged"))
            return
        if not ours(path):
            raise error("file-not-ours", path=str(path))
        self._take(str(path), path.unlink)
        self.done.append(ServiceStep("remove", str(path), "removed"))

    def run(self, *words: str) -> None:
        """Run a command, unless the scope has a root of its own: that machine is not booted. Raises ChronetixError
        ``service-failed``."""
        if self.scope.root != Path("/"):
            return
        self._take(" ".join(words), lambda: _run(words))
        self.done.append(ServiceStep("run", " ".join(words), "would" if self.dry else "done"))

    def _take(self, what: str, step: Callable[[], object]) -> None:
        if self.dry:
            return
        try:
            step()
        except OSError as reason:
            raise error("service-failed", what=what, reason=reason.strerror or str(reason)) from None


def _replace(path: Path, text: str) -> None:
    """Replace the file at ``path`` atomically, so that systemd never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.replace(path)


def _run(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as reason:
        raise error("service-failed", what=" ".join(words), reason=reason.strerror or str(reason)) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"it ended with {done.returncode}").splitlines()
        raise error("service-failed", what=" ".join(words), reason=said[-1])
    return done.stdout


def _scope_options(function: Any) -> Any:
    for option in (
        click.option("--root", type=click.Path(), help="Use this folder as /, and only write files."),
        click.option("--system/--user", "system", default=None, help="For the machine (root's default) or this user."),
    ):
        function = option(function)
    return function


def _scope(system: bool | None, root: str | None) -> Scope:
    return scope_of(os.geteuid() == 0 if system is None else system, root, os.environ)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n"
    "  chronetixctl service install --now\n"
    "  chronetixctl service install --user\n"
    "  chronetixctl service status\n"
    "  chronetixctl service uninstall",
)
def service() -> None:
    """Run chronetixd as a systemd service, for the whole machine or for one user."""


@command(
    """
chronetixctl service install
chronetixctl service install --now
chronetixctl service install --user --dry-run
""",
    name="install",
)
@_scope_options
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--now", is_flag=True, help="Start the service, too.")
def install(session: Session, system: bool | None, root: str | None, dry_run: bool, now: bool) -> int:
    """Write the units and enable the service: it is started at boot, or with --user when you log in."""
    steps = _begin(_scope(system, root), dry_run)
    path = program()
    for file, text in texts(steps.scope, path).items():
        steps.write(file, text)
    if steps.scope.system:
        steps.run("systemd-sysusers", str(steps.scope.users))
    steps.run(*steps.scope.systemctl, "daemon-reload")
    steps.run(*steps.scope.systemctl, "enable", *UNITS)
    if now:
        steps.run(*steps.scope.systemctl, "start", *UNITS)
    _show(session, steps)
    closed = out_of_reach(path) if steps.scope.system else None
    if closed is not None:
        output.say(f"warning: the user chronetix may not enter {closed}, so it cannot run {path}; install it elsewhere")
    if not now and not dry_run and root is None:
        verb = "restart" if steps.changed else "start"
        output.say(f"next: {' '.join(steps.scope.systemctl)} {verb} {' '.join(UNITS)}")
    return exits.OK


@command(
    """
chronetixctl service uninstall
chronetixctl service uninstall --user --dry-run
""",
    name="uninstall",
)
@_scope_options
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
def uninstall(session: Session, system: bool | None, root: str | None, dry_run: bool) -> int:
    """Stop the service and remove its units. The daemon's state stays, and so does its user."""
    steps = _begin(_scope(system, root), dry_run)
    present = [name for name in UNITS if (steps.scope.units / name).exists()]
    if present:
        steps.run(*steps.scope.systemctl, "disable", "--now", *present)
    for path in steps.scope.paths:
        steps.remove(path)
    if steps.changed:
        steps.run(*steps.scope.systemctl, "daemon-reload")
    _show(session, steps)
    return exits.OK


def _begin(scope: Scope, dry: bool) -> Steps:
    """Return the steps for ``scope``. Raises ChronetixError ``service-failed`` on a machine that runs without
    systemd."""
    if scope.root == Path("/") and not dry and not BOOTED.exists():
        raise error("service-failed", what="systemd", reason="this machine was not booted with it")
    return Steps(scope, dry)


def _show(session: Session, steps: Steps) -> None:
    columns = (Column("ACTION"), Column("WHAT"), Column("RESULT"))
    rows = [(step.action, step.what, step.result) for step in steps.done]
    value = {"dry_run": steps.dry, "steps": [asdict(step) for step in steps.done]}
    output.show(value, session.output, lambda: output.table(columns, rows))


@command(
    """
chronetixctl service status
chronetixctl service status --user -o json
""",
    name="status",
)
@_scope_options
def status(session: Session, system: bool | None, root: str | None) -> int:
    """Show whether the service is installed and whether it runs. Exit code 3 when it does not run."""
    scope = _scope(system, root)
    files = {str(path): _state(path) for path in scope.paths}
    value: dict[str, Any] = {"scope": "system" if scope.system else "user", "files": files}
    if scope.root == Path("/") and BOOTED.exists():
        shown = _run([*scope.systemctl, "show", UNITS[1], "--property", ",".join(SHOWN)])
        value["service"] = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    told = [(name, output.printable(text)) for name, text in value.get("service", {}).items() if text]
    rows = [*files.items(), *told]
    output.show(value, session.output, lambda: output.table((Column("WHAT"), Column("FOUND")), rows))
    return exits.OK if value.get("service", {}).get("ActiveState") == "active" else exits.NOT_RUNNING


def _state(path: Path) -> str:
    if not path.exists():
        return "missing"
    return "installed" if ours(path) else "not written by chronetixctl"


for _command in (install, uninstall, status):
    service.add_command(_command)
