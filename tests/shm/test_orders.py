"""Every fence and every ordered access of the C code stands in tests/model/ORDERS.md, with the mutant that shows what
it is for; the table has nothing else; and every mutant that it names is one of the model's.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests" / "model" / "ORDERS.md"
MUTANTS = [ROOT / "tests" / "model" / "src" / name for name in ("protocol.rs", "latest.rs")]
CAUGHT = [ROOT / "tests" / "model" / "tests" / name for name in ("protocol.rs", "latest.rs")]
SOURCES = [*(ROOT / "shm" / "include" / "chronetix").glob("*.h"), *(ROOT / "shm" / "native").glob("*.c")]
ELSEWHERE = {"guard.h", "features.h"}  # within one process, for one signal handler: no peer, no protocol

_FUNCTION = re.compile(r"^(?:static|enum|int|void|PyObject)\b[^;=]*?(\w+)\((?!\*)", re.MULTILINE)
_ACCESS = re.compile(
    r"atomic_(thread_fence|load_explicit|store_explicit|fetch_add_explicit|exchange_explicit)\(([^;]*?)"
    r"memory_order_(acquire|release|acq_rel|seq_cst)\)"
)


def word_of(target: str) -> str:
    """The last name in an access's target: ``&p->credit->stamp[slot]`` is ``stamp``."""
    first = target.partition(",")[0]
    return re.findall(r"(\w+)(?:\[[^\]]*\])?$", first.strip())[0] if first.strip() else "-"


def accesses() -> Counter[tuple[str, str, str]]:
    """(function, what, order) of every ordered access, and how many there are of each."""
    found: Counter[tuple[str, str, str]] = Counter()
    for source in SOURCES:
        if source.name in ELSEWHERE:
            continue
        text = source.read_text()
        functions = [(match.start(), match[1]) for match in _FUNCTION.finditer(text)]
        for access in _ACCESS.finditer(text):
            function = [name for start, name in functions if start < access.start()][-1]
            verb = access[1].removesuffix("_explicit").replace("thread_", "").replace("_", " ")
            what = verb if verb == "fence" else f"{verb} {word_of(access[2])}"
            found[function, what, access[3]] += 1
    return found


def table() -> list[list[str]]:
    rows = [line.strip("| \n").split("|") for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in row] for row in rows]


def test_the_table_has_every_ordered_access_and_nothing_else():
    listed: Counter[tuple[str, str, str]] = Counter()
    for function, what, order, count, *_ in table():
        listed[function, what, order] += int(count)
    found = accesses()
    assert len(found) > 30
    assert found - listed == Counter(), "give each a row in tests/model/ORDERS.md, and a mutant in the model"
    assert listed - found == Counter(), "these rows are of nothing that is there any more"


def test_the_mutants_of_the_table_are_the_models_and_are_all_in_it():
    known = {name for file in MUTANTS for name in re.findall(r"^ {4}([A-Z]\w+),$", file.read_text(), re.MULTILINE)}
    named = {name for row in table() for name in re.findall(r"\b[A-Z][a-z]\w+(?:[A-Z]\w+)\b", row[4])}
    assert named <= known
    orders = {name for name in known if re.search(r"(Relaxed|FenceMissing|AcqRel|Acquire)$", name)}
    assert orders <= named, "a mutant of an order that is nowhere"


def test_each_named_mutant_is_caught_or_shown_to_be_spare():
    spare: set[str] = set()
    for file in CAUGHT:
        spare |= set(re.findall(r"[A-Z]\w+", file.read_text().partition("const SPARE")[2].partition("];")[0]))
    for row in table():
        for name in re.findall(r"\b[A-Z][a-z]\w+(?:[A-Z]\w+)\b", row[4]):
            said_spare = f"{name} (spare" in row[4]
            assert said_spare == (name in spare), row
