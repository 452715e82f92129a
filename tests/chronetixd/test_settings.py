"""Settings come from flags, environment and files, in that order, and mistakes are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chronetix.protocol.errors import ChronetixError
from chronetixd.settings import FIXED, NAMES, configure

ENV = {"HOME": "/home/nobody", "XDG_RUNTIME_DIR": "/run/user/7"}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "c.toml"
    path.write_text('start_timeout = 7\nlog_level = "debug"\nsocket = "/tmp/from-file"\n')
    return str(path)


def test_defaults_follow_xdg() -> None:
    settings = configure({}, ENV, 7).settings
    assert settings.socket == "/run/user/7/chronetix/control.sock"
    assert settings.state_dir == "/home/nobody/.local/state/chronetix"
    assert settings.limits.start_ns == 30_000_000_000


def test_a_flag_wins_over_the_environment_and_that_over_the_file(config: str) -> None:
    env = ENV | {"CHRONETIX_LOG_LEVEL": "error", "CHRONETIX_SOCKET": "/tmp/from-env"}
    configured = configure({"socket": "/tmp/from-flag", "state_dir": None}, env, 7, config)
    settings = configured.settings
    assert (settings.socket, settings.log_level, settings.start_timeout) == ("/tmp/from-flag", "error", 7)
    assert configured.origins["socket"] == "flag --socket"
    assert configured.origins["log_level"] == "environment variable CHRONETIX_LOG_LEVEL"
    assert configured.origins["start_timeout"] == config


def test_every_setting_is_shown_with_its_origin_and_what_changes_it(config: str) -> None:
    shown = {each["name"]: each for each in configure({"cgroup": "off"}, ENV, 7, config).shown()}
    assert set(shown) == set(NAMES)
    assert shown["start_timeout"] == {"name": "start_timeout", "value": 7.0, "origin": config, "reload": True}
    assert shown["cgroup"] == {"name": "cgroup", "value": "off", "origin": "flag --cgroup", "reload": False}
    assert shown["spares"]["origin"] == "default"


def test_numbers_in_the_environment_are_read_as_numbers() -> None:
    assert configure({}, ENV | {"CHRONETIX_DRAIN_TIMEOUT": "2.5"}, 7).settings.drain_timeout == 2.5


def test_the_users_file_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "chronetix"
    folder.mkdir()
    (folder / "chronetixd.toml").write_text("max_clients = 5\n")
    assert configure({}, ENV | {"XDG_CONFIG_HOME": str(tmp_path)}, 7).settings.max_clients == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("start_timout = 5", ["start_timout", "did you mean start_timeout"]),
        ('start_timeout = "soon"', ["start_timeout", "float"]),
        ("start_timeout = -1", ["start_timeout", "> 0"]),
        ('log_level = "loud"', ["log_level", "loud"]),
        ("start_timeout = ", ["Invalid value"]),
    ],
)
def test_a_mistake_in_the_file_names_the_file_and_the_setting(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ChronetixError) as refused:
        configure({}, ENV, 7, str(path))
    assert refused.value.name == "config-invalid"
    assert [word for word in [str(path), *words] if word not in str(refused.value)] == []


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    with pytest.raises(ChronetixError, match="CHRONETIX_START_TIMEOUT"):
        configure({}, ENV | {"CHRONETIX_START_TIMEOUT": "soon"}, 7)


def test_a_file_that_was_named_must_be_there() -> None:
    with pytest.raises(ChronetixError, match=r"nowhere\.toml"):
        configure({}, ENV, 7, "/nowhere.toml")


def test_a_socket_path_that_is_too_long_is_refused() -> None:
    with pytest.raises(ChronetixError) as refused:
        configure({"socket": "/" + "x" * 120}, ENV, 7)
    assert refused.value.name == "socket-unusable"


def test_the_documentation_names_what_a_reload_does_not_take_over() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text().replace("\n", " ")
    named = re.findall(r"`(\w+)`", text.partition("settings but ")[2].partition("none if")[0])
    assert sorted(named) == sorted(FIXED)
