"""Types of the C extension: processes with a chosen parent, and what a new one does first."""

def fork(as_sibling: bool = True) -> tuple[int, int]:
    """A new process: ``(pid, pidfd)`` in the caller, ``(0, -1)`` in the new one.

    With ``as_sibling`` its parent is the caller's parent, which alone can reap it. It ends without a signal to its
    parent: wait on the pidfd, and with ``__WALL``. The caller must have a single thread. Raises OSError.
    """

def die_with_parent(signum: int = 9) -> None:
    """Get ``signum`` when the parent's thread that we hang on ends. Check getppid afterwards: it may have been too
    late."""

def set_name(name: str) -> None:
    """What ps and top show for this thread; the kernel cuts it to 15 bytes."""

def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """Close every descriptor from ``first`` to ``last``, both included; an empty range is nothing."""

def ring_on_signal(signum: int, descriptor: int) -> None:
    """The handler that ``signal.signal`` installed for ``signum`` also rings the eventfd ``descriptor`` (one for all
    signals; -1: none), so that a thread that sleeps on it, or is about to, comes back and runs it."""
