"""The plugins of pictures.py by themselves, without a daemon."""

import numpy as np

from chronetix.testing import run
from examples.pictures.pictures import Monitor, camera, edges

NPY = "application/x-npy"


def test_a_disc_has_a_round_edge_and_the_monitor_counts_it() -> None:
    taken = run(camera, params={"count": 2, "height": 80, "width": 100}, content_type=NPY)
    assert [picture.shape for picture in taken.sent] == [(80, 100)] * 2
    assert taken.meta == [{"n": 0}, {"n": 1}]
    found = run(edges, inputs=taken.sent, meta=taken.meta, content_type=NPY)
    assert all(edge.dtype == np.uint8 and edge.shape == (79, 99) for edge in found.sent)
    assert found.meta == taken.meta
    counted = run(Monitor, inputs=found.sent, meta=found.meta, content_type=NPY).result
    assert counted == {"pictures": 2, "most": np.count_nonzero(found.sent[1])}
