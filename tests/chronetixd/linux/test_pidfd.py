"""Processes are reaped and their descriptors given back, also those that no signal of ours reaches."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import pytest

from chronetixd.linux.pidfd import Process


def test_a_process_of_another_user_is_left_alone_and_still_reaped(
    loop: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True)
    child.returncode = 0  # its exit status is taken by the process under test
    ended: list[bool] = []
    process = Process(loop, child.pid, os.pidfd_open(child.pid), lambda: ended.append(True))
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", refused)
        patched.setattr(signal, "pidfd_send_signal", refused)
        process.signal(signal.SIGTERM)
        assert child.stdin is not None
        child.stdin.close()
        until(lambda: ended)
        assert process.reap().code == 0
    assert process.pidfd == -1


@pytest.mark.parametrize("leads", [True, False], ids=["leads its group", "is in another group"])
def test_a_process_gets_a_signal_once_whether_it_leads_its_group_or_has_left_it(
    leads: bool, loop: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=leads)
    child.returncode = 0  # its exit status is taken by the process under test
    ended: list[bool] = []
    process = Process(loop, child.pid, os.pidfd_open(child.pid), lambda: ended.append(True))
    reached: list[int] = []

    def to_process(pidfd: int, number: int) -> None:
        signal_process(pidfd, number)
        reached.append(child.pid)

    def to_group(group: int, number: int) -> None:
        signal_group(group, number)
        reached.append(group)

    signal_process, signal_group = signal.pidfd_send_signal, os.killpg
    with monkeypatch.context() as patched:
        patched.setattr(signal, "pidfd_send_signal", to_process)
        patched.setattr(os, "killpg", to_group)
        process.signal(signal.SIGTERM)
    assert reached == [child.pid]
    until(lambda: ended)
    assert process.reap().signal == "SIGTERM"
    assert child.stdin is not None
    child.stdin.close()
