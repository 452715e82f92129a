"""Checks of kernel features by trying them out; a feature that a container's filter forbids counts as missing."""

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
    """Check that the kernel is recent enough."""
    release = platform.release()
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if numbers < OLDEST:
        return warning(f"Linux {release}", "Linux 5.15 or later is what chronetix is tested with")
    return passed(f"Linux {release}")


@check("kernel", "sealed shared memory")
def memory(_place: Surroundings) -> Finding:
    """Check that the kernel has memfd with all seals."""
    missing = shm.missing_features()
    if not missing:
        return passed("memfd, seals, F_SEAL_FUTURE_WRITE, MFD_NOEXEC_SEAL")
    meaning = "; ".join(f"without {feature} {MEANING[feature]}" for feature in missing)
    return warning(meaning, "a kernel of 6.3 or later has all of it; run as a user that runs nothing else")


@check("kernel", "process descriptors")
def pidfd(_place: Surroundings) -> Finding:
    """Check that pidfd_open and pidfd_send_signal work."""
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
    """Check that clone3, which starts workers, exists: without arguments it reports EINVAL if it exists."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.syscall(ctypes.c_long(_CLONE3), ctypes.c_void_p(None), ctypes.c_size_t(0))
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EPERM):
        cure = "remove RestrictNamespaces= from the unit, which forbids it; else " + _SECCOMP
        return failure(f"clone3, which starts workers: {os.strerror(number)}", cure)
    return passed("there")


@check("kernel", "eventfd")
def eventfd(_place: Surroundings) -> Finding:
    """Check that eventfd works, with which a worker wakes itself."""
    try:
        os.close(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError as reason:
        return failure(f"eventfd: {reason.strerror}", _SECCOMP if reason.errno == errno.ENOSYS else "raise ulimit -n")
    return passed("there")
