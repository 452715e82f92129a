"""The plugins of lookups.py by themselves, without a daemon."""

from chronetix.testing import run
from examples.lookups.lookups import Book, Lookup, words


def test_words_are_looked_up_several_at_once_and_stay_in_order() -> None:
    asked = run(words, params={"words": ["ring", "epoch"] * 4}).sent
    looked_up = run(Lookup, inputs=asked, max_inflight=3)
    assert [line["word"] for line in looked_up.sent] == asked
    assert looked_up.result == {"at once": 3}
    assert run(Book, inputs=looked_up.sent).result == asked
