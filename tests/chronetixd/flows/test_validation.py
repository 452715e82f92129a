"""What is looked for when a flow is submitted, and what when a daemon starts with flows that ran before."""

from __future__ import annotations

from pathlib import Path

from chronetixd.flows.validation import validate, validate_again


def test_what_plugins_import_is_searched_for_at_submit_and_not_again_when_a_daemon_starts(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("import no_such_module_anywhere\ndef f(frame, ctx): ...\n")
    artifact = {"kind": "Python", "uri": "python://p.py:f"}
    flow = {"manifests": [{"plugin_id": "p", "artifact": artifact}], "routes": [], "schemas": []}
    (missing,) = validate(flow, {}, str(tmp_path)).problems
    assert "no_such_module_anywhere" in missing.message
    assert validate_again(flow, {}, str(tmp_path)).problems == []


def test_all_kinds_of_problems_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("import no_such_module_anywhere\ndef f(frame, ctx): ...\n")
    uris = {"a": "python://p.py:f", "b": "python://q.py:f"}
    manifests = [{"plugin_id": name, "artifact": {"kind": "Python", "uri": uri}} for name, uri in uris.items()]
    paths = [each.path for each in validate({"manifests": manifests, "routes": []}, {}, str(tmp_path)).problems]
    assert sorted(paths) == ["manifests[0].artifact.uri", "manifests[1].artifact.uri"]
