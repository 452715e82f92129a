"""What is changed in a text, and that each change is one that a compiler takes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutants.__main__ import AREAS, ROOT, chosen, key, unreadable
from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.sites import mutants


def changed(tmp_path: Path, text: str, name: str = "m.py") -> list[str]:
    """The text with each of its mutants, in order."""
    (tmp_path / name).write_text(text)
    return [mutant.applied(text) for mutant in mutants(tmp_path, Path(name))]


@pytest.mark.parametrize(
    ("text", "into"),
    [
        ("ok = a < b\n", ["ok = a <= b\n"]),
        ("ok = (a) is not (b)\n", ["ok = (a) is (b)\n"]),
        ("ok = a in b and not c\n", ["ok = a not in b and not c\n", "ok = a in b or not c\n", "ok = a in b and c\n"]),
        ("n = ä + 1\n", ["n = ä - 1\n", "n = ä + 2\n"]),
        ("n <<= m\n", ["n >>= m\n"]),
        ("f(True)\n", ["pass\n", "f(False)\n"]),
        ("for _ in f:\n    break\n", ["for _ in f:\n    continue\n"]),
        ("if f:\n    pass\n", ["if not (f):\n    pass\n"]),
        ("def f(n: int = 3) -> int | None:\n    return n\n", ["def f(n: int = 4) -> int | None:\n    return n\n"] * 1),
        ("t = f'{n:>4} of it'\n", ["t = f'~{n:>4} of it'\n"]),
        ("t = 'as people read it'\n", ["t = '~as people read it'\n"]),
        ("t = 'word'\n", []),
        ("p = [*zip(a, b, strict=True)]\n", []),
        ('"""A docstring of 3."""\nassert a < 3\n__all__ = ["a b"]\n', []),
        ("if TYPE_CHECKING:\n    a = 1\n", []),
    ],
)
def test_python_is_changed_where_it_means_something(tmp_path: Path, text: str, into: list[str]) -> None:
    found = changed(tmp_path, text)
    assert [each for each in into if each not in found] == []
    assert len(found) >= len(into)
    assert into or not found
    for each in found:
        ast.parse(each)


def test_c_is_changed_outside_of_comments_and_texts(tmp_path: Path) -> None:
    text = '/* a < 1 */\n#define N 3\nint f(int a) { return a < 4 && a - 2 != 0; } // 1 + 1\nchar *s = "a == 1";\n'
    found = changed(tmp_path, text, "m.c")
    for part in ("a <= 4", "a < 5", "< 4 || a", "a + 2", "- 3 !=", "2 == 0", "!= 1;"):
        assert any(part in each for each in found), part
    assert all("/* a < 1 */\n#define N 3\n" in each and '// 1 + 1\nchar *s = "a == 1";' in each for each in found)


@pytest.mark.parametrize("area", AREAS)
def test_every_mutant_is_a_program_and_has_tests(area: str) -> None:
    files = [path.relative_to(ROOT) for pattern in AREAS[area] for path in sorted(ROOT.glob(pattern))]
    assert files
    for path in files:
        assert any(chosen(path))
        source = (ROOT / path).read_text()
        for mutant in mutants(ROOT, path)[::60]:
            assert mutant.applied(source) != source
            assert not unreadable(mutant, source)


def test_what_means_the_same_is_still_in_the_code() -> None:
    for path, lines in EQUIVALENT:
        source = (ROOT / path).read_text()
        assert (path, lines) in {key(mutant, source) for mutant in mutants(ROOT, Path(path))}


def test_the_tests_that_are_nearest_come_first() -> None:
    near, rest = chosen(Path("chronetixd/records/feed.py"))
    assert near[0] == "tests/chronetixd/records/test_feed.py"
    assert "tests/chronetixd/records/test_exits.py" in near + rest
    assert not set(near) & set(rest)
    assert "tests/e2e/test_daemon_loss.py" in chosen(Path("chronetixd/flows/recovery.py"))[0]
    assert not any("wiring_search" in file for part in chosen(Path("chronetixd/core/timers.py")) for file in part)
