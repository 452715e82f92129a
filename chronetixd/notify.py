"""What a supervisor that set $NOTIFY_SOCKET is told (systemd's sd_notify protocol): ready, stopping, status."""

from __future__ import annotations

import os
import socket

import structlog


def notify(message: str) -> None:
    """Send ``message`` (such as ``READY=1``); nothing without a supervisor, and a log line when it cannot be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.sendto(message.encode(), address)
        except OSError as reason:
            structlog.get_logger("chronetixd").warning(
                "the supervisor could not be told", text=message, why=str(reason)
            )
