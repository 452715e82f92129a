"""``completion``: prints the script with which a shell completes commands, options and flow names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from chronetixctl import exits
from chronetixctl.app import PROGRAM, Session, cli
from chronetixctl.options import command

SHELLS = ("bash", "zsh", "fish")


@command(
    """
source <(chronetixctl completion bash)
chronetixctl completion zsh > ~/.zfunc/_chronetixctl
chronetixctl completion fish > ~/.config/fish/completions/chronetixctl.fish
"""
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(_: Session, shell: str) -> int:
    """Print the completion script for SHELL."""
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(cli, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE")
    click.echo(script.source_template % script.source_vars())
    return exits.OK
