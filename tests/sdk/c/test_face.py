"""The C++ face, in flows with C: frames that move, loans that cancel themselves, exceptions as faults."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest

from chronetixctl.client import Client
from tests.sdk.c.build import HERE, SANITIZERS, SDK, WARNINGS, library, needs_libcbor, run
from tests.sdk.nodes import PLUGINS, Nodes, Run, in_c

pytestmark = [needs_libcbor, pytest.mark.skipif(shutil.which("c++") is None, reason="sdk/c: needs a C++ compiler")]

SIZES = [0, 1, 64, 4096, 70_000]


@pytest.fixture(scope="module", params=["plain", "address"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def face(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Nodes:
    """Nodes of programs/face.cpp."""
    shared = tmp_path_factory.getbasetemp()
    made = library(shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared, kind)
    flags = ["-std=c++20", "-O1", "-g", *WARNINGS, f"-I{SDK / 'include'}"]
    if SANITIZERS[kind]:
        flags += [f"-fsanitize={SANITIZERS[kind]}", "-fno-sanitize-recover=all"]
    programs = tmp_path_factory.mktemp("face")
    for source in (HERE / "programs" / "face.cpp", SDK / "examples" / "blur.cpp"):
        target = programs / source.stem
        run("c++", *flags, source, made / "libchronetix.a", "-lcbor", "-pthread", "-o", target)
    return replace(in_c(tmp_path_factory, kind), worker=programs / "face")


@pytest.mark.parametrize("role", ["in_place", "late", "own_loop"])
def test_a_map_in_cpp_passes_frames_on(role: str, face: Nodes, nodes: Nodes, run: Run) -> None:
    sizes = {"sizes": SIZES}
    flow = nodes.line(
        nodes.own("source", "sized", {**sizes, "count": 200}),
        face.own("map", role),
        nodes.own("sink", "check", sizes),
        buffer=16,
    )
    sink = run(flow)["sink"]
    assert (sink["frames"], sink["wrong"]) == (200, 0)


def test_a_source_and_a_sink_in_cpp(face: Nodes, run: Run) -> None:
    flow = face.line(face.own("source", "items", {"count": 1000}), face.own("sink", "counts"))
    assert run(flow)["sink"] == sum(range(1001))


def test_the_example_in_cpp_makes_frames_of_the_same_size(face: Nodes, nodes: Nodes, run: Run) -> None:
    blur = replace(face, worker=face.worker.with_name("blur"))
    flow = nodes.line(
        nodes.own("source", "sized", {"sizes": [0, 4, 4000], "count": 30}),
        blur.own("blur", ""),
        nodes.own("sink", "check", {"sizes": [0, 4, 4000]}),
    )
    sink = run(flow)["sink"]
    assert (sink["frames"], sink["bytes"]) == (30, 10 * 4004)


def test_what_a_callback_raises_is_the_nodes_fault(face: Nodes, nodes: Nodes, client: Client) -> None:
    flow = face.line(nodes.own("source", "items", {"count": 10}), face.own("sink", "raises"))
    answer = client.call("submit", flow=flow, base_dir=str(PLUGINS), wait="stopped")
    assert answer["state"] == "failed"
    assert "raised over a frame" in answer["reason"]
