"""Checks of limits that the daemon and its workers may reach, and of memory that dead processes have left."""

from __future__ import annotations

import os
import resource

from chronetix.shm import missing_features, names
from chronetixd.doctor import Finding, Surroundings, check, failure, passed, warning

PER_NODE = 10
"""How many descriptors one node takes in the daemon at most."""


@check("limits", "open files")
def open_files(_place: Surroundings) -> Finding:
    """Check RLIMIT_NOFILE's hard limit, to which the daemon raises its own."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    detail = f"at most {hard}: room for some {hard // 2 // PER_NODE} nodes"
    cure = "raise LimitNOFILE= of the unit, or ulimit -Hn"
    if hard < 256:
        return failure(detail, cure)
    return warning(detail, cure) if hard < 4096 else passed(detail)


@check("limits", "processes")
def processes(_place: Surroundings) -> Finding:
    """Check RLIMIT_NPROC: each worker has two threads and those that its plugin starts. The limit does not hold for
    root."""
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0:
        return passed("no limit")
    detail = f"at most {soft} of this user"
    return warning(detail, "raise LimitNPROC= of the unit, or ulimit -u") if soft < 512 else passed(detail)


@check("limits", "locked memory")
def locked_memory(_place: Surroundings) -> Finding:
    """Check RLIMIT_MEMLOCK: chronetix locks no memory, but plugins may."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if soft == resource.RLIM_INFINITY:
        return passed("no limit")
    detail = f"a plugin may lock {soft >> 10} KiB"
    return warning(detail, "raise LimitMEMLOCK= of the unit, or ulimit -l") if soft < 65_536 else passed(detail)


@check("limits", "shared memory")
def shared_memory(_place: Surroundings) -> Finding:
    """Check the room for shared memory: in /dev/shm on a kernel without seals, else in the machine's memory."""
    if "seals" in missing_features():
        found = os.statvfs(names.FOLDER)
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        detail = f"/dev/shm has {free >> 20} of {total >> 20} MiB free"
        cure = "mount -o remount,size=… /dev/shm (--shm-size for a container)"
        return warning(detail, cure) if free < 256 << 20 else passed(detail)
    available = _available()
    detail = f"{available >> 20} MiB of memory are available"
    return warning(detail, "free memory: frames in flight are held in it") if available < 256 << 20 else passed(detail)


def _available() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))


@check("limits", "memory overcommit")
def overcommit(_place: Surroundings) -> Finding:
    """Check whether the kernel refuses memory that is free (vm.overcommit_memory)."""
    with open("/proc/sys/vm/overcommit_memory") as file:
        mode = file.read().strip()
    if mode == "2":
        what = "forks and arenas may be refused although memory is free"
        return warning(f"vm.overcommit_memory is 2: {what}", "sysctl vm.overcommit_memory=0")
    return passed(f"vm.overcommit_memory is {mode}")


@check("limits", "leftover segments")
def leftovers(_place: Surroundings) -> Finding:
    """Check for named memory of processes that have ended."""
    left = names.abandoned()
    if left:
        shown = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        return warning(f"{len(left)} in {names.FOLDER}: {shown}", "start chronetixd: it removes them")
    return passed("none")
