"""The plugins of tables.py by themselves, without a daemon."""

from chronetix.testing import run
from examples.tables.tables import Statistics, high, measurements

ARROW = "application/arrow-ipc"


def test_high_values_are_counted_by_sensor() -> None:
    sent = run(measurements, params={"count": 12, "rows": 6}, content_type=ARROW).sent
    assert [table.num_rows for table in sent] == [6, 6]
    found = run(high, inputs=sent, params={"above": 4.0}, content_type=ARROW).sent
    assert [table["value"].to_pylist() for table in found] == [[4.5, 5.0, 5.5]]
    assert run(Statistics, inputs=found, content_type=ARROW).result == [
        {"sensor": 0, "value_sum_sum": 4.5, "value_count_sum": 1},
        {"sensor": 1, "value_sum_sum": 5.0, "value_count_sum": 1},
        {"sensor": 2, "value_sum_sum": 5.5, "value_count_sum": 1},
    ]
