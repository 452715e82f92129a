"""``topic echo``: shows the frames of a data route as they are sent; ``route ls``: lists the data routes.

Rules: the frames come over a ring of this process, not through the daemon, and are copies: a reader that is slow or
stopped loses frames and never holds up the flow. The command reports at its end how many frames were lost. A frame that
cannot be decoded is shown as bytes, with the reason.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from chronetix import shm
from chronetix.protocol.content import cbor, npy
from chronetix.protocol.errors import error
from chronetix.protocol.json_text import json_text
from chronetixctl import exits, output
from chronetixctl.again import Asking
from chronetixctl.app import Session
from chronetixctl.options import ORDINAL, command, flow_argument
from chronetixctl.output import Column
from chronetixctl.tap import DEFAULT_BUFFER, Tap

HEX_SHOWN = 256
"""How many bytes of an undecoded frame are shown as hex."""

_ROUTES = (
    Column("FLOW"),
    Column("ROUTE"),
    Column("FROM"),
    Column("TO"),
    Column("TOPIC"),
    Column("CONTENT"),
    Column("POLICY"),
    Column("DROPPED", right=True),
    Column("TAPS", right=True),
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n"
    "  chronetixctl topic echo my-flow a:b\n"
    "  chronetixctl topic echo my-flow flow/edge/a-b --count 10",
)
def topic() -> None:
    """Show the frames of data routes as they are sent."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  chronetixctl route ls\n  chronetixctl route tap my-flow a:b",
)
def route() -> None:
    """List the data routes of flows, or show the frames of one."""


@command(
    """
chronetixctl route ls
chronetixctl route ls my-flow -o json
"""
)
@flow_argument(required=False)
def ls(session: Session, flow: str | None) -> int:
    """List the data routes of FLOW (default: of all flows), with their policies, losses and taps."""
    with session.connect() as client:
        names = [each["name"] for each in client.call("list")["flows"]] if flow is None else [flow]
        found = [
            {"flow": name, **each}
            for name in names
            for each in client.call("describe", flow=name)["routes"]
            if each["plane"] == "data"
        ]
    rows = [
        (
            *(output.printable(each[key] or "") for key in ("flow", "id", "from", "to", "topic", "content_type")),
            _policy(each),
            (each["stats"] or {}).get("dropped", ""),
            len(each["taps"]),
        )
        for each in found
    ]
    output.show({"routes": found}, session.output, lambda: output.table(_ROUTES, rows) if rows else "")
    return exits.OK


def _policy(route: dict[str, Any]) -> str:
    return f"{route['policy']} ≤ {route['limit_ms']:g} ms" if route["limit_ms"] else str(route["policy"])


@command(
    """
chronetixctl topic echo my-flow a:b
chronetixctl topic echo my-flow flow/edge/a-b --count 10
chronetixctl topic echo my-flow dataport/a-b -o json | jq .value
chronetixctl topic echo my-flow a:b --raw --count 1 > frame.bin
"""
)
@flow_argument()
@click.argument("route")
@click.option("--count", type=ORDINAL, metavar="N", help="End after N frames.")
@click.option("--raw", is_flag=True, help="Write only the payloads, unchanged, one after another.")
@click.option(
    "--buffer",
    type=click.IntRange(1, 1024),
    default=DEFAULT_BUFFER,
    show_default=True,
    help="How many unread frames are kept; older ones are lost.",
)
def echo(session: Session, flow: str, route: str, count: int | None, raw: bool, buffer: int) -> int:
    """Show the frames of ROUTE of FLOW (its id, its topic, or its ends as FROM:TO) from now on, until Ctrl-C.

    JSON and CBOR are shown decoded, Arrow streams as their schema and number of rows, arrays as
    their shape and dtype, other bytes as hex.
    """
    shown = 0
    with Asking(session) as asking:
        while True:
            with Tap(asking.client, flow, route, buffer) as tap:
                try:
                    for frame in tap:
                        _show(session, frame, str(tap.about["content_type"]), raw)
                        shown += 1
                        if shown == count:
                            return exits.OK
                except shm.PeerFault as fault:
                    raise error("route-detached", route=route, reason=str(fault.args[0])) from None
                finally:
                    if tap.lost:
                        output.say(f"{tap.lost} frames were lost: they were overwritten before they were read here")
            if not tap.again:
                break
            if tap.upgrading:
                asking.again()
                continue
            output.say(f"{output.printable(tap.reason)}; going on with the first frames of its successor that come")
    if not tap.about and not shown:
        raise error("route-detached", route=route, reason=tap.reason)
    if tap.reason and not raw:
        output.say(f"ended: {output.printable(tap.reason)}")
    return exits.OK


