"""The README of sdk/c: what it shows works and is what it names; the library as others build and find it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_documentation import as_pattern, console, test_listings_are_the_files_they_name
from tests.sdk.c.build import ROOT, SDK, WARNINGS, needs_libcbor, run

pytestmark = needs_libcbor

USER = "#include <chronetix.h>\nint main(void) { return chx_run(&(chx_plugin){0}, NULL); }\n"
PROJECT = """
cmake_minimum_required(VERSION 3.16)
project(user C)
find_package(chronetix REQUIRED)
add_executable(user user.c)
target_link_libraries(user chronetix::chronetix)
add_executable(user_static user.c)
target_link_libraries(user_static chronetix::static)
"""


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make install` has put everything."""
    folder = tmp_path_factory.mktemp("installed")
    run("make", "-s", "-C", SDK, f"BUILD={folder / 'build'}", "install", f"PREFIX={folder}")
    (folder / "user.c").write_text(USER)
    return folder


def told(program: Path, **environment: str) -> str:
    """What a worker says that no daemon has started."""
    left = {name: value for name, value in os.environ.items() if name != "CHRONETIX_FD"}
    return subprocess.run([program], env=left | environment, capture_output=True, text=True).stderr


def test_commands_do_what_the_readme_shows(daemon: Any, tmp_path: Path) -> None:
    """In a copy of the tree's part, so that nothing is built in the tree."""
    for part in ("sdk/c", "shm/include"):
        ignored = shutil.ignore_patterns("build")
        shutil.copytree(ROOT / part, tmp_path / "tree" / part, ignore=ignored)
    for command, shown in console(SDK / "README.md"):
        environment = daemon.environment | {"HOME": str(tmp_path)}
        ran = subprocess.run(
            ["bash", "-euc", command], cwd=tmp_path / "tree", env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        assert re.search(as_pattern(shown), ran.stdout + ran.stderr, re.DOTALL), f"{command} printed {ran.stdout}"


def test_listings_are_the_examples() -> None:
    test_listings_are_the_files_they_name(SDK / "README.md")


@pytest.mark.parametrize("example", ["sink", "map", "source"])
def test_a_worker_takes_at_most_forty_lines(example: str) -> None:
    lines = (SDK / "examples" / f"{example}.c").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 40


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
@pytest.mark.parametrize("how", [(), ("--static",)])
def test_pkg_config_finds_the_library(how: tuple[str, ...], prefix: Path) -> None:
    environment = os.environ | {"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", *how, "chronetix", env=environment).split()
    program = prefix / f"user{''.join(how)}"
    run("cc", *WARNINGS, prefix / "user.c", *flags, "-o", program)
    assert "CHRONETIX_FD" in told(program, LD_LIBRARY_PATH=str(prefix / "lib"))


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_cmake_finds_the_installed_library_and_builds_its_own(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "user.c").write_text(USER)
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path / "build")
    assert "CHRONETIX_FD" in told(tmp_path / "build" / "user")
    assert "CHRONETIX_FD" in told(tmp_path / "build" / "user_static")
    own = tmp_path / "own"
    run("cmake", "-S", SDK, "-B", own, f"-DCMAKE_INSTALL_PREFIX={own}/installed")
    run("cmake", "--build", own, "--target", "install")
    assert (own / "installed" / "lib" / "libchronetix.so.0").exists()


def test_the_shared_library_shows_its_interface_and_nothing_else(prefix: Path) -> None:
    names = run("nm", "-D", "--defined-only", prefix / "lib" / "libchronetix.so")
    shown = {line.split()[-1] for line in names.splitlines()}
    declared = set(re.findall(r"\b(chx_\w+)\(", (SDK / "include" / "chronetix.h").read_text())) & shown
    assert shown == declared
