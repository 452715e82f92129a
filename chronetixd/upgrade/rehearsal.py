"""The rehearsal: the other release, as a child, rebuilds everything from a real snapshot and answers with its version.

The child gets duplicates of all descriptors and must leave no trace: it reads no socket, sends nothing, writes nothing.
Only exit code 0 in time, with exactly the expected answer, permits the upgrade.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import msgspec

from chronetix.protocol.errors import ChronetixError, error
from chronetixd.core.worker import Exit
from chronetixd.linux.pidfd import Process
from chronetixd.packing import Packed
from chronetixd.startpath import SAFE
from chronetixd.upgrade import exec_handoff
from chronetixd.upgrade.modules import Lacking, lacking
from chronetixd.upgrade.snapshot import FORMATS, Snapshot, read
from chronetixd.workers.launcher import NOT_INHERITED

OPTION = "--check-upgrade"
MAX_OUTPUT = 64 * 1024
"""How many bytes of the answer are read."""

LAST_LINES = 5
_PR_SET_PDEATHSIG = 1


class RehearsalResult(Packed, frozen=True, omit_defaults=True):
    """The version and formats of the other release, and how many flows and workers it has rebuilt. ``lacks``: modules
    of plugins that it does not find."""

    version: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    formats: list[int]
    flows: int
    workers: int
    lacks: list[Lacking] = []


class Rehearsal:
    """Runs one child at a time. ``pids`` must not be taken for orphans."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.pids: set[int] = set()
        self._ended = Exit()

    async def __call__(
        self, image: exec_handoff.Image, state: int, descriptors: Sequence[int], timeout_s: float
    ) -> RehearsalResult:
        """Let ``image`` rehearse with the snapshot ``state``. Raises ChronetixError ``upgrade-refused``."""
        out, err = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("rehearsal-out", "rehearsal-err"))
        try:
            ended = await self._run(image, state, descriptors, timeout_s, out, err)
            said, last = os.pread(out, MAX_OUTPUT, 0), _last_lines(err)
        finally:
            os.close(out)
            os.close(err)
        if ended is None:
            raise _refused(f"{image.argv[0]} did not finish its rehearsal within {timeout_s:g} s", last)
        if ended != Exit(code=0):
            raise _refused(f"{image.argv[0]}, which was to rehearse, {ended}", last)
        try:
            return msgspec.json.decode(said, type=RehearsalResult)
        except msgspec.DecodeError as reason:
            raise _refused(f"{image.argv[0]} gave no answer of a chronetixd ({reason})", last) from None

    async def _run(
        self, image: exec_handoff.Image, state: int, descriptors: Sequence[int], timeout_s: float, out: int, err: int
    ) -> Exit | None:
        """Return how the child ended; None if it took too long."""
        gone = self._loop.create_future()
        try:
            child = subprocess.Popen(
                [*image.argv, OPTION, str(state)],
                executable=image.program,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={name: value for name, value in os.environ.items() if name not in NOT_INHERITED},
                pass_fds=(state, *descriptors),
                start_new_session=True,
            )
        except OSError as reason:
            raise _refused(f"{image.program} cannot be executed: {reason.strerror}", "") from None
        child.returncode = 0  # its exit status is taken through its pidfd, not by subprocess
        self.pids.add(child.pid)
        process = Process(self._loop, child.pid, os.pidfd_open(child.pid), lambda: gone.set_result(None))
        late = self._loop.call_later(timeout_s, process.signal, signal.SIGKILL)
        try:
            await asyncio.shield(gone)
        except asyncio.CancelledError:
            process.on_exit = partial(self._reap, process)
            process.signal(signal.SIGKILL)
            raise
        finally:
            in_time = self._loop.time() < late.when()
            late.cancel()
        self._reap(process)
        return self._ended if in_time or self._ended.signal != "SIGKILL" else None

    def _reap(self, process: Process) -> None:
        self.pids.discard(process.pid)
        self._ended = process.reap()


def _end_with_parent() -> None:
    """End this child when the daemon dies: it has the daemon's sockets and lock open, and the next daemon needs them
    free."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _last_lines(fd: int) -> str:
    size = os.fstat(fd).st_size
    text = os.pread(fd, MAX_OUTPUT, max(0, size - MAX_OUTPUT)).decode("utf-8", "backslashreplace")
    return "\n".join(text.splitlines()[-LAST_LINES:])


def _refused(reason: str, last: str) -> ChronetixError:
    return error("upgrade-refused", reason=f"{reason}{': ' if last else ''}{last}", stderr_tail=last)


def rehearse(state: int, rebuild: Callable[[Snapshot], tuple[str, int]]) -> None:
    """In the child: call ``rebuild``, which returns this release's version and the number of workers, and answer. Ends
    the process without dismantling what was rebuilt. Raises ChronetixError."""
    _end_with_parent()
    snapshot = read(state)
    version, workers = rebuild(snapshot)
    launcher = subprocess.run(
        [sys.executable, SAFE, "-c", "import chronetix.nodeworker.process.launcher"], stdin=subprocess.DEVNULL
    )
    if launcher.returncode != 0:
        raise error("snapshot-unreadable", reason="this release's launcher of workers does not start, see above")
    answer = RehearsalResult(
        version=version,
        formats=list(FORMATS),
        flows=len(snapshot.flows.flows),
        workers=workers,
        lacks=lacking(snapshot.flows),
    )
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
