"""Checks of control groups: which limits are not enforced if the daemon has no group of its own."""

from __future__ import annotations

from chronetixd.core.limits import CONTROLLERS
from chronetixd.doctor import Finding, Surroundings, check, passed, warning
from chronetixd.linux.cgroups import find_place

NOT_ENFORCED = {
    "memory": "claims on memory limit each process by itself, not a worker with its children",
    "pids": "a worker may start any number of processes",
    "cpu": "claims on cpu are not enforced",
}
"""What is not enforced without a controller, by the controller's name."""


@check("control groups", "delegation")
def delegation(place: Surroundings) -> Finding:
    """Check that the daemon has a group below which each worker gets its own."""
    if "cgroup_reason" in place.facts:
        reason = str(place.facts["cgroup_reason"])
    else:
        reason = find_place(place.settings.cgroup).reason
    if reason:
        what = "processes of workers are found by their marks, and a process that became another user may escape"
        return warning(f"{reason}; {what}", "run as a service with Delegate=yes (chronetixctl service install)")
    return passed("each worker has a group of its own")


@check("control groups", "controllers")
def controllers(place: Surroundings) -> Finding:
    """Check that the controllers that limit workers are available."""
    missing = _missing(place)
    if missing:
        text = "; ".join(NOT_ENFORCED.get(name, f"{name} is not limited") for name in missing)
        cure = "use cgroup v2 for all controllers (systemd.unified_cgroup_hierarchy=1), and Delegate=yes in the unit"
        return warning(f"without {', '.join(missing)}: {text}", cure)
    return passed(", ".join(CONTROLLERS))


def _missing(place: Surroundings) -> list[str]:
    if "cgroup_missing" in place.facts:
        return list(place.facts["cgroup_missing"])
    group = find_place(place.settings.cgroup).group
    if group is None:
        return list(CONTROLLERS)
    enabled = (group / "cgroup.controllers").read_text().split()
    return [name for name in CONTROLLERS if name not in enabled]
