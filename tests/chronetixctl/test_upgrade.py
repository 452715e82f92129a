"""The command ``upgrade``, and how other commands live through one, against a daemon that answers from a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chronetix.protocol.errors import ChronetixError, error
from chronetix.protocol.messages import Hello, WireMessage

Map = dict[str, Any]
UPGRADING = "daemon-upgrading"
TOLD = {"before": "1.0", "after": "2.0", "flows": 2, "workers": 7}


def upgrading(**details: Any) -> ChronetixError:
    made = error(UPGRADING)
    made.details = {**made.details, **details}
    return made


class Upgraded:
    """Answers as a daemon that is replaced, and says that with ``changes`` afterwards."""

    def __init__(self, daemon: Any, **changes: Any) -> None:
        self.changes = changes
        self.asked: Map = {}
        daemon.answers["upgrade"] = self.upgrade
        daemon.answers["version"] = lambda _: {"upgraded": self.told()}

    def upgrade(self, args: Map) -> list[Any]:
        self.asked = args
        return [{"rehearsed": True, **TOLD}, upgrading()]

    def told(self) -> Map:
        return {"id": self.asked["id"], **TOLD, "pause_ns": 123_000_000, "failed": "", **self.changes}


class TestUpgrade:
    def test_it_tells_what_the_daemon_that_answers_afterwards_says(self, ctl: Any, daemon: Any) -> None:
        Upgraded(daemon)
        ended = ctl("upgrade")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out == "1.0 → 2.0: 7 workers of 2 flows run on; the control plane stood still for 123ms\n"

    def test_the_image_is_named_by_its_whole_path(
        self, ctl: Any, daemon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upgraded = Upgraded(daemon)
        (tmp_path / "chronetixd").touch()
        monkeypatch.chdir(tmp_path)
        assert ctl("upgrade", "--image", "chronetixd", "--wait", "2s").code == 0
        assert upgraded.asked["image"] == str(tmp_path / "chronetixd")
        assert upgraded.asked["timeout_ns"] == 2_000_000_000

    def test_one_that_has_failed_ends_with_1_and_its_reason(self, ctl: Any, daemon: Any) -> None:
        Upgraded(daemon, failed="a defect")
        ended = ctl("upgrade")
        assert ended.code == 1
        assert "did not take over: a defect [upgrade-failed]" in ended.err

    @pytest.mark.parametrize("upgraded", [None, {"id": "another", **TOLD, "pause_ns": 1, "failed": ""}])
    def test_a_daemon_that_knows_nothing_of_it_was_started_anew(self, upgraded: Any, ctl: Any, daemon: Any) -> None:
        daemon.answers |= {"upgrade": upgrading(), "version": {"upgraded": upgraded}}
        ended = ctl("upgrade")
        assert ended.code == 1
        assert "it was started anew" in ended.err

    def test_one_that_is_refused_says_why(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["upgrade"] = error("upgrade-refused", reason="flow f is in the middle of roll-out 3")
        ended = ctl("upgrade")
        assert ended.code == 1
        assert "was not begun: flow f is in the middle of roll-out 3 [upgrade-refused]" in ended.err

    @pytest.mark.parametrize(("ways", "code"), [([], 0), (["the daemon is stopping"], 1)])
    def test_a_dry_run_names_what_blocks_the_upgrade(self, ways: list[str], code: int, ctl: Any, daemon: Any) -> None:
        daemon.answers["upgrade"] = {**TOLD, "formats": [1], "upgrade_blockers": ways}
        ended = ctl("upgrade", "--dry-run")
        assert ended.code == code
        assert ended.out.splitlines()[0] == "1.0 → 2.0: could take over 7 workers of 2 flows"
        assert ended.out.splitlines()[1:] == [f"blocked now: {way}" for way in ways]
        assert json.loads(ctl("upgrade", "--dry-run", "-o", "json").out)["upgrade_blockers"] == ways


class TestOthers:
    def test_who_follows_goes_on_behind_what_was_seen(self, ctl: Any, daemon: Any) -> None:
        def answer(args: Map) -> list[Any]:
            after = args.get("after", 0)
            event = {
                "sequence": after + 1,
                "unix_ns": 1,
                "kind": "k",
                "flow": "",
                "node": "",
                "message": "",
                "data": {},
            }
            return [event, upgrading(after=after + 1) if after < 3 else error("daemon-stopping")]

        daemon.answers["events"] = answer
        ended = ctl("events", "-f", "--tail", "1", "-o", "json")
        assert ended.code == 5
        assert [json.loads(line)["sequence"] for line in ended.out.splitlines()] == [1, 2, 3, 4]
        assert [args.get("tail") for _, args in daemon.calls] == [1, None, None, None]

    def test_what_cannot_say_where_it_was_ends_with_the_error(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["logs"] = upgrading()
        ended = ctl("logs", "-f")
        assert ended.code == 5
        assert "Connect again" in ended.err

    def test_top_asks_again(self, ctl: Any, daemon: Any) -> None:
        answers = iter([{"monotonic_ns": 1, "flows": []}, upgrading(), {"monotonic_ns": 2, "flows": []}])
        daemon.answers["stats"] = lambda _: next(answers)
        assert ctl("top", "--once", "--interval", "1ms").code == 0

    def test_what_has_an_effect_is_not_asked_twice(self, ctl: Any, daemon: Any) -> None:
        daemon.answers["stop"] = upgrading()
        assert ctl("stop", "f").code == 5
        assert [verb for verb, _ in daemon.calls] == ["stop"]

    def test_who_is_refused_at_the_door_connects_again(self, ctl: Any, daemon: Any) -> None:
        answers, greeted = daemon._answers, []

        def refuse_once(message: WireMessage, verbs: dict[int, str]) -> Iterator[WireMessage]:
            if isinstance(message, Hello):
                greeted.append(message)
                if len(greeted) == 1:
                    yield upgrading().failure()
                    return
            yield from answers(message, verbs)

        daemon._answers = refuse_once
        daemon.answers["list"] = {"flows": []}
        assert ctl("ls").code == 0
        assert len(greeted) == 2