topic.add_command(echo, "echo")
route.add_command(ls, "ls")
route.add_command(echo, "tap")


def _show(session: Session, frame: shm.Frame, content_type: str, raw: bool) -> None:
    if raw:
        sys.stdout.buffer.write(memoryview(frame))
        sys.stdout.buffer.flush()
    else:
        item = described(frame, content_type)
        output.show_item(item, session.output, lambda: "\n".join(_lines(item)))


def described(frame: shm.Frame, content_type: str) -> dict[str, Any]:
    """Return a frame as a map for printing: with ``value`` if it could be decoded, else with ``base64``, and with the
    reason in ``undecoded`` if its content type has a decoder."""
    sent_unix_ns = time.time_ns() - (time.monotonic_ns() - frame.time_ns)
    head = {"seq": frame.seq, "unix_ns": sent_unix_ns, "bytes": len(frame), "content_type": content_type}
    try:
        return {**head, "value": _value(frame, content_type)}
    except Exception as reason:
        why = {} if isinstance(reason, _NoFormat) else {"undecoded": f"{type(reason).__name__}: {reason}"}
        return {**head, **why, "base64": base64.b64encode(bytes(frame)).decode()}


class _NoFormat(Exception):
    """Raised for a content type that has no decoder here."""


def _value(frame: shm.Frame, content_type: str) -> Any:
    match content_type:
        case "application/json":
            return json.loads(bytes(frame))
        case "application/cbor":
            return _printable(cbor.loads(bytes(frame)))
        case "application/x-npy":
            return _array(frame)
        case "application/arrow-ipc" | "application/arrow+ipc":
            table = frame.arrow()
            return {"rows": table.num_rows, "schema": {field.name: str(field.type) for field in table.schema}}
        case _:
            raise _NoFormat


def _array(frame: shm.Frame) -> dict[str, Any]:
    """What the array of a frame is, without its items."""
    with memoryview(frame) as view:
        header = npy.read_header(view)
    return {"shape": list(header.shape), "dtype": header.descr, "by_columns": header.by_columns}


def _printable(value: Any) -> Any:
    """What CBOR has and JSON has not: arrays and sets as lists, keys and the rest as text."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_printable(item) for item in value]
    if value is None or isinstance(value, str | int | float | bytes):
        return value
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _lines(item: dict[str, Any]) -> Iterator[str]:
    head = click.style(output.clock(item["unix_ns"]), dim=True)
    yield f"{head} #{item['seq']} {output.size(item['bytes'])}"
    if "value" in item:
        for line in json_text(item["value"], indent=2).splitlines():
            yield "  " + output.printable_line(line)
        return
    if "undecoded" in item:
        yield f"  {click.style('not', fg='yellow')} {item['content_type']}: {output.first_line(item['undecoded'])}"
    data = base64.b64decode(item["base64"])
    for at in range(0, min(len(data), HEX_SHOWN), 16):
        part = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"  {at:06x}  {part.hex(' '):<47}  {text}"
    if len(data) > HEX_SHOWN:
        yield f"  … {len(data) - HEX_SHOWN} bytes more"
