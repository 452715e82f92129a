"""``service`` writes what is missing, leaves the rest alone, and tells systemd."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixctl import service as services
from chronetixd.systemd import units

SYSTEM = (
    "etc/systemd/system/chronetixd.socket",
    "etc/systemd/system/chronetixd.service",
    "etc/sysusers.d/chronetix.conf",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def booted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a systemd that notes what it is told, and a user with a configuration folder."""
    bin = tmp_path / "bin"
    bin.mkdir()
    told = tmp_path / "told"
    program = bin / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {told}\ncase "$*" in *show*) cat {tmp_path}/shown;; esac\n')
    program.chmod(0o755)
    (tmp_path / "shown").write_text("ActiveState=active\nStatusText=1 flow running\nMainPID=42\n")
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(services, "BOOTED", tmp_path)
    return told


def steps(ended: Any) -> dict[str, str]:
    return {step["what"]: step["result"] for step in json.loads(ended.out)["steps"]}


def test_a_system_wide_service_has_units_a_socket_and_a_user(ctl: Any, root: Path) -> None:
    assert ctl("service", "install", "--system", "--root", str(root)).code == 0
    assert all((root / name).is_file() for name in SYSTEM)
    unit = (root / SYSTEM[1]).read_text()
    assert f"ExecStart={Path(sys.executable).parent}/chronetixd " in unit
    assert "/usr/local/bin" not in unit


def test_asking_twice_changes_nothing(ctl: Any, root: Path) -> None:
    ctl("service", "install", "--system", "--root", str(root))
    before = {name: (root / name).stat().st_mtime_ns for name in SYSTEM}
    again = ctl("service", "install", "--system", "--root", str(root), "-o", "json")
    assert set(steps(again).values()) == {"unchanged"}
    assert {name: (root / name).stat().st_mtime_ns for name in SYSTEM} == before


def test_a_file_of_an_older_release_is_replaced(ctl: Any, root: Path) -> None:
    ctl("service", "install", "--system", "--root", str(root))
    (root / SYSTEM[1]).write_text(units.MARK + "[Service]\nExecStart=/old/chronetixd\n")
    again = ctl("service", "install", "--system", "--root", str(root), "-o", "json")
    assert steps(again)[str(root / SYSTEM[1])] == "changed"
    assert "/old/" not in (root / SYSTEM[1]).read_text()


def test_a_file_that_somebody_else_wrote_is_left_alone(ctl: Any, root: Path) -> None:
    foreign = root / SYSTEM[1]
    foreign.parent.mkdir(parents=True)
    foreign.write_text("[Service]\nExecStart=/mine\n")
    for action in ("install", "uninstall"):
        ended = ctl("service", action, "--system", "--root", str(root))
        assert (ended.code, "file-not-ours" in ended.err) == (1, True)
    assert foreign.read_text() == "[Service]\nExecStart=/mine\n"


def test_a_dry_run_shows_every_step_and_takes_none(ctl: Any, booted: Path, tmp_path: Path) -> None:
    ended = ctl("service", "install", "--user", "--now", "--dry-run", "-o", "json")
    assert list(steps(ended).values()) == ["new", "new", "would", "would", "would"]
    assert not (tmp_path / "config").exists()
    assert not booted.exists()


def test_a_user_s_own_is_told_to_his_own_systemd(ctl: Any, booted: Path, tmp_path: Path) -> None:
    assert ctl("service", "install", "--user", "--now").code == 0
    assert (tmp_path / "config/systemd/user/chronetixd.service").is_file()
    assert booted.read_text().splitlines() == [
        "--user daemon-reload",
        "--user enable chronetixd.socket chronetixd.service",
        "--user start chronetixd.socket chronetixd.service",
    ]


def test_uninstalling_stops_it_removes_the_files_and_may_be_repeated(ctl: Any, booted: Path, tmp_path: Path) -> None:
    ctl("service", "install", "--user")
    booted.unlink()
    assert ctl("service", "uninstall", "--user").code == 0
    assert list((tmp_path / "config/systemd/user").iterdir()) == []
    assert booted.read_text().splitlines() == [
        "--user disable --now chronetixd.socket chronetixd.service",
        "--user daemon-reload",
    ]
    booted.unlink()
    assert ctl("service", "uninstall", "--user").code == 0
    assert not booted.exists()


def test_the_status_tells_what_is_installed_and_what_it_does(ctl: Any, booted: Path, tmp_path: Path) -> None:
    ctl("service", "install", "--user")
    ended = ctl("service", "status", "--user", "-o", "json")
    told = json.loads(ended.out)
    assert ended.code == 0
    assert set(told["files"].values()) == {"installed"}
    assert told["service"]["StatusText"] == "1 flow running"
    (tmp_path / "shown").write_text("ActiveState=inactive\n")
    ended = ctl("service", "status", "--user")
    assert ended.code == 3
    head, *rows = ended.out.splitlines()
    assert [row[head.index("FOUND") :] for row in rows] == ["installed", "installed", "inactive"]


def test_a_machine_without_systemd_is_told_before_anything_is_written(
    ctl: Any, booted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "BOOTED", tmp_path / "not-there")
    ended = ctl("service", "install", "--user")
    assert (ended.code, "not booted with it" in ended.err) == (1, True)
    assert not (tmp_path / "config").exists()


def test_what_systemd_refuses_is_shown(ctl: Any, booted: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "systemctl").write_text("#!/bin/sh\necho 'Unit is masked.' >&2\nexit 1\n")
    ended = ctl("service", "install", "--user")
    assert ended.code == 1
    assert "Unit is masked." in ended.err


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("the disk is gone"), "the disk is gone"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_with_its_reason(
    ctl: Any, root: Path, monkeypatch: pytest.MonkeyPatch, failure: OSError, reason: str
) -> None:
    def fail(path: Path, text: str) -> None:
        raise failure

    monkeypatch.setattr(services, "_replace", fail)
    ended = ctl("service", "install", "--system", "--root", str(root))
    assert ended.code == 1
    assert re.search(rf"\.[a-z]+: {reason}( \[|$)", ended.err, re.M), ended.err


def test_a_path_is_written_as_systemd_reads_it() -> None:
    path = Path('/opt/100% "my" chronetix/bin/chronetixd')
    assert units._with(path, "ExecStart=/usr/local/bin/chronetixd -x") == (
        'ExecStart="/opt/100%% \\"my\\" chronetix/bin/chronetixd" -x'
    )


def test_a_program_that_other_users_cannot_reach_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    program = closed / "chronetixd"
    program.touch()
    assert units.out_of_reach(program) is not None
    assert units.out_of_reach(Path("/bin/true")) is None


def test_the_installed_package_brings_its_units() -> None:
    assert {path.name for path in units.source().iterdir()} >= {"chronetixd.service", "chronetixd.socket", "user"}


def test_an_installation_without_units_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for documents in (None, tmp_path):
        monkeypatch.setattr(units.installed, "documents", lambda found=documents: found)
        with pytest.raises(ChronetixError, match="install the package again"):
            units.source()
