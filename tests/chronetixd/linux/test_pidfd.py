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
