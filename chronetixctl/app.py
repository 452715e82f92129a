"""The command tree of chronetixctl, and the exit code and message for every way in which a command can end.

Rules: the module of a command is imported when the command is called, so that start-up and ``--help`` stay fast;
global options may stand before or behind the command; an error names what happened, to which thing, and what to do
next; a command whose stdout is closed by its reader ends without a message.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.nearest import did_you_mean
from chronetixctl import exits, output

PROGRAM = "chronetixctl"

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Flows": {
        "submit": ("chronetixctl.submit:submit", "Submit a flow and wait until it runs."),
        "validate": ("chronetixctl.validate:validate", "Check a flow without running it; needs no daemon."),
        "compile": ("chronetixctl.validate:compile_", "Compile a flow's DSL and print the result."),
        "graph": ("chronetixctl.graph:graph", "Draw a flow as text, Mermaid, Graphviz or SVG."),
        "diff": ("chronetixctl.diff:diff", "Compare a running flow with the one in a file."),
        "apply": ("chronetixctl.apply:apply", "Change a running flow into the one in a file."),
        "rollout": ("chronetixctl.rollout:rollout", "Show the roll-outs of a flow, or undo the last one."),
        "run": ("chronetixctl.run:run", "Run a whole flow in this one process, without a daemon."),
        "restart": ("chronetixctl.restart:restart", "Start a flow anew, or replace workers of its nodes."),
        "attach-token": ("chronetixctl.attach:attach_token", "Print the token with which a worker attaches to a flow."),
        "stop": ("chronetixctl.stop:stop", "Stop a flow; frames that were sent are still processed."),
        "rm": ("chronetixctl.remove:rm", "Remove flows that have ended, with their logs and exits."),
    },
    "Watching": {
        "ls": ("chronetixctl.listing:ls", "List flows and their states."),
        "describe": ("chronetixctl.describe:describe", "Show a flow's nodes, routes and last exits."),
        "top": ("chronetixctl.top:top", "Watch routes: rates, credits, latency, the bottleneck."),
        "topic": ("chronetixctl.topic:topic", "Show the frames of a data route as they are sent."),
        "route": ("chronetixctl.topic:route", "List data routes, or show the frames of one."),
        "logs": ("chronetixctl.follow:logs", "Show what nodes printed and logged."),
        "events": ("chronetixctl.follow:events", "Show what happened: states, exits, restarts."),
    },
    "Operating": {
        "service": ("chronetixctl.service:service", "Install, remove or show the systemd service."),
        "config": ("chronetixctl.config:config", "Show the daemon's settings and where each comes from."),
        "upgrade": ("chronetixctl.upgrade:upgrade", "Replace the daemon by another release; flows run on."),
        "audit": ("chronetixctl.audit:audit", "Show which user asked the daemon for what."),
        "doctor": ("chronetixctl.doctor:doctor", "Check this machine and the daemon on it."),
    },
    "Workers": {
        "worker": ("chronetixctl.worker:worker", "Check a worker in any language against the specifications."),
    },
    "About": {
        "version": ("chronetixctl.about:version", "Show versions of this program and of the daemon."),
        "errors": ("chronetixctl.about:errors", "Look up an error by its code or name."),
        "completion": ("chronetixctl.completion:completion", "Print a completion script for a shell."),
    },
}
"""Every command by the help's section: the module and object that implement it, and its line in the help."""

_PLACES = {name: place for section in SECTIONS.values() for name, (place, _help) in section.items()}

EPILOG = (
    "\b\nExamples:\n"
    "  chronetixctl submit flow.yaml\n"
    "  chronetixctl top\n"
    "  chronetixctl logs my-flow -f\n"
    "\b\nExit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in exits.MEANINGS.items())
)


@dataclass(slots=True)
class Session:
    """The values of the global options, whether they stood before or behind the command."""

    socket: str | None = None
    output: str = "table"
    color: bool | None = None

    def connect(self, *, again: bool = False) -> Any:
        """Connect to the daemon and return the client.

        With ``again`` the daemon is being replaced, so the client waits for the next one for UPGRADE_TIMEOUT_S instead
        of CONNECT_TIMEOUT_S. Raises ChronetixError as :meth:`Client.connect` does.
        """
        from chronetixctl.client import CONNECT_TIMEOUT_S, UPGRADE_TIMEOUT_S, Client

        timeout = UPGRADE_TIMEOUT_S if again else CONNECT_TIMEOUT_S
        return Client.connect(self.socket, timeout=timeout, software=PROGRAM)


