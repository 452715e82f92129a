"""From one image to the next and back: each is a Python program that stands for a daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

LEAVES = """
import os, signal, sys
from chronetixd.upgrade import exec_handoff
if told := exec_handoff.received():
    back = {"failed": told.failed, "back": told.back, "left": os.read(told.state, 9).decode()}
    back["held"] = sorted(int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    import json; print(json.dumps(back)); sys.exit()
read, write = os.pipe()
os.write(write, b"the state")
exec_handoff.LIMIT_S = 0.5
try:
    passage = exec_handoff.ExecHandoff(read, exec_handoff.own_image())
    exec_handoff.leave(exec_handoff.Image(sys.argv[1], sys.argv[1:]), passage, [write])
except OSError as reason:
    left = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    print(reason.strerror, sorted(left), os.get_inheritable(read), signal.getitimer(signal.ITIMER_REAL)[0])
"""


def run(tmp_path: Path, next_image: str) -> Any:
    """What the image that comes last says."""
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text(LEAVES)
    second.write_text(f"#!{sys.executable}\nfrom chronetixd.upgrade import exec_handoff\n{next_image}")
    second.chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, str(first), str(second)], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_what_was_left_is_there_and_the_way_back_is_known(tmp_path: Path) -> None:
    says = "told = exec_handoff.received()\nimport os, json\n"
    says += (
        "print(json.dumps([told.failed, told.back[1][1:], os.read(told.state, 9).decode(), exec_handoff.VARIABLE in "
    )
    says += "os.environ]))"
    assert run(tmp_path, says) == [
        "",
        [str(tmp_path / "first.py"), str(tmp_path / "second.py")],
        "the state",
        False,
    ]


def test_one_that_fails_goes_back_with_its_reason(tmp_path: Path) -> None:
    told = run(tmp_path, "exec_handoff.fall_back(exec_handoff.received(), 'a defect')")
    assert (told["failed"], told["back"], told["left"]) == ("a defect", None, "the state")
    assert {signal.SIGTERM, signal.SIGCHLD} <= set(told["held"]), "signals wait until somebody handles them"


def test_one_that_hangs_is_interrupted_and_goes_back(tmp_path: Path) -> None:
    told = run(tmp_path, "exec_handoff.guard(exec_handoff.received())\nimport time\nwhile True: time.sleep(60)")
    assert told["failed"].startswith("it was not ready within")
    assert told["left"] == "the state"


def test_the_last_resort_does_not_go_back_again(tmp_path: Path) -> None:
    told = run(
        tmp_path, "exec_handoff.fall_back(exec_handoff.received()._replace(back=None), 'no')\nprint('[\"here still\"]')"
    )
    assert told == ["here still"]


def test_what_cannot_be_executed_leaves_everything_as_it_was(tmp_path: Path) -> None:
    first = tmp_path / "first.py"
    first.write_text(LEAVES)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(first), str(tmp_path / "nothing")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.stdout == "No such file or directory [] False 0.0\n"


@pytest.mark.parametrize("text", ["no json", "{}", '{"state": 3}'])
def test_a_variable_that_nobody_has_set_so_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from chronetixd.upgrade import exec_handoff

    monkeypatch.setenv(exec_handoff.VARIABLE, text)
    with pytest.raises(ValueError, match=exec_handoff.VARIABLE):
        exec_handoff.received()
