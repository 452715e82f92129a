"""The new image, from its first line until it has rebuilt everything that the image before handed over.

Until then no part acts: the loop does not run, and rebuilding only takes duplicates of descriptors. An exception on the
way, or too long a time, leads back to the old image.
"""

from __future__ import annotations

import os
from types import TracebackType

from chronetixd.packing import Unbag
from chronetixd.settings import Configured, Source, keep_fixed
from chronetixd.upgrade import exec_handoff
from chronetixd.upgrade.snapshot import Snapshot


class Arrival:
    """What was handed over to this image. As a context manager: an exception in its body executes the old image."""

    def __init__(self, told: exec_handoff.ExecHandoff, snapshot: Snapshot) -> None:
        self._told = told
        self.snapshot = snapshot
        self.bag = Unbag(snapshot.descriptors)

    @property
    def failed(self) -> str:
        """Why the upgrade failed that this image had begun; empty if this is the new image."""
        return self._told.failed

    @property
    def version(self) -> str:
        """The version of this image, as its rehearsal returned it."""
        return self.snapshot.upgrade.before if self.failed else self.snapshot.upgrade.after

    def __enter__(self) -> Arrival:
        return self

    def __exit__(self, _kind: object, reason: BaseException | None, trace: TracebackType | None) -> None:
        if reason is not None:
            exec_handoff.back(self._told, reason)

    def complete(self) -> None:
        """Everything is rebuilt and signals have handlers: from now on the old image cannot take over any more."""
        self.bag.close()
        os.close(self._told.state)
        exec_handoff.arrived()


def configured_by(snapshot: Snapshot) -> tuple[Source, Configured]:
    """Return the present configuration, in which settings that only a restart changes keep their values. Raises
    ChronetixError ``config-invalid``."""
    source = Source(snapshot.flags, snapshot.config)
    found = source()
    return source, Configured(keep_fixed(snapshot.settings, found.settings), found.origins)