@contextmanager
def _quiet_pipe() -> Iterator[None]:
    """End the command with code 0 and no message when the reader of stdout has closed it; click itself would report a
    failure."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        raise click.exceptions.Exit(exits.OK) from None


class Commands(click.Group):
    """The group of all commands. Imports a command's module when the command is looked up, and suggests the nearest
    name for an unknown one."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with _quiet_pipe():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _quiet_pipe():
            return super().invoke(ctx)

    def list_commands(self, _: click.Context) -> list[str]:
        return list(_PLACES)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        place = _PLACES.get(cmd_name)
        if place is None:
            return None
        module, name = place.split(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _PLACES and not name.startswith("-"):
            hint = did_you_mean(name, _PLACES, f"one of: {', '.join(_PLACES)}")
            raise click.UsageError(f'there is no command "{name}"; {hint}', ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, about[1]) for name, about in commands.items()])


def _print_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from chronetixd.installed import version

        click.echo(f"{PROGRAM} {version()}")
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
@click.option("--socket", metavar="PATH", help="The daemon's control socket.  [env: CHRONETIX_SOCKET]")
@click.option("-o", "--output", type=click.Choice(output.FORMATS), help="How to print data.  [default: table]")
@click.option("--no-color", is_flag=True, help="No colours, as with NO_COLOR in the environment.")
@click.pass_context
def cli(ctx: click.Context, socket: str | None, output: str | None, no_color: bool) -> None:
    """Submit, watch and stop the flows of a chronetixd."""
    session = Session(socket)
    ctx.obj = session
    adopt(ctx, socket, output, no_color or bool(os.environ.get("NO_COLOR")))


def adopt(ctx: click.Context, socket: str | None, output: str | None, no_color: bool) -> Session:
    """Write the global options that were given into the context's session, and return the session."""
    session = ctx.find_object(Session)
    assert session is not None
    if socket:
        session.socket = socket
    if output:
        session.output = output
    if no_color:
        session.color = False
    if session.color is False:
        ctx.find_root().color = False
        ctx.color = False
    return session


def run(args: Sequence[str] | None = None) -> int:
    """Run chronetixctl with ``args`` (default: this process's) and return its exit code."""
    if sys.stdout is None:  # the parent process closed stdout; a socket must not get descriptor number 1
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a character that the locale lacks must not end a command
    try:
        code = cli.main(args=None if args is None else list(args), prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except BaseException as reason:
        return _ending(reason)
    return code if isinstance(code, int) else exits.OK


def _ending(reason: BaseException) -> int:
    """Print the message of the exception that ended a command and return its exit code. An exception that is a defect
    of chronetixctl is raised again."""
    match reason:
        case ChronetixError():
            report(reason)
            return exits.exit_code(reason.code, reason.name)
        case click.UsageError():
            reason.show()
            return exits.USAGE
        case click.ClickException():
            reason.show()
            return reason.exit_code
        case click.exceptions.Exit():
            return reason.exit_code
        case click.Abort() | KeyboardInterrupt():
            return exits.INTERRUPTED
        case BrokenPipeError():
            _forget_stdout()
            return exits.OK
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG | errno.EIO) if reason.filename is None:
            _forget_stdout()
            output.say(f"{click.style('error:', fg='red', bold=True)} the output cannot be written: {reason.strerror}")
            return exits.FAILED
        case SystemExit():
            return reason.code if isinstance(reason.code, int) else exits.FAILED
        case _:
            raise reason


def report(reason: ChronetixError) -> None:
    """Print an error of the catalogue to stderr: its message, the problems and stderr lines in its details, its
    hint."""
    first, *rest = reason.message.splitlines() or [""]
    message = "\n".join([f"{first} [{reason.name}]", *rest])
    output.say(f"{click.style('error:', fg='red', bold=True)} {output.paragraph(message)}")
    problems = reason.details.get("problems")
    for problem in problems if isinstance(problems, list) else ():
        if isinstance(problem, dict):
            output.say("  " + problem_line(problem))
    for line in str(reason.details.get("stderr_tail") or "").splitlines():
        output.say(f"  | {output.printable_line(line)}")
    if reason.hint:
        output.say(f"{click.style('hint:', fg='cyan')} {output.printable(reason.hint)}")


def say_failed(result: dict[str, Any]) -> int:
    """Print why the flow of ``result`` has failed, and return the exit code for that."""
    name, reason = output.printable(result["flow"]), output.paragraph(result.get("reason") or "it does not say why")
    output.say(f"{click.style('error:', fg='red', bold=True)} the flow {name} failed: {reason}")
    output.say(f"{click.style('hint:', fg='cyan')} `{PROGRAM} describe {name}` shows every node's exit and last lines")
    return exits.FAILED


def problem_line(problem: dict[str, Any]) -> str:
    """Return the line for one problem of a flow as the daemon reports it: path, message, suggestion."""
    path, message, suggestion = (output.printable(problem.get(key) or "") for key in ("path", "message", "suggestion"))
    return f"{path or 'flow'}: {message}" + (f" ({suggestion})" if suggestion else "")


def _forget_stdout() -> None:
    """Point stdout at /dev/null after its reader has closed it, so that flushing the buffer at the interpreter's exit
    raises nothing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
