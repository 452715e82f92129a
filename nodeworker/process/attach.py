"""``chronetix.attach``: makes a running process the worker of a node that waits for it (``attach://NAME``).

Nothing of the process is the daemon's: it keeps its stdout and stderr, its control group and its parent. In the main
thread of a program the worker gets SIGTERM and SIGINT, as a worker that the daemon has started does. Elsewhere, beside
a running event loop (a notebook) or in another thread, signals are not touched and the daemon sends none: the worker
runs in a thread, and a KeyboardInterrupt in the thread that waits for it ends it in order.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket as sockets
import threading
from typing import Any

from chronetix.nodeworker.api.errors import DaemonGone, Interrupted
from chronetix.nodeworker.process.worker import OK, Guest, Worker
from chronetix.protocol import paths, trust
from chronetix.protocol.errors import error

SOCKET_VARIABLE = "CHRONETIX_SOCKET"
TOKEN_VARIABLE = "CHRONETIX_ATTACH_TOKEN"
"""Environment variables that :func:`attach` reads."""


def attach(name: str, plugin: Any, *, socket: str | None = None, token: str | None = None) -> Any:
    """Make this process the worker of the node whose artifact is ``attach://NAME``, and run ``plugin`` (class, instance
    or function) until the node has finished. Returns what its ``on_stop`` has returned.

    ``socket``: the path of the daemon's control socket, by default $CHRONETIX_SOCKET or the user's own.
    ``token``: the flow's attach token, by default $CHRONETIX_ATTACH_TOKEN; ``chronetixctl attach-token FLOW`` prints
    it.

    Raises ChronetixError with the next step if the daemon refuses or is not there; what the plugin raises;
    KeyboardInterrupt after an interrupt, when the node has been left in order; SystemExit after SIGTERM. The node waits
    for attach again then, if its ``restart`` says so.
    """
    named = token if token is not None else os.environ.get(TOKEN_VARIABLE, "")
    if not named:
        raise error("attach-token-unknown")
    main = threading.current_thread() is threading.main_thread()
    shared = not main or _beside_a_loop()
    path = _path(socket)
    worker = Worker(_connect(path), plugin, guest=Guest(name, named, path, shared))
    code = _in_a_thread(worker) if main and shared else worker.run()
    if code == OK:
        return worker.result
    reason, worker.ended_by = worker.ended_by, None
    if isinstance(reason, DaemonGone):
        raise error("attach-ended", name=name, reason=str(reason)) from None
    if isinstance(reason, Interrupted):
        raise SystemExit(code) if worker.stopped_by == signal.SIGTERM else KeyboardInterrupt
    assert reason is not None
    raise reason


def _beside_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_a_thread(worker: Worker) -> int:
    """Run the worker in a thread, and wait here, where a KeyboardInterrupt may come: the first one ends it in order, a
    second one leaves it to itself."""
    codes: list[int] = []
    ended = threading.Event()  # before Python 3.12 a join that was interrupted takes its thread for ended

    def run() -> None:
        try:
            codes.append(worker.run())
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="chronetix-attach", daemon=True)
    thread.start()
    try:
        ended.wait()
    except KeyboardInterrupt:
        worker.interrupt(Interrupted("interrupted"))
        ended.wait()
    thread.join()
    return codes[0]


def _path(socket: str | None) -> str:
    own = str(paths.socket_path(os.environ, os.getuid(), socket))
    named = socket is not None or os.environ.get(SOCKET_VARIABLE)
    return paths.SYSTEM_SOCKET if not named and not os.path.exists(own) else own


def _connect(path: str) -> sockets.socket:
    """Return a connection to the daemon. Raises ChronetixError ``daemon-unreachable``, ``server-not-trusted``."""
    sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC)
    try:
        sock.connect(path)
        trust.check(sock, path, os.environ.get("CHRONETIX_DAEMON_USER"))
    except OSError as reason:
        sock.close()
        raise error("daemon-unreachable", socket=path, reason=reason.strerror or str(reason)) from None
    except BaseException:
        sock.close()
        raise
    return sock
