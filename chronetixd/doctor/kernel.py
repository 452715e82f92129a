"""Features of the kernel, tried out; a container's filter counts as a kernel without them."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import signal

from chronetix import shm
from chronetixd.dataplane.shm_support import MEANING
from chronetixd.doctor import Finding, Surroundings, check, failure, passed, warning

OLDEST = (5, 15)
_CLONE3 = 435
_SECCOMP = "allow it in the container's seccomp profile, or use a newer kernel"


@check("kernel", "version")
def version(_place: Surroundings) -> Finding:
    """Recent enough."""
    release = platform.release()
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if numbers < OLDEST:
        return warning(f"Linux {release}", "Linux 5.15 or later is what chronetix is tested with")
    return passed(f"Linux {release}")


@check("kernel", "sealed shared memory")
def memory(_place: Surroundings) -> Finding:
    """memfd with all the seals."""
    missing = shm.missing_features()
    if not missing:
        return passed("memfd, seals, F_SEAL_FUTURE_WRITE, MFD_NOEXEC_SEAL")
    meaning = "; ".join(f"without {feature} {MEANING[feature]}" for feature in missing)
    return warning(meaning, "a kernel of 6.3 or later has all of it; run as a user that runs nothing else")


@check("kernel", "process descriptors")
def pidfd(_place: Surroundings) -> Finding:
    """pidfd_open and pidfd_send_signal."""
    try:
        fd = os.pidfd_open(os.getpid())
        try:
            signal.pidfd_send_signal(fd, 0)
        finally:
            os.close(fd)
    except OSError as reason:
        return failure(f"pidfd: {reason.strerror}", _SECCOMP)
    return passed("pidfd_open, pidfd_send_signal")


@check("kernel", "clone3")
def clone3(_place: Surroundings) -> Finding:
    """Workers are born by it. Asked with no arguments at all, it says that they are wrong, if it is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.syscall(ctypes.c_long(_CLONE3), ctypes.c_void_p(None), ctypes.c_size_t(0))
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EPERM):
        cure = "in a unit RestrictNamespaces= takes it away: remove that; else " + _SECCOMP
        return failure(f"clone3, by which workers are born: {os.strerror(number)}", cure)
    return passed("there")


@check("kernel", "eventfd")
def eventfd(_place: Surroundings) -> Finding:
    """A worker wakes itself with it."""
    try:
        os.close(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError as reason:
        return failure(f"eventfd: {reason.strerror}", _SECCOMP if reason.errno == errno.ENOSYS else "raise ulimit -n")
    return passed("there")
