"""Every number that arrives is checked, whether frames come one by one or as batches."""

import pytest

from bench.ends import NUMBER, PHASE_SHIFT, TURN, take_batches_until_end, take_until_end

SIZE = 64
FIRST = 2 << PHASE_SHIFT


class Some:
    """Frames as a link with batches gives them."""

    def __init__(self, frames):
        self.frames = frames

    @property
    def nbytes(self):
        return sum(map(len, self.frames))

    def __len__(self):
        return len(self.frames)

    def __iter__(self):
        return iter(self.frames)

    def numpy(self, dtype):
        np = pytest.importorskip("numpy")
        return np.frombuffer(b"".join(self.frames), dtype)

    def release(self):
        self.frames = []


def frame(number, size=SIZE):
    return NUMBER.pack(number).ljust(size, b"x")


def one_by_one(frames, size, length):
    return take_until_end(iter(frames).__next__, 2)


def in_batches(frames, size, length):
    batches = [Some(frames[at : at + length]) for at in range(0, len(frames), length)]
    return take_batches_until_end(iter([None, *batches]).__next__, size, 2)


@pytest.mark.parametrize("size", [64, 100, 4096])
@pytest.mark.parametrize(("take", "length"), [(one_by_one, 1), (in_batches, 1), (in_batches, 7), (in_batches, 64)])
def test_numbers_that_go_round_are_all_counted(take, length, size):
    frames = [frame(FIRST + i % TURN, size) for i in range(1000)]
    assert take([*frames, frame(-2)], size, length) == (1000, 0)


@pytest.mark.parametrize(("take", "length"), [(one_by_one, 1), (in_batches, 64)])
def test_what_was_lost_is_not_counted_and_what_came_twice_is_told(take, length):
    numbers = [*range(100), *range(103, 200), 150, *range(200, 210)]
    assert take([*(frame(FIRST + number) for number in numbers), frame(-2)], SIZE, length) == (207, 1)


@pytest.mark.parametrize(("take", "length"), [(one_by_one, 1), (in_batches, 3)])
def test_what_still_comes_of_an_earlier_phase_is_not_counted(take, length):
    early = [frame((1 << PHASE_SHIFT) + 7), frame(-1), frame(-1)]
    assert take([*early, frame(FIRST), frame(-2)], SIZE, length) == (1, 0)
