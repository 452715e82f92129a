"""Imports what a program imports, then forks one program for each request: see the package.

A request is a packet: JSON, with the descriptors 0, 1 and 2 of the new process and those whose numbers it names. The
answer is the pid. There is always only one thread, because forking is a raw clone3.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import runpy
import socket
import sys
from importlib import import_module
from typing import Any, NoReturn

MOST_FDS = 253
"""How many descriptors one packet may carry (SCM_MAX_FD)."""

FREE = 2 * MOST_FDS
"""From this number on no descriptor is requested."""


def daemon() -> None:
    """What ``chronetixd`` imports before it reads its first setting, in its order."""
    from chronetixd.main import import_structlog

    import_module("chronetixd.upgrade.exec_handoff")
    import_structlog()
    import_module("chronetixd.daemon.command")


def command_line() -> None:
    """What every command imports."""
    import_module("chronetixctl.app")
    import_module("chronetixctl.client")


def worker() -> None:
    """What every Python worker imports; the module itself is run anew, as ``__main__``."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import_module("chronetix.nodeworker.process.worker")
    del sys.modules["chronetix.nodeworker.process.worker"]


IMPORTS = {
    "chronetixd": daemon,
    "chronetixctl": command_line,
    "chronetix.nodeworker.process.worker": worker,
}

FORGET_START_FOLDER = ("chronetixd", "chronetixctl")
"""See chronetixd.startpath."""


def serve(sock: socket.socket) -> dict[str, Any]:
    """Fork for each request. Returns in the new process, with the program that it is to run. Ends the process after the
    last request."""
    from chronetix.nodeworker import _clone

    gc.collect()
    gc.freeze()
    while True:
        data, fds, _, _ = socket.recv_fds(sock, 1 << 18, MOST_FDS)
        if not data:
            sys.exit()
        pid, pidfd = _clone.fork(True)
        if pid == 0:
            sock.close()
            gc.unfreeze()
            asked: dict[str, Any] = json.loads(data)
            settle(fds, [0, 1, 2, *asked["fds"]])
            return asked
        for fd in (pidfd, *fds):
            os.close(fd)
        sock.send(json.dumps({"pid": pid}).encode())


def settle(fds: list[int], wanted: list[int]) -> None:
    """Give each descriptor its requested number, and keep it open over exec."""
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, FREE) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(above, wanted, strict=True):
        os.dup2(fd, number)
        os.close(fd)


def become(asked: dict[str, Any]) -> NoReturn:
    """Run the program as ``python -m`` would."""
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    path = asked["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [entry for entry in path if entry]
    if asked["module"] not in FORGET_START_FOLDER:
        sys.path.insert(0, asked["cwd"])
    sys.orig_argv[:] = asked["argv"]
    sys.argv[:] = asked["argv"][2:]
    if "LISTEN_FDS" in os.environ:
        os.environ["LISTEN_PID"] = str(os.getpid())
    if asked["argv"][1] == "-c":
        sys.argv[0] = "-c"
        exec(asked["argv"][2], sys.modules["__main__"].__dict__)
        sys.exit()
    runpy._run_module_as_main(asked["module"])  # type: ignore[attr-defined]
    sys.exit()


if __name__ == "__main__":
    module, number = sys.argv[1:]
    requests = socket.socket(fileno=int(number))
    IMPORTS[module]()
    become(serve(requests))
