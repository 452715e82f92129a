"""``config show``: the settings that the daemon runs with, and where each of them comes from."""

from __future__ import annotations

from typing import Any

import click

from chronetix.protocol.nearest import did_you_mean
from chronetixctl import exits, output
from chronetixctl.app import Session
from chronetixctl.options import command
from chronetixctl.output import Column


@click.group(
    epilog="\b\nExamples:\n  chronetixctl config show --origin\n",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def config() -> None:
    """Show the daemon's settings.

    A setting comes from the command line, the environment, the user's file or the file in /etc, or has its default.
    """


@command(
    """
chronetixctl config show
chronetixctl config show --origin
chronetixctl config show start_timeout cgroup
chronetixctl config show -o json
"""
)
@click.option("--origin", is_flag=True, help="Also show where each comes from, and whether a reload changes it.")
@click.argument("names", metavar="[SETTING]...", nargs=-1)
def show(session: Session, origin: bool, names: tuple[str, ...]) -> int:
    """Show the settings in force: all of them, or only those that are named."""
    with session.connect() as client:
        settings = client.call("config")["settings"]
    known = {each["name"]: each for each in settings}
    for name in names:
        if name not in known:
            raise click.ClickException(f'there is no setting "{name}"; {did_you_mean(name, known, "see config show")}')
    chosen = [known[name] for name in names] if names else settings
    columns = [Column("SETTING"), Column("VALUE")]
    if origin:
        columns += [Column("ORIGIN"), Column("CHANGED BY")]
    rows = [_row(each)[: len(columns)] for each in chosen]
    output.show(chosen, session.output, lambda: output.table(columns, rows))
    return exits.OK


def _row(setting: dict[str, Any]) -> tuple[str, str, str, str]:
    value = setting["value"]
    text = ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
    return setting["name"], output.printable(text), setting["origin"], "reload" if setting["reload"] else "restart"


config.add_command(show)
