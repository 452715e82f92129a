"""The examples of the crate, in the flow that is beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sdk.rust.build import SDK, built, needs_cargo

pytestmark = needs_cargo


def test_the_examples_add_up_the_squares(daemon: Any, tmp_path: Path) -> None:
    programs = built(SDK, "--examples")
    text = (SDK / "examples" / "flow.yaml").read_text()
    flow = tmp_path / "flow.yaml"
    flow.write_text(text.replace("../target/release", str(programs)))
    ended = daemon.ctl("submit", str(flow), "--wait", "stopped")
    assert ended.returncode == 0, ended.stderr
    described = daemon.ctl("describe", "squares-in-rust")
    assert str(sum(n * n for n in range(1000))) in described.stdout
