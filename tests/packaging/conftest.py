"""The sdist and the wheel that ``make wheel`` builds, once a session, and virtual environments outside the checkout."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
VERSIONS = ("3.11", "3.12", "3.13")
THIS = "{}.{}".format(*sys.version_info)


@dataclass(frozen=True)
class Built:
    """What lies in dist/."""

    wheel: Path
    sdist: Path


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder to be in that knows nothing of the checkout."""

    folder: Path
    home: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def variables(self) -> dict[str, str]:
        """What a login shell has, with the environment's programs first on the path."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CHRONETIX", "PYTHON", "PYTEST", "COV", "VIRTUAL_ENV", "XDG", "MAKE"))
        }
        return kept | {
            "HOME": str(self.home),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "CHRONETIX_SOCKET": str(self.home / "control.sock"),
            "CHRONETIX_STATE_DIR": str(self.home / "state"),
            "NO_COLOR": "1",
        }

    def run(self, *command: str | Path) -> str:
        """What the command prints; it must end well."""
        ended = subprocess.run(command, cwd=self.home, env=self.variables, capture_output=True, text=True)
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}"
        return ended.stdout


def uv(*arguments: str | Path, env: dict[str, str] | None = None) -> None:
    """Run uv, which must end well."""
    command = [BIN / "uv", *arguments, "--quiet"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, f"{command}\n{ended.stderr[-3000:]}"


def interpreter(version: str) -> Path:
    """A Python of that version with what extensions are compiled with; the test is skipped where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    if version == THIS:
        found.insert(0, getattr(sys, "_base_executable", sys.executable))
    ask = "import sys, sysconfig; print('{}.{}'.format(*sys.version_info), sysconfig.get_path('include'))"
    for path in filter(None, found):
        told = subprocess.run([path, "-c", ask], capture_output=True, text=True).stdout.split()
        if told[:1] == [version] and Path(told[1], "Python.h").exists():
            return Path(path)
    pytest.skip(f"there is no Python {version} with its headers on this machine")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """What ``make wheel`` makes of the files that are not ignored, built by whichever worker comes first."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    dist = folder / "dist"
    with (folder / "dist.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not dist.exists():
            source = copied(folder / "clone")
            command = ["make", "-o", ".venv/dev", "wheel", f"BIN={BIN}", f"DIST={folder / 'made'}"]
            ended = subprocess.run(command, cwd=source, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stdout + ended.stderr[-6000:]
            shutil.rmtree(source)
            (folder / "made").rename(dist)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return Built(wheel, sdist)


def copied(folder: Path) -> Path:
    """The checkout as a clone of it would be after a commit, made without git: it need not be installed."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]

    def left_out(at: str, names: list[str]) -> set[str]:
        paths = {name: str((Path(at) / name).relative_to(ROOT)) for name in names}
        return {
            name
            for name, path in paths.items()
            if name == ".git" or any(fnmatch(path if "/" in pattern else name, pattern) for pattern in ignored)
        }

    return Path(shutil.copytree(ROOT, folder, ignore=left_out, symlinks=True))


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[str], Environment]:
    """Makes a virtual environment of that version of Python."""

    def make(version: str) -> Environment:
        made = Environment(tmp_path / version, tmp_path / "home")
        made.home.mkdir()
        uv("venv", "--python", interpreter(version), made.folder)
        return made

    return make


@pytest.fixture
def daemon() -> Iterator[Callable[[Environment], None]]:
    """Starts the chronetixd of an environment and waits until it says that it is ready; ends it after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(environment: Environment) -> None:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notify:
            notify.bind(str(environment.home / "notify.sock"))
            notify.settimeout(60)
            env = environment.variables | {"NOTIFY_SOCKET": str(environment.home / "notify.sock")}
            program = environment.folder / "bin" / "chronetixd"
            started.append(subprocess.Popen([program], env=env, cwd=environment.home, stderr=subprocess.DEVNULL))
            while b"READY=1" not in notify.recv(4096):
                continue

    yield start
    for process in started:
        process.terminate()
        assert process.wait() == 0
