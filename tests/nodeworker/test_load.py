"""From an artifact's uri to the object: every way in, and what each failure says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chronetix.nodeworker.engine.load import load
from chronetix.protocol.errors import ChronetixError


@pytest.fixture(autouse=True)
def forgets_what_it_imported():
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("chronetix_plugin", "sample")):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sample_helper.py").write_text("FACTOR = 3\n")
    (tmp_path / "sample.py").write_text(
        "from sample_helper import FACTOR\nclass Outer:\n    class Inner: pass\ndef triple(frame, ctx): return FACTOR\n"
    )
    return tmp_path


def reason(uri: str, base_dir: str | Path = "", kind: str = "Python") -> str:
    with pytest.raises(ChronetixError) as caught:
        load(uri, str(base_dir), kind)
    assert caught.value.name in ("plugin-not-loadable", "artifact-kind-unsupported")
    return caught.value.message


class TestWhatIsThere:
    def test_a_module_of_the_flows_folder(self, folder):
        assert load("python://sample:triple", str(folder))(None, None) == 3

    def test_a_module_of_the_environment(self):
        assert load("python://json:dumps") is __import__("json").dumps

    def test_an_absolute_file_with_a_neighbour(self, folder):
        assert load(f"python://{folder}/sample.py:triple")(None, None) == 3

    def test_a_file_relative_to_the_flows_folder(self, folder):
        assert load("python://sample.py:triple", str(folder))(None, None) == 3

    def test_a_nested_object(self, folder):
        assert load("python://sample.py:Outer.Inner", str(folder)).__qualname__ == "Outer.Inner"

    def test_every_builtin(self):
        from chronetix.nodeworker.builtins import BUILTINS

        for uri in BUILTINS:
            assert load(uri, kind="WasmComponent").__module__.startswith("chronetix.nodeworker.builtins")


class TestWhatIsNotThere:
    def test_a_module_with_the_nearest_name(self, folder):
        assert "did you mean sample?" in reason("python://sampel:triple", folder)

    def test_a_module_that_the_module_needs(self, folder):
        (folder / "needy.py").write_text("import no_such_module_at_all\n")
        assert "needs the module no_such_module_at_all" in reason("python://needy:x", folder)

    def test_an_object_with_the_nearest_name(self, folder):
        text = reason("python://sample.py:tripple", folder)
        assert "has no tripple" in text
        assert "did you mean triple?" in text

    def test_a_file_with_the_nearest_name(self, folder):
        assert "did you mean sample.py?" in reason("python://smaple.py:triple", folder)

    def test_a_file_in_no_folder(self, folder):
        assert "there is no file" in reason("python://not/here.py:triple", folder)

    def test_a_builtin_with_the_nearest_name(self):
        assert "builtin://chronetix/system/timer?" in reason("builtin://chronetix/system/timr")

    def test_a_kind_that_does_not_run_here(self):
        assert "WasmComponent" in reason("file://x.wasm", kind="WasmComponent")

    @pytest.mark.parametrize("uri", ["python://", "python://module", "python://:x", "python://x:"])
    def test_a_uri_that_is_none(self, uri):
        assert "must read" in reason(uri)


class TestWhatDoesNotImport:
    def test_a_syntax_error_with_file_and_line(self, folder):
        (folder / "bad.py").write_text("x = 1\ndef broken(:\n    pass\n")
        text = reason("python://bad.py:x", folder)
        assert "bad.py, line 2" in text
        assert "def broken(:" in text

    def test_an_exception_at_import(self, folder):
        (folder / "bad.py").write_text("raise RuntimeError('no licence')\n")
        for uri in ("python://bad.py:x", "python://bad:x"):
            assert "raised RuntimeError: no licence" in reason(uri, folder)
