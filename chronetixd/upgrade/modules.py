"""Whether the other release would find the installed modules that the plugins of running flows import.

Workers keep the code that they have, so that a module that the other release lacks would only be noticed when a node is
restarted. The other release lists in its rehearsal what it does not find; the running one refuses the upgrade for what
it finds itself. What neither finds is found by a plugin in its own way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from chronetix.protocol import cbor
from chronetix.protocol.contract import parse_flow
from chronetixd.core.flow_messages import ENDED, FlowState
from chronetixd.flows.code import is_installed, needed_modules
from chronetixd.flows.registry import PackedFlows
from chronetixd.packing import Packed

SEARCH_S = 5.0
"""How long the files of plugins are searched: they may be on a file system that does not answer."""

MAX_LACKING = 100
"""Modules that are listed."""


class Lacking(Packed, frozen=True):
    """An installed module that this release does not find, and a plugin that imports it."""

    module: str
    flow: str
    node: str
    file: str


def lacking(flows: PackedFlows) -> list[Lacking]:
    """Return the modules that the living flows need and this release does not find; what was found in SEARCH_S."""
    found: list[Lacking] = []

    def search() -> None:
        for listed in flows.flows:
            stored = listed.stored
            flow = parse_flow(cbor.loads(stored.contract), bindings=stored.bindings).flow
            if flow is None or FlowState(stored.state) in ENDED:
                continue
            for module, (node, file) in needed_modules(flow, stored.base_dir).items():
                if not is_installed(module):
                    found.append(Lacking(module=module, flow=stored.name, node=node, file=file))

    thread = threading.Thread(target=search, name="modules", daemon=True)
    thread.start()
    thread.join(SEARCH_S)
    return found[:MAX_LACKING]


def missed(lacks: Iterable[Lacking]) -> list[str]:
    """Return a sentence for each module that this release finds, out of those that the other one lacks."""
    return [
        f"node {each.node!r} of flow {each.flow} needs the module {each.module} (imported by {each.file}), "
        "and its Python does not find it"
        for each in lacks
        if is_installed(each.module)
    ]
