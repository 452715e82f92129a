"""``make docs`` makes a site of the documents: complete, without dead links, and with nothing from elsewhere."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT

LOADED = re.compile(
    r'<(?:script|img|iframe|source|link(?![^>]*rel="(?:search|next|prev|index)"))[^>]*?(?:src|href)="([^"]+)"'
)
IMPORTED = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//")


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """As ``make docs`` does."""
    options = ["--quiet", "--fail-on-warning", "--keep-going", "--fresh-env", "-c", str(ROOT / "docs")]
    command = [
        sys.executable,
        "-m",
        "sphinx",
        *options,
        "-d",
        str(target / "doctrees"),
        str(source),
        str(target / "html"),
    ]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    ended = build(ROOT, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    pages = sorted((tmp_path / "html").rglob("*.html"))
    assert {"index.html", "README.html", "search.html"} <= {page.name for page in pages}
    loaded = {link for page in pages for link in LOADED.findall(page.read_text("utf-8"))}
    assert loaded
    assert [link for link in loaded if re.match(r"(https?:)?//", link)] == []
    styles = [path for path in (tmp_path / "html").rglob("*.css") if IMPORTED.search(path.read_text("utf-8"))]
    assert styles == []


def test_a_link_or_an_anchor_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_text("# First\n\n[a](nowhere.md), [b](#nothing), [c](#first)\n")
    ended = build(source, tmp_path)
    assert ended.returncode != 0
    told = re.findall(r"cross-reference target not found: '([^']+)'", ended.stderr)
    assert told == ["nowhere.md", "nothing"]


def test_every_document_is_in_the_navigation() -> None:
    conf = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    listed = [page for pages in conf["NAVIGATION"].values() for page in pages]
    found = {str(path.relative_to(ROOT).with_suffix("")) for path in (ROOT / "docs").rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert found <= set(listed)
