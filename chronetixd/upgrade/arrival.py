"""The new image, from its first line to where it has everything that the one before it had.

Until then nothing acts: the loop does not turn, and what is rebuilt only takes duplicates of descriptors. Whatever is
raised on the way, or takes too long, leads back to the old image.
"""

from __future__ import annotations

import os
from types import TracebackType

from chronetixd.packing import Unbag
from chronetixd.settings import Configured, Source, keep_fixed
from chronetixd.upgrade import exec_handoff
from chronetixd.upgrade.snapshot import Snapshot


class Arrival:
    """What was handed over to this image. In its context everything is rebuilt, or the old image executed."""

    def __init__(self, told: exec_handoff.ExecHandoff, snapshot: Snapshot) -> None:
        self._told = told
        self.snapshot = snapshot
        self.bag = Unbag(snapshot.descriptors)

    @property
    def failed(self) -> str:
        """Why the image that this one has sent failed; empty when this is the one that was sent."""
        return self._told.failed

    @property
    def version(self) -> str:
        """Of this image, as it said in its rehearsal."""
        return self.snapshot.upgrade.before if self.failed else self.snapshot.upgrade.after

    def __enter__(self) -> Arrival:
        return self

    def __exit__(self, _kind: object, reason: BaseException | None, trace: TracebackType | None) -> None:
        if reason is not None:
            exec_handoff.back(self._told, reason)

    def complete(self) -> None:
        """Everything is rebuilt, and signals have handlers: there is no way back any more."""
        self.bag.close()
        os.close(self._told.state)
        exec_handoff.arrived()


def configured_by(snapshot: Snapshot) -> tuple[Source, Configured]:
    """The configuration as it is now, with the settings that only a restart changes as they were. Raises
    ChronetixError ``config-invalid``."""
    source = Source(snapshot.flags, snapshot.config)
    found = source()
    return source, Configured(keep_fixed(snapshot.settings, found.settings), found.origins)
