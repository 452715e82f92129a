"""``worker test``: the conformance kit. It checks a worker in any language, without a daemon."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from chronetix.protocol.nearest import did_you_mean
from chronetixctl import exits, output
from chronetixctl.app import Session
from chronetixctl.options import SPAN, command
from chronetixctl.output import Column
from chronetixctl.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chronetixctl.conformance.run import Case, Outcome

PROFILES = ("minimal-sink", "sink", "map", "source", "full")
FORMS = ("sink", "map", "source")

_COLUMNS = (Column("PROFILE"), Column("AS"), Column("CHECK"), Column("RESULT"), Column("TIME", right=True))
_LISTED = (Column("PROFILE"), Column("CHECK"), Column("AS"), Column("WHAT IT CHECKS"), Column("SECTION"))
_VERDICTS = {True: click.style("met", fg="green"), False: click.style("not met", fg="red"), None: "not all checked"}
_COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}


@click.group(
    epilog="\b\nExamples:\n  chronetixctl worker test --profile sink ./my-sink\n",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def worker() -> None:
    """Check programs that are workers."""


@command(
    """
chronetixctl worker test --profile sink ./my-sink
chronetixctl worker test --profile map --contents none ./my-map --my-option
chronetixctl worker test --profile source --only 'daemon-*' -o json ./my-source
chronetixctl worker test --list --profile minimal-sink
""",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    default="full",
    show_default=True,
    help="What the program claims to be; full: everything, with whichever ends of routes it is given.",
)
@click.option(
    "--as", "forms", type=click.Choice(FORMS), multiple=True, help="Of the profile full only this form. Repeatable."
)
@click.option("--only", multiple=True, metavar="CHECK", help="Only this check, or those like 'daemon-*'. Repeatable.")
@click.option("--list", "listing", is_flag=True, help="List the checks of the profile, and run nothing.")
@click.option("--timeout", type=SPAN, default="5s", show_default=True, help="How long each awaited thing may take.")
@click.option(
    "--start-timeout", type=SPAN, default="20s", show_default=True, help="How long the start may take, until ready."
)
@click.option(
    "--contents",
    type=click.Choice(("echo", "none")),
    default="echo",
    show_default=True,
    help="What the program makes of frames. echo: a map returns each unchanged, a source sends the kit's sequence. "
    "none: something else; checks of contents are skipped.",
)
@click.option("--input-name", metavar="NAME", default="in", show_default=True, help="Name of the first input.")
@click.option("--output-name", metavar="NAME", default="out", show_default=True, help="The same of outputs.")
@click.option(
    "--content-type",
    metavar="TYPE",
    default="application/octet-stream",
    show_default=True,
    help="Content type of all ports.",
)
@click.option(
    "--sample",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Send the bytes of this file as each frame, to a program that parses what it gets.",
)
@click.argument("program", nargs=-1, metavar="PROGRAM [ARG]...", type=click.UNPROCESSED)
def test(
    session: Session,
    profile: str,
    forms: tuple[str, ...],
    only: tuple[str, ...],
    listing: bool,
    timeout: float,
    start_timeout: float,
    contents: str,
    input_name: str,
    output_name: str,
    content_type: str,
    sample: Path | None,
    program: tuple[str, ...],
) -> int:
    """Check PROGRAM, a worker in any language, against the specifications.

    No daemon is needed: for each check PROGRAM is started anew with a control socket (CHRONETIX_FD), and this command
    plays the daemon and both peers. A sink takes frames; a map returns each frame unchanged on its outputs; a source
    sends frames, the k-th of which is k as 8 bytes little-endian, until it is told to stop. Options stand before
    PROGRAM.

    Exit code 0 when no mandatory check of the profile has failed, else 1.
    """
    from chronetixctl.conformance.program import Subject

    chosen = _chosen(profile, forms, only)
    if listing:
        return _list(session, chosen)
    if not program:
        raise click.UsageError("name the PROGRAM to check, or --list the checks")
    subject = Subject(
        program,
        timeout_s=timeout,
        start_timeout_s=start_timeout,
        contents=contents == "echo" and sample is None,
        input=input_name,
        output=output_name,
        content_type=content_type,
        sample=sample.read_bytes() if sample is not None else None,
    )
    return _run(session, subject, profile, chosen)


def _chosen(profile: str, forms: Sequence[str], only: Sequence[str]) -> list[Case]:
    from chronetixctl.conformance.catalogue import CHECKS
    from chronetixctl.conformance.check import PROFILES as KNOWN
    from chronetixctl.conformance.forms import EVERY
    from chronetixctl.conformance.run import cases

    if forms and profile != "full":
        raise click.UsageError(
            f"--as chooses forms of the profile full, and --profile says {profile}: give one of them"
        )
    wanted = [form for form in EVERY if not forms or form.value in forms]
    for pattern in only:
        if not cases(KNOWN[profile], wanted, [pattern]):
            names = [check.name for check in CHECKS]
            if pattern in names:
                raise click.UsageError(f'the check "{pattern}" is none of the profile {profile}')
            hint = did_you_mean(pattern, names, "--list lists them")
            raise click.UsageError(f'there is no check "{pattern}"; {hint}')
    return cases(KNOWN[profile], wanted, only)


def _list(session: Session, chosen: Sequence[Case]) -> int:
    from chronetixctl.conformance.report import described, section

    def text() -> str:
        rows: dict[tuple[str, str], list[str]] = {}
        for case in chosen:
            check = case.check
            about = check.about if check.mandatory else f"{check.about} (advice)"
            key = case.profile, check.name
            if key in rows:
                rows[key][2] += f", {case.form}"
            else:
                rows[key] = [case.profile, check.name, case.form.value, about, section(check)]
        return output.table(_LISTED, list(rows.values()))

    output.show([described(case) for case in chosen], session.output, text)
    return exits.OK


class _Ended(KeyboardInterrupt):
    """Raised in the main thread when a signal ends the command, so that the program ends first."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, which ``timeout`` and a closed terminal send, raise :class:`_Ended`."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise _Ended(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(session: Session, subject: Any, profile: str, chosen: Sequence[Case]) -> int:
    from chronetixctl.conformance.report import by_profile, reported
    from chronetixctl.conformance.run import run_cases

    progress = Progress(lambda item: f"{item['number']} of {len(chosen)}: {item['check']} as a {item['as']}")
    done: list[Outcome] = []
    try:
        with _ended_in_order():
            run_cases(
                subject,
                chosen,
                lambda case, number: progress.show(
                    {"number": number + 1, "check": case.check.name, "as": case.form.value}
                ),
                done.append,
            )
    except OSError as reason:
        progress.end()
        output.say(f"{subject.argv[0]} cannot be started: {reason.strerror}")
        return exits.FAILED
    except KeyboardInterrupt as reason:
        progress.end()
        output.say(f"interrupted after {len(done)} of {len(chosen)} checks; the program was ended")
        return 128 + reason.number if isinstance(reason, _Ended) else exits.INTERRUPTED
    progress.end()
    profiles = by_profile(done)
    value = {
        "program": list(subject.argv),
        "profile": profile,
        "met": not any(outcome.counts for outcome in done),
        "profiles": profiles,
        "checks": [reported(outcome) for outcome in done],
    }
    output.show(value, session.output, lambda: "\n".join([_table(done), "", _summary(profiles)]))
    return exits.FAILED if any(outcome.counts for outcome in done) else exits.OK


def _table(outcomes: Sequence[Outcome]) -> str:
    from chronetixctl.conformance.report import section
    from chronetixctl.conformance.run import Verdict

    ordered = sorted(outcomes, key=lambda outcome: PROFILES.index(outcome.case.profile))
    rows = [
        (
            outcome.case.profile,
            outcome.case.form.value,
            outcome.case.check.name,
            click.style(outcome.verdict.value, fg=_COLOURS[outcome.verdict.value]),
            output.duration(outcome.seconds * 1e9) if outcome.verdict is not Verdict.SKIPPED else None,
        )
        for outcome in ordered
    ]
    head, *lines = output.table(_COLUMNS, rows).splitlines()
    shown = [head]
    for line, outcome in zip(lines, ordered, strict=True):
        shown.append(line)
        if outcome.verdict is Verdict.FAILED:
            advice = "" if outcome.case.check.mandatory else " (advice, does not count)"
            shown += [
                f"    expected: {output.printable(outcome.expected)}{advice}",
                f"    came:     {output.printable(outcome.came)}",
                f"    see:      {section(outcome.case.check)}",
            ]
        elif outcome.verdict is Verdict.SKIPPED:
            shown.append(f"    {output.printable(outcome.expected)}")
    return "\n".join(shown)


def _summary(profiles: dict[str, dict[str, Any]]) -> str:
    columns = [Column("PROFILE"), *(Column(each.upper(), right=True) for each in ("passed", "failed", "skipped"))]
    rows = []
    for name, found in profiles.items():
        verdict = _VERDICTS[found["met"]]
        rows.append((name, found["passed"], str(found["failed"]), str(found["skipped"]), verdict))
    return output.table([*columns, Column("")], rows)


worker.add_command(test)
