"""How Sphinx makes a site of the documents that are readable in the repository: ``make docs``.

Rules: the source folder is the repository, and each page is a file of it, unchanged; the navigation is below; a link or
an anchor that leads nowhere ends the build; pages load nothing from elsewhere.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

NAVIGATION = {
    "First steps": ("docs/install", "docs/plugins", "docs/testing", "docs/debugging"),
    "Guides": (
        "docs/data",
        "docs/arrays",
        "docs/arrow",
        "docs/routes",
        "docs/restarts",
        "docs/updates",
        "docs/orchestrator",
        "docs/environments",
        "docs/attach",
        "docs/your-language",
        "docs/conformance",
        "sdk/c/README",
    ),
    "Operation": (
        "docs/production",
        "docs/operations",
        "docs/upgrade",
        "docs/exits-and-logs",
    ),
    "Reference": (
        "docs/reference/flow-file",
        "docs/reference/content-types",
        "docs/reference/plugin-api",
        "docs/reference/testing-api",
        "docs/reference/client-api",
        "docs/reference/builtins",
        "docs/reference/command-line",
        "docs/reference/exit-codes",
        "docs/reference/settings",
        "docs/reference/errors",
        "docs/events",
        "docs/states",
        "docs/reference/statistics",
        "docs/reference/dead-letters",
    ),
    "Design": ("ARCHITECTURE", "shm/SPEC", "protocol/PROTOCOL", "CONTRIBUTING", "CHANGELOG"),
}
"""Pages by the navigation's headings, in reading order. The README is the first page."""

project = "Chronetix"
root_doc = "README"
include_patterns = ["README.md", *(f"{page}.md" for pages in NAVIGATION.values() for page in pages)]
exclude_patterns = [".*", "bench", "build", "chronetix", "dist", "examples", "tests"]
extensions = ["myst_parser"]
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_title = "Chronetix"
html_copy_source = False
html_show_sphinx = False


class Drawing(TextLexer):
    """A diagram in Mermaid's language, which is shown as the text that it is."""

    aliases = ("mermaid",)


def add_navigation(_app: Sphinx, page: str, text: list[str]) -> None:
    """Append the table of contents to the first page."""
    if page == root_doc:
        for heading, pages in NAVIGATION.items():
            entries = "\n".join(f"/{each}" for each in pages)
            text[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{entries}\n```\n"


def copy_first_page(app: Sphinx, failure: Exception | None) -> None:
    """Let the site's folder begin with the README."""
    if failure is None:
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_lexer("mermaid", Drawing)
    app.connect("source-read", add_navigation)
    app.connect("build-finished", copy_first_page)
