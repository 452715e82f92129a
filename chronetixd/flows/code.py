"""The code of a flow's plugins: which files it is in, a digest of each, and which modules it needs besides.

The code of a Python plugin is its file, the modules and packages beside it or in the flow's folder that it imports, and
what these import in turn. The code of any other program is its executable. Rules:

* Nothing is imported or executed. Import statements are found in the text, wherever they are in it; modules that are
  imported by a computed name, and data that a plugin opens by itself, are not found.
* A package counts as a whole: all its modules, whichever are imported. What a plugin needs is searched for only in
  modules that are imported.
* Modules elsewhere on the Python path are installed software and not counted, except for the package that the artifact
  itself names.
* Files are anywhere and may be large: this runs in a thread, at most MAX_FILES files count for a plugin, and a file of
  more than MAX_READ bytes is represented by its size and the time of its last change.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shlex
import stat
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from chronetix.protocol.contract import Flow, Manifest, Problem
from chronetixd.flows import python_env
from chronetixd.flows.artifacts import BUILTIN, FILE, PYTHON
from chronetixd.flows.python_env import PythonEnv

Code = dict[str, dict[str, str]]
"""By place (the artifact's uri without its object): the digest of each file, by its absolute path."""

MAX_FILES = 256
"""Files that count for one plugin."""

MAX_PLACES = 256
"""Plugins of a flow whose code is looked at."""

MAX_READ = 16 << 20
"""Bytes. A file that has more is not read."""

MAX_SEARCHED = 1 << 20
"""Bytes of a module that are searched for imports."""

THE_FLOW = "the flow"
"""The place of an import that stands in no file: the artifact itself names the module."""

_OWN_PATH = re.compile(rb"\bsys\.path\b|\bmeta_path\b|\baddsitedir\b|\bimport_hooks\b")
"""Text of a plugin that changes where modules are found."""

SUFFIXES = (".py", *importlib.machinery.EXTENSION_SUFFIXES)

_FROM = re.compile(rb"^([ \t]*)from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]*(\([^)]*\)|[^\n;#]*)", re.M)
_IMPORT = re.compile(rb"^([ \t]*)import[ \t]+([^\n;#]+)", re.M)
_COMMENT = re.compile(rb"#[^\n]*")
_PYTHON_SCRIPT = re.compile(rb"#![^\n]*python")


def place_of(manifest: Manifest) -> str:
    """Return what the code of ``manifest`` is listed under; an empty string for a builtin, and for a worker that starts
    by itself."""
    uri = manifest.artifact.uri
    if uri.startswith(BUILTIN) or manifest.artifact.attach:
        return ""
    return uri.rpartition(":")[0] if manifest.artifact.kind == "Python" else uri


def code_of(flow: Flow, base_dir: str) -> Code:
    """Return the digests of the code of ``flow``. A file that cannot be read now is left out."""
    found: Code = {}
    for manifest in flow.manifests:
        place = place_of(manifest)
        if place and place not in found and len(found) < MAX_PLACES:
            found[place] = dict(sorted(_digests(_Search(manifest, base_dir).files)))
    return found


def needed_modules(flow: Flow, base_dir: str) -> dict[str, tuple[str, str]]:
    """Return the names of installed modules that the plugins of ``flow`` import at the top of their files, each with a
    node that needs it and the file that imports it."""
    needed: dict[str, tuple[str, str]] = {}
    for manifest in flow.manifests[:MAX_PLACES]:
        if place_of(manifest) and not manifest.artifact.python_env:
            for module, file in _Search(manifest, base_dir).needed.items():
                needed.setdefault(module, (manifest.node, file))
    return needed


def missing_modules(flow: Flow, base_dir: str) -> list[Problem]:
    """Return a problem for each installed module that a Python plugin of ``flow`` imports at the top of a file, and
    that the Python which runs it does not find. A plugin that changes its import path finds modules in its own way, and
    is not judged."""
    problems = []
    for index, manifest in enumerate(flow.manifests[:MAX_PLACES]):
        if manifest.artifact.kind == "Python" and place_of(manifest):
            path = f"manifests[{index}].artifact.{'python_env' if manifest.artifact.python_env else 'uri'}"
            problems += [
                Problem(path, f"{text} (node {manifest.node})", cure) for text, cure in _missing(manifest, base_dir)
            ]
    return problems


def _missing(manifest: Manifest, base_dir: str) -> Iterator[tuple[str, str]]:
    search = _Search(manifest, base_dir)
    if any(_OWN_PATH.search(_start_of(path, MAX_SEARCHED)) for path in search.files):
        return
    env = None
    if manifest.artifact.python_env:
        found = python_env.find(Path(base_dir or "/", manifest.artifact.python_env))
        if not isinstance(found, PythonEnv) or found.problem() is not None:
            return  # which is a problem of its own
        env = found
    for module, file in search.needed.items():
        if env.has(module) if env is not None else file == THE_FLOW or is_installed(module):
            continue
        where = f"the environment {env.folder}" if env is not None else "the daemon's environment"
        cure = env.pip_install(module) if env is not None else f"{shlex.quote(sys.executable)} -m pip install {module}"
        told = "the artifact names" if file == THE_FLOW else f"{file} imports"
        yield f"{told} the module {module}, which {where} does not have", cure


def is_installed(module: str) -> bool:
    """Return whether this release's Python finds the top-level module ``module``."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is loaded and does not say from where
        return True


def by_node(flow: Flow, code: Code) -> dict[str, dict[str, str]]:
    """Return the files of each node of ``flow`` whose code is known."""
    found = {manifest.node: code.get(place_of(manifest)) for manifest in flow.manifests}
    return {node: files for node, files in found.items() if files}


def changed_files(flow: Flow, nodes: Collection[str], old: Code, new: Code) -> list[str]:
    """Return the paths of the files of ``nodes`` that differ between ``old`` and ``new``; a node whose code is not
    known in both has none."""
    before, after = by_node(flow, old), by_node(flow, new)
    return sorted(
        {
            path
            for node in nodes
            if node in before and node in after
            for path in {*before[node], *after[node]}
            if before[node].get(path) != after[node].get(path)
        }
    )


def loaded_by(flow: Flow, nodes: Collection[str], code: Code) -> Code:
    """Return the part of ``code`` that only ``nodes`` use, out of all nodes of ``flow``."""
    others = {place_of(manifest) for manifest in flow.manifests if manifest.node not in nodes}
    mine = {place_of(manifest) for manifest in flow.manifests if manifest.node in nodes}
    return {place: code[place] for place in mine - others if place in code}


class _Search:
    """The search for the code of one plugin. ``files``: its files. ``needed``: modules that are not among them, with
    the file that imports each at its top level."""

    def __init__(self, manifest: Manifest, base_dir: str) -> None:
        self.files: dict[str, None] = {}
        self.needed: dict[str, str] = {}
        self._roots: list[str] = []
        if manifest.artifact.kind == "Python":
            self._python(manifest.artifact.uri.removeprefix(PYTHON).rpartition(":")[0], base_dir)
        elif manifest.artifact.kind in ("Process", "Dylib"):
            self._program(os.path.join(base_dir or "/", manifest.artifact.uri.removeprefix(FILE)))

    def _python(self, place: str, base_dir: str) -> None:
        if place.endswith(".py") or "/" in place:
            path = os.path.realpath(os.path.join(base_dir or "/", place))
            self._roots = [os.path.dirname(path), *([base_dir] if base_dir else [])]
            self._follow([path])
            return
        top = place.partition(".")[0]
        self._roots = [base_dir] if base_dir else []
        beside = list(self._beside(place))
        if beside:
            self._follow(beside)
        elif top not in sys.stdlib_module_names:
            self._installed(top)

    def _installed(self, top: str) -> None:
        """Add the top-level package that the artifact names and that is installed, without what it imports."""
        self.needed[top] = THE_FLOW
        spec = importlib.machinery.PathFinder.find_spec(top, None)
        if spec is None:
            return
        if spec.submodule_search_locations is not None:
            for folder in spec.submodule_search_locations:
                self._add(_modules_below(folder))
        elif spec.origin is not None and os.path.isfile(spec.origin):
            self._add([spec.origin])

    def _program(self, path: str) -> None:
        path = os.path.realpath(path)
        self._roots = [os.path.dirname(path)]
        if path.endswith(".py") or _PYTHON_SCRIPT.match(_start_of(path, 256)):
            self._follow([path])
        else:
            self._add([path])

    def _follow(self, paths: Iterable[str]) -> None:
        """Add ``paths``, what they import, and so on; then the packages that these are in, as a whole."""
        packages: dict[str, None] = {}
        queue = self._add(paths)
        while queue:
            path = queue.pop()
            if package := _package(path):
                packages[package] = None
                self._roots.append(os.path.dirname(package))
            if path.endswith(SUFFIXES[1:]):
                continue
            for name, dots, is_top in imports(_start_of(path, MAX_SEARCHED)):
                if dots:
                    above = os.path.abspath(os.path.join(os.path.dirname(path), *[".."] * (dots - 1)))
                    beside = list(_module(above, name))
                else:
                    beside = list(self._beside(name))
                    if not beside and is_top:
                        self.needed.setdefault(name.partition(".")[0], path)
                queue += self._add(beside)
        for package in packages:
            self._add(_modules_below(package))

    def _beside(self, name: str) -> Iterator[str]:
        for root in dict.fromkeys(self._roots):
            yield from _module(root, name)

    def _add(self, paths: Iterable[str]) -> list[str]:
        """Add files, as far as there is room. Returns those that were not known yet."""
        added = []
        for path in paths:
            if path not in self.files and len(self.files) < MAX_FILES:
                self.files[path] = None
                added.append(path)
        return added


def imports(text: bytes) -> Iterator[tuple[str, int, bool]]:
    """Yield each module that ``text`` imports: its name, how many dots stand before it, and whether the statement
    stands at the top level, which means that the import must succeed."""
    text = text.replace(b"\\\n", b" ")
    for indent, dots, module, names in _FROM.findall(text):
        base = module.decode("utf-8", "replace")
        if base:
            yield base, len(dots), not indent
        for each in _names(_COMMENT.sub(b"", names.strip(b"()")).decode("utf-8", "replace")):
            yield f"{base}.{each}" if base else each, len(dots), False  # may be a module too
    for indent, names in _IMPORT.findall(text):
        for each in _names(names.decode("utf-8", "replace")):
            yield each, 0, not indent


def _names(text: str) -> Iterator[str]:
    for each in text.split(","):
        words = each.split()
        if words and all(part.isidentifier() for part in words[0].split(".")):
            yield words[0]


def _module(folder: str, name: str) -> Iterator[str]:
    """Yield the file of the module ``name`` below ``folder``; nothing when it is not there."""
    *above, last = name.split(".")
    for part in above:
        for suffix in SUFFIXES:
            if os.path.isfile(os.path.join(folder, part + suffix)):
                yield os.path.join(folder, part + suffix)  # the last name is an object of that module
                return
        folder = os.path.join(folder, part)
        if os.path.isfile(os.path.join(folder, "__init__.py")):
            yield os.path.join(folder, "__init__.py")
    package = os.path.join(folder, last, "__init__.py")
    if os.path.isfile(package):
        yield package
        return
    for suffix in SUFFIXES:
        if os.path.isfile(os.path.join(folder, last + suffix)):
            yield os.path.join(folder, last + suffix)
            return


def _package(path: str) -> str:
    """Return the folder of the outermost package that the module ``path`` is in; an empty string without one."""
    folder, top = os.path.dirname(path), ""
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        folder, top = os.path.dirname(folder), folder
    return top


def _modules_below(folder: str) -> Iterator[str]:
    """Yield the modules below ``folder`` in a fixed order, without hidden folders."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith((".", "__")))
        for file in sorted(files):
            if file.endswith(SUFFIXES):
                yield os.path.join(place, file)


def _start_of(path: str, most: int) -> bytes:
    """Return the first bytes of a regular file; nothing when it cannot be read."""
    try:
        if not os.path.isfile(path):
            return b""
        with open(path, "rb") as file:
            return file.read(most)
    except OSError:
        return b""


def _digests(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        try:
            found = os.stat(path)
            if stat.S_ISREG(found.st_mode):
                by_time = f"{found.st_size} bytes of {found.st_mtime_ns}"
                yield path, by_time if found.st_size > MAX_READ else digest(Path(path).read_bytes())
        except OSError:
            continue


def digest(content: bytes) -> str:
    """Return the digest of a file's content."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()
