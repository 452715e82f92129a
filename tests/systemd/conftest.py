"""A Debian that is booted with systemd as its first process, in a container, with the package as a wheel beside it.

The Debian is made once by debootstrap and kept in a folder outside of the tree ($CHRONETIX_SYSTEMD_ROOT, or
~/.cache/chronetix/systemd-root); what a run writes into it is thrown away with the container. Needs root, debootstrap,
systemd-nspawn and nsenter.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("systemd", "systemd-sysv", "libpam-systemd", "dbus", "dbus-user-session", "python3-venv", "procps")
NEXT_VERSION = "9.9.9"
CTL = "/opt/chronetix/bin/chronetixctl"
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "NO_COLOR": "1"}


@dataclass(frozen=True)
class Machine:
    """The booted Debian; ``leader`` is its first process, seen from here."""

    leader: int

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as its root."""
        enter = ["nsenter", "-t", str(self.leader), *["-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"], "--"]
        done = subprocess.run([*enter, *words], env=CLEAN, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}\n{self.journal()}"
        return done

    def install(self, *folders: str) -> None:
        """Install the newest of the package from ``folders``, from nowhere else."""
        places = [f"--find-links={folder}" for folder in folders]
        pip = ("/opt/chronetix/bin/pip", "install", "--quiet", "--no-index", "--upgrade")
        self.run(*pip, *places, "chronetix")

    def ctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run chronetixctl as its root."""
        return self.run(CTL, *words, check=check)

    def journal(self) -> str:
        """The last lines that the daemon logged."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-p", "-r", "journalctl", "-u", "chronetixd", "-n", "30"]
        return subprocess.run([*enter, "--no-pager"], capture_output=True, text=True).stdout

    def unit(self, name: str = "chronetixd.service") -> dict[str, str]:
        """What systemd knows of a unit."""
        shown = self.run("systemctl", "show", name).stdout
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def until(self, **wanted: str) -> dict[str, str]:
        """Wait until the service's properties are ``wanted``: asked again whenever systemd has done something."""
        while True:
            found = self.unit()
            if wanted.items() <= found.items():
                return found
            select.select([], [], [], 0.05)

    def states(self) -> dict[str, str]:
        """The daemon's flows; it waits for a daemon that is coming."""
        return {flow["name"]: flow["state"] for flow in json.loads(self.ctl("ls", "-o", "json").stdout)["flows"]}

    def version(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        told: dict[str, Any] = json.loads(self.ctl("version", "-o", "json").stdout)["daemon"]
        return told


@pytest.fixture(scope="session")
def debian() -> Path:
    """The folder of the Debian, which is made if it is not there."""
    needed = ("debootstrap", "systemd-nspawn", "nsenter")
    missing = [name for name in needed if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if os.geteuid() != 0 or missing:
        pytest.fail(f"needs root and {', '.join(missing or needed)} (apt-get install debootstrap systemd-container)")
    place = Path(os.environ.get("CHRONETIX_SYSTEMD_ROOT") or Path.home() / ".cache/chronetix/systemd-root")
    if not all((place / f"usr/share/doc/{package}").exists() for package in PACKAGES):
        fresh = place.with_name(f"{place.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.parent.mkdir(parents=True, exist_ok=True)
        include = f"--include={','.join(PACKAGES)}"
        print(f"making a Debian in {place}, once; this takes some minutes", file=sys.stderr)
        subprocess.run(["debootstrap", "--variant=minbase", include, "bookworm", str(fresh)], check=True)
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)
    return place


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, the same as a later release, and what they depend on."""
    folder = tmp_path_factory.mktemp("wheels")
    source = tmp_path_factory.mktemp("source") / "chronetix"
    skipped = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__", "*.so", "target")
    shutil.copytree(ROOT, source, ignore=skipped)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("chronetix-*.whl")
    later = folder / "later"
    later.mkdir()
    _as_version(wheel, later, NEXT_VERSION)
    return folder


def _as_version(wheel: Path, folder: Path, version: str) -> None:
    """Write ``wheel`` into ``folder`` with another version, as if the same code had been released again."""
    old = wheel.name.split("-")[1]
    target = folder / wheel.name.replace(f"-{old}-", f"-{version}-", 1)
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as made:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith((".dist-info/METADATA", ".dist-info/RECORD")):
                data = data.replace(f"Version: {old}\n".encode(), f"Version: {version}\n".encode())
                data = data.replace(f"chronetix-{old}.".encode(), f"chronetix-{version}.".encode())
            entry.filename = entry.filename.replace(f"chronetix-{old}.", f"chronetix-{version}.", 1)
            made.writestr(entry, data)


@pytest.fixture(scope="session")
def booted(debian: Path, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The Debian, up and running, with the package installed and its service started by chronetixctl."""
    command = ["systemd-nspawn", "--quiet", "--directory", str(debian), "--boot", "--register=no", "--keep-unit"]
    command += ["--console=read-only", "--volatile=overlay", "--private-network", "--hostname=chronetix-test"]
    command += [f"--bind-ro={wheels}:/wheels", f"--bind-ro={Path(__file__).parent / 'flows'}:/flows"]
    console = tmp_path_factory.mktemp("console") / "log"
    with console.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        machine = Machine(_leader(process, console))
        while machine.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip() != "running":
            assert process.poll() is None, console.read_text(errors="replace")
            select.select([], [], [], 0.1)
        machine.run("python3", "-m", "venv", "/opt/chronetix")
        machine.install("/wheels")
        machine.ctl("service", "install", "--system", "--now")
        yield machine
    finally:
        process.terminate()
        process.wait()


def _leader(process: subprocess.Popen[bytes], console: Path) -> int:
    """The container's first process."""
    while process.poll() is None:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            inner = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if inner[-1] == "1" and os.path.exists(f"/proc/{child}/root/run/systemd/private"):
                return int(child)
        select.select([], [], [], 0.05)
    pytest.fail(f"the container did not start: {console.read_text(errors='replace')}")
