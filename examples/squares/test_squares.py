"""The plugins of squares.py by themselves, without a daemon."""

from chronetix.testing import run
from examples.squares.squares import Total, numbers, square


def test_numbers_counts_squares_are_squared_and_totalled() -> None:
    counted = run(numbers, params={"count": 4}).sent
    assert counted == [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}]
    squared = run(square, inputs=counted).sent
    assert run(Total, inputs=squared).result == 14
