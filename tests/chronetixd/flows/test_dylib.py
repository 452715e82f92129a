"""What is found out about a shared library without loading it, and where its host is looked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chronetixd.flows import dylib

ROOT = Path(__file__).parents[3]
TABLE = "int chronetix_plugin_v1 = 1;\n"
LACKS = "int chronetix_plugin_v2 = 1; extern int chronetix_plugin_v1; int use(void) { return chronetix_plugin_v1; }\n"

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that is there."""
    made = tmp_path / "host"
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    monkeypatch.setenv(dylib.HOST_VARIABLE, str(made))
    return made


def library(folder: Path, source: str, *flags: str) -> Path:
    (folder / "plugin.c").write_text(source)
    made = folder / "plugin.so"
    subprocess.run(["cc", "-shared", "-fPIC", *flags, folder / "plugin.c", "-o", made], check=True)
    return made


@needs_compiler
@pytest.mark.parametrize("flags", [(), ("-s",), ("-Wl,--hash-style=sysv",)])
def test_a_library_with_the_table_is_accepted(flags: tuple[str, ...], host: Path, tmp_path: Path) -> None:
    assert dylib.problem(library(tmp_path, TABLE, *flags)) is None


@needs_compiler
@pytest.mark.parametrize("source", [LACKS, "static " + TABLE, ""])
def test_a_library_without_the_table_is_refused(source: str, host: Path, tmp_path: Path) -> None:
    found = dylib.problem(library(tmp_path, source))
    assert found is not None
    assert "exports no chronetix_plugin_v1" in found[0]


@needs_compiler
@pytest.mark.parametrize(
    ("at", "byte", "words"),
    [(0, 0, "no shared library"), (4, 1, "64 bits"), (16, 1, "no shared library"), (18, 3, "another machine")],
)
def test_what_is_no_library_of_this_machine_is_called_that(
    at: int, byte: int, words: str, host: Path, tmp_path: Path
) -> None:
    made = library(tmp_path, TABLE)
    data = bytearray(made.read_bytes())
    data[at] = byte
    made.write_bytes(data)
    found = dylib.problem(made)
    assert found is not None
    assert words in found[0]


@needs_compiler
def test_any_bytes_get_a_verdict(host: Path, tmp_path: Path) -> None:
    made = library(tmp_path, TABLE)
    good = made.read_bytes()

    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(cut=st.integers(0, len(good)), at=st.integers(0, 63), value=st.binary(max_size=8))
    def looks(cut: int, at: int, value: bytes) -> None:
        made.write_bytes((good[:at] + value + good[at + len(value) :])[:cut])
        found = dylib.problem(made)
        assert found is None or found[0].startswith(str(made))

    looks()


@needs_compiler
def test_without_its_host_a_library_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = library(tmp_path, TABLE)
    monkeypatch.setenv(dylib.HOST_VARIABLE, str(tmp_path / "nowhere"))
    found = dylib.problem(made)
    assert found is not None
    assert "not installed" in found[0]
    assert "sdk/c" in found[1]


def test_the_host_is_what_the_environment_names_else_what_path_has(
    host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dylib.host() == str(host)
    monkeypatch.delenv(dylib.HOST_VARIABLE)
    (tmp_path / "bin").mkdir()
    shutil.copy(host, tmp_path / "bin" / dylib.HOST)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert dylib.host() == str(tmp_path / "bin" / dylib.HOST)


def test_an_extension_of_python_is_no_plugin(host: Path) -> None:
    (extension,) = (ROOT / "protocol").glob("_cbor*.so")
    found = dylib.problem(extension)
    assert found is not None
    assert "exports no" in found[0]
