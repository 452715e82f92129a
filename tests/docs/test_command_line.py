"""docs/reference/command-line.md has every command and option of chronetixctl and chronetixd."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from chronetixctl.app import SECTIONS, cli
from chronetixd.daemon.command import command as chronetixd
from tests.docs.pages import REFERENCE, shows, table

EVERYWHERE = {"--socket", "--output", "--no-color"}
"""Options of every command, which are listed once."""


def option_row(option: click.Option, ctx: click.Context) -> tuple[str, str]:
    names = ", ".join(f"`{name}`" for name in option.opts)
    value = "" if option.is_flag or option.count else f" {option.make_metavar(ctx)}"
    usual = option.default if option.show_default and not option.is_flag else None
    text = option.help or ""
    return names.removesuffix("`") + value + "`", text if usual is None else f"{text}  [default: {usual}]"


def options(command: click.Command, ctx: click.Context, left_out: set[str]) -> list[tuple[str, str]]:
    found = [each for each in command.get_params(ctx) if isinstance(each, click.Option) and not each.hidden]
    return [option_row(each, ctx) for each in found if not left_out & set(each.opts) and "--help" not in each.opts]


def paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(each.split()) for each in inspect.cleandoc(text).split("\n\n"))


def examples(command: click.Command, language: str = "bash") -> str:
    lines = inspect.cleandoc((command.epilog or "").replace("\b", "")).splitlines()
    shown = [line.strip() for line in lines if line.startswith("  ")]
    return "\n".join([f"```{language}", *shown, "```"]) if shown else ""


def section(name: str, command: click.Command, level: int) -> Iterator[str]:
    """A heading, the usage, the help, the options and the examples of a command and of those below it."""
    ctx = click.Context(command, info_name=name, help_option_names=["-h", "--help"])
    usage = " ".join(command.collect_usage_pieces(ctx))
    yield from (f"{'#' * level} {name}", "", f"`{name} {usage}`", "", paragraphs(command.help or ""), "")
    rows = options(command, ctx, EVERYWHERE)
    if rows:
        yield from (table(("option", "meaning"), rows), "")
    if isinstance(command, click.Group):
        for below in command.list_commands(ctx):
            found = command.get_command(ctx, below)
            assert found is not None
            yield from section(f"{name} {below}", found, level + 1)
    elif examples(command):
        yield from (examples(command), "")


def chronetixctl() -> str:
    ctx = click.Context(cli, info_name="chronetixctl", help_option_names=["-h", "--help"])
    parts = [table(("option of every command", "meaning"), options(cli, ctx, set())), ""]
    rows = [
        (heading, f"[{name}](#chronetixctl-{name})", about)
        for heading, commands in SECTIONS.items()
        for name, (_, about) in commands.items()
    ]
    parts += [table(("", "command", "meaning"), rows), ""]
    for commands in SECTIONS.values():
        for name in commands:
            found = cli.get_command(ctx, name)
            assert found is not None
            parts += section(f"chronetixctl {name}", found, 3)
    return "\n".join(parts)


def daemon() -> str:
    ctx = click.Context(chronetixd, info_name="chronetixd")
    return "\n".join([table(("option", "meaning"), options(chronetixd, ctx, set())), "", examples(chronetixd, "text")])


def test_the_reference_shows_every_command_and_option() -> None:
    shows(REFERENCE / "command-line.md", {"chronetixctl": chronetixctl(), "chronetixd": daemon()})


def test_every_command_and_option_says_what_it_does() -> None:
    def check(command: click.Command, name: str) -> None:
        ctx = click.Context(command, info_name=name, help_option_names=["-h", "--help"])
        assert command.help, name
        assert all(text for _, text in options(command, ctx, set())), name
        for below in command.list_commands(ctx) if isinstance(command, click.Group) else ():
            found = command.get_command(ctx, below)
            assert found is not None
            check(found, f"{name} {below}")

    check(cli, "chronetixctl")
    check(chronetixd, "chronetixd")
