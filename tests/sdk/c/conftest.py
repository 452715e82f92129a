"""Nodes in C alone, for what only the SDK of C has."""

from __future__ import annotations

import pytest

from tests.sdk.nodes import Nodes, in_c


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Nodes:
    return in_c(tmp_path_factory, "plain")
