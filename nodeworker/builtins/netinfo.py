"""builtin://chronetix/resource/netinfo: what a plugin needs to know of the machine's network.

A JSON map ``{ip, netmask, gateway, ports, media_location}``, published on the node's control routes when it starts,
and the reply to every request on its subscriptions or on ``<its topic>/get``. The interface is the one of the default
route, or ``params.interface``. ``ports`` is the range for local ports ([first, last]) and ``media_location`` a
folder; both, like every other value, are replaced by a param of that name. What the machine has not is null.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from chronetix.nodeworker.api.context import Context
from chronetix.nodeworker.api.message import Message

PARAMS: Final[Mapping[str, str]] = {
    "interface": "Name of the network interface to describe, instead of that of the default route.",
    "ip": "Value for `ip`, instead of the interface's address.",
    "netmask": "Value for `netmask`, instead of the interface's.",
    "gateway": "Value for `gateway`, instead of that of the default route.",
    "ports": "Value for `ports`, instead of the kernel's range of local ports.",
    "media_location": "Value for `media_location`, instead of `CHRONETIX_MEDIA` of the environment.",
}

SIOCGIFADDR, SIOCGIFNETMASK = 0x8915, 0x891B
KEYS = ("ip", "netmask", "gateway", "ports", "media_location")
PROC = Path("/proc")


class NetInfo:
    """Publishes what a plugin needs to know of the machine's network, a map ``{ip, netmask, gateway, ports,
    media_location}``, on its control routes when it starts, and replies with it to every request on its subscriptions
    and on ``TOPIC/get`` of its control routes. It reads the machine anew for each reply. What the machine does not have
    is null."""

    def on_start(self, ctx: Context) -> None:
        """Tell everyone who is wired to this node."""
        for topic in ctx.publications:
            ctx.subscribe(f"{topic}/get")
        if ctx.publications:
            ctx.publish(None, describe(ctx.params))

    def on_message(self, message: Message, ctx: Context) -> None:
        """Answer a request; other messages need none."""
        if message.wants_reply:
            message.reply(describe(ctx.params))


def describe(params: Any, proc: Path = PROC) -> dict[str, Any]:
    """The five values, those in ``params`` first."""
    interface, gateway = default_route(proc / "net/route")
    interface = params.get("interface", interface)
    seen = {
        "ip": _address(interface, SIOCGIFADDR),
        "netmask": _address(interface, SIOCGIFNETMASK),
        "gateway": gateway,
        "ports": _local_ports(proc / "sys/net/ipv4/ip_local_port_range"),
        "media_location": os.environ.get("CHRONETIX_MEDIA"),
    }
    return {key: params.get(key, seen[key]) for key in KEYS}


def default_route(table: Path) -> tuple[str, str | None]:
    """Interface and gateway of the default IPv4 route in a file like /proc/net/route; loopback when there is none."""
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    defaults = [row for row in rows if len(row) > 7 and row[1] == "00000000" and row[7] == "00000000"]
    if not defaults:
        return "lo", None
    best = min(defaults, key=lambda row: int(row[6]))
    return best[0], str(ipaddress.IPv4Address(struct.pack("<I", int(best[2], 16))))


def _address(interface: str, question: int) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock.fileno(), question, request)
        except OSError:
            return None  # the interface has no IPv4 address
    return socket.inet_ntoa(answer[20:24])


def _local_ports(setting: Path) -> list[int] | None:
    return [int(word) for word in setting.read_text().split()] if setting.exists() else None
