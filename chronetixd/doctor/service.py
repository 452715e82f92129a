"""Checks of the systemd unit, if there is one: its state, and whether it permits what the daemon needs."""

from __future__ import annotations

import os
import subprocess

from chronetixd.doctor import Finding, Side, Surroundings, check, failure, passed, warning
from chronetixd.systemd.units import BOOTED, Scope, scope_of

PROPERTIES = ("LoadState", "ActiveState", "SubState", "Result", "KillMode", "Delegate", "WatchdogUSec")
WANTED = {"KillMode": ("process", "mixed"), "Delegate": ("yes",)}
ANSWER_S = 5.0


@check("service", "systemd unit", Side.CLIENT)
def unit(place: Surroundings) -> Finding:
    """Check the unit of the systemd that a daemon of this user would belong to: the system's for root, else the
    user's."""
    if not BOOTED.exists():
        return passed("systemd does not run here")
    scope = scope_of(os.geteuid() == 0, None, os.environ)
    shown = _show(scope)
    if isinstance(shown, str):
        return warning(f"{' '.join(scope.systemctl)}: {shown}", "run doctor in a session that systemd has started")
    if shown.get("LoadState") != "loaded":
        return passed("not installed as a service")
    name = " ".join((*scope.systemctl, "status chronetixd"))
    if shown.get("ActiveState") == "failed":
        return failure(f"the unit has failed: {shown.get('Result')}", f"`{name}` shows its last lines")
    off = [f"{key}={shown.get(key)}" for key, values in WANTED.items() if shown.get(key) not in values]
    if shown.get("WatchdogUSec") in (None, "0", "infinity"):
        off.append("no WatchdogSec")
    if off:
        return warning(f"the unit has {', '.join(off)}", "`chronetixctl service install` writes the unit anew")
    if place.daemon is None and shown.get("ActiveState") != "active":
        return warning(f"the unit is {shown.get('ActiveState')}", f"`{' '.join(scope.systemctl)} start chronetixd`")
    return passed(f"{shown.get('ActiveState')} ({shown.get('SubState')})")


def _show(scope: Scope) -> dict[str, str] | str:
    """Return the unit's properties, or the reason why systemctl does not show them."""
    command = [*scope.systemctl, "show", "chronetixd.service", "--property", ",".join(PROPERTIES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired) as reason:
        return str(reason)
    if done.returncode:
        return done.stderr.strip() or f"it ended with {done.returncode}"
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
