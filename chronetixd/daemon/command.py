"""The command ``chronetixd``: reads the configuration, sets up the log, runs the daemon in the foreground.

Exit codes are in ``EXITS``.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import click
import structlog

from chronetix.protocol.errors import ChronetixError
from chronetixd.control.admission import rules_of
from chronetixd.daemon import daemon
from chronetixd.doctor import Side, Status, Surroundings, examine
from chronetixd.installed import version
from chronetixd.linux.inherited import put_right
from chronetixd.records import logs
from chronetixd.settings import Configured, Source
from chronetixd.systemd.activation import receive

EXITS: Final = {
    0: "The daemon was told to stop, or `--check` found no failure.",
    1: "The daemon could not start, or `--check` found a failure.",
    2: "The command line is wrong.",
    70: "The daemon failed internally. The next daemon goes on with the flows.",
    130: "Ctrl-C came before the daemon had begun.",
}
"""The exit codes of chronetixd."""

EPILOG = """\b
Examples:
  chronetixd                                     run with the default folders
  chronetixd --state-dir ./state --socket ./ctl  run beside another daemon
  chronetixd --check --config chronetixd.toml    check whether it would start
  chronetixd --log-format json 2> daemon.log     log as JSON lines

\b
Every setting can also stand in the configuration file, under its name (start_timeout = 60), or in the environment
(CHRONETIX_START_TIMEOUT=60). SIGTERM or Ctrl-C drains all flows and stops the daemon; a second one kills the workers.
SIGHUP reads the configuration again. SIGUSR1 and SIGUSR2 change nothing.
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(), help="Configuration file (TOML) instead of the user's and /etc's.")
@click.option("--state-dir", type=click.Path(), help="State folder; only one daemon can use it at a time.")
@click.option("--socket", type=click.Path(), help="Control socket that clients connect to.")
@click.option("--socket-group", metavar="GROUP", help="Group of the control socket; its members may operate.")
@click.option("--check", is_flag=True, help="Check configuration and environment; do not start the daemon.")
@click.option("--log-level", type=click.Choice(logs.LEVELS), help="Lowest level that is logged (info).")
@click.option("--log-format", type=click.Choice(["auto", "console", "json"]), help="auto: console on a terminal.")
@click.option("--check-upgrade", type=int, hidden=True, help="Rehearse with the snapshot in this descriptor.")
@click.version_option(version(), prog_name="chronetixd")
def command(config: str | None, check: bool, check_upgrade: int | None, **flags: Any) -> None:
    """Run the Chronetix daemon in the foreground."""
    try:
        if check_upgrade is not None:
            daemon.rehearse(check_upgrade)
        source = Source(flags, config)
        configured = source()
        if check:
            rules_of(configured.settings)
            sys.exit(_report(configured))
        inherited = put_right()
        logs.configure(configured.settings.log_level, configured.settings.log_format)
        for sentence in inherited:
            structlog.get_logger("chronetixd").warning(sentence)
        daemon.run(configured, receive(os.environ, os.getpid()), source)
    except ChronetixError as reason:
        click.echo(f"chronetixd: {reason.message}\n  {reason.hint}", err=True)
        sys.exit(1)


def _report(configured: Configured) -> int:
    """Print the findings of --check and the settings that are no defaults, and return the exit code."""
    findings = examine(Surroundings(configured.settings, {}), (Side.DAEMON,))
    for finding in findings:
        cure = f" → {finding.cure}" if finding.cure else ""
        click.echo(f"{finding.status.value:4}  {finding.area}, {finding.name}: {finding.detail}{cure}")
    for name, origin in configured.origins.items():
        click.echo(f"set   {name} = {getattr(configured.settings, name)!r} ({origin})")
    return 1 if any(finding.status is Status.FAIL for finding in findings) else 0
