"""Where the daemon and its clients meet by default."""

from __future__ import annotations

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetix.protocol.paths import MAX_SOCKET_PATH, socket_path, state_dir

FULL = {
    "CHRONETIX_SOCKET": "/c/sock",
    "CHRONETIX_STATE_DIR": "/c/state",
    "XDG_RUNTIME_DIR": "/run/user/1000",
    "XDG_STATE_HOME": "/home/u/.state",
    "HOME": "/home/u",
}


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in FULL.items() if name not in names}


class TestSocket:
    @pytest.mark.parametrize(
        ("env", "uid", "flag", "path"),
        [
            (FULL, 1000, "flag.sock", "flag.sock"),
            (FULL, 1000, None, "/c/sock"),
            (FULL, 1000, "", "/c/sock"),
            (without("CHRONETIX_SOCKET"), 1000, None, "/run/user/1000/chronetix/control.sock"),
            (without("CHRONETIX_SOCKET"), 0, None, "/run/user/1000/chronetix/control.sock"),
            ({}, 0, None, "/run/chronetix/control.sock"),
            ({}, 1000, None, "/tmp/chronetix-1000/control.sock"),
            ({"CHRONETIX_SOCKET": "", "XDG_RUNTIME_DIR": ""}, 0, None, "/run/chronetix/control.sock"),
            ({"XDG_RUNTIME_DIR": "relative"}, 0, None, "/run/chronetix/control.sock"),
        ],
    )
    def test_a_flag_wins_over_the_variable_that_over_xdg_that_over_the_default(
        self, env: dict[str, str], uid: int, flag: str | None, path: str
    ) -> None:
        assert str(socket_path(env, uid, flag)) == path

    def test_a_path_too_long_for_a_socket_is_refused(self) -> None:
        assert socket_path({}, 0, "/" + "x" * (MAX_SOCKET_PATH - 1))
        with pytest.raises(ChronetixError, match="longer than 107 bytes"):
            socket_path({}, 0, "/" + "é" * 54)


class TestState:
    @pytest.mark.parametrize(
        ("env", "uid", "flag", "path"),
        [
            (FULL, 1000, "/flag", "/flag"),
            (FULL, 1000, None, "/c/state"),
            (without("CHRONETIX_STATE_DIR"), 0, None, "/home/u/.state/chronetix"),
            ({"HOME": "/home/u"}, 1000, None, "/home/u/.local/state/chronetix"),
            ({"HOME": "/root"}, 0, None, "/var/lib/chronetix"),
        ],
    )
    def test_a_flag_wins_over_the_variable_that_over_xdg_that_over_the_default(
        self, env: dict[str, str], uid: int, flag: str | None, path: str
    ) -> None:
        assert str(state_dir(env, uid, flag)) == path

    @pytest.mark.parametrize("env", [{}, {"HOME": ""}, {"HOME": "relative"}])
    def test_no_variable_at_all_is_an_error_that_says_what_to_do(self, env: dict[str, str]) -> None:
        with pytest.raises(ChronetixError, match="user 1000") as caught:
            state_dir(env, 1000)
        assert "--state-dir" in caught.value.hint
