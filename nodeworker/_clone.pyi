"""Types of the C extension: processes with a chosen parent, and what a new one does first."""

def fork(as_sibling: bool = True, cgroup: int = -1) -> tuple[int, int]:
    """A new process: ``(pid, pidfd)`` in the caller, ``(0, -1)`` in the new one.

    With ``as_sibling`` its parent is the caller's parent, which alone can reap it. It ends without a signal to its
    parent: wait on the pidfd, and with ``__WALL``. It is born in the control group (v2) whose folder ``cgroup`` is open
    on, if one is given. The caller must have a single thread. Raises OSError.
    """

def settle(control: int, out: int, err: int, parent: int, name: str) -> int:
    """What a new process does first, in one call because each line of Python costs it copied pages.

    A session of its own; SIGKILL when ``parent`` ends (if it has already: exit code 70 at once); ``out`` and ``err`` as
    descriptors 1 and 2, ``control`` as 3 (the result, close-on-exec), every higher one closed; no blocked signals;
    ``name`` (the kernel keeps 15 bytes) for ps and top. Raises OSError.
    """

def hang_on(parent: int) -> None:
    """SIGKILL when ``parent`` ends (if it has already: exit code 70 at once), once more after this process has become
    another user's: the kernel forgets it then. And what is below ``/proc/self`` is the process's own. Raises OSError.
    """

def outlive_parent() -> None:
    """The end of its parent does not end this process any more: undoes that part of :func:`settle`. Raises OSError."""

def limit_data(more: int, from_now: bool = True) -> None:
    """This process may have ``more`` bytes of private writable memory beyond what it has now (RLIMIT_DATA, for good);
    not ``from_now``: in all, for a program that is about to be executed. Shared memory does not count. Raises OSError.
    """

def ring_on_signal(signum: int, descriptor: int) -> None:
    """The handler that ``signal.signal`` installed for ``signum`` also rings the eventfd ``descriptor`` (one for all
    signals; -1: none), so that a thread that sleeps on it, or is about to, comes back and runs it."""

def limit_end(seconds: float, code: int, control: int, frame: bytes, text: bytes) -> None:
    """In so many seconds exit with ``code``, after ``frame`` was sent to the socket ``control`` (-1: none) and ``text``
    was written to stderr. By a thread that needs no interpreter: also while one hangs, or is being taken down. A
    further call replaces all of it. Raises OSError when there may be no more threads."""

def end_with(code: int) -> None:
    """The end of the interpreter is that of the process, with ``code``, whatever the interpreter finds (120, say, when
    stdout is broken). In a process that :func:`fork` has made it ends as soon as nothing of Python's is left that could
    have something to do, unless it has loaded libraries of its own: what is left out would only copy shared memory."""
