"""The plugins of nodes.py by themselves, without a daemon."""

from chronetix.testing import run
from examples.orchestrated.nodes import Collector


def test_the_collector_prints_each_request(capsys):
    run(Collector, inputs=[{"request": 1, "from": "10.0.0.1", "tick": 1}])
    assert capsys.readouterr().out == "request 1 from 10.0.0.1\n"
