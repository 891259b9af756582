"""What is read ahead comes in the same order, prepared, and what goes wrong is raised in its turn."""

import pytest

from engine.train.read_ahead import ReadAhead

ITEMS = [("train", {}, number) for number in range(4)]


def test_items_keep_their_order_whether_they_are_read_ahead_or_not():
    prepared, seen, found = [], [], []

    def items():
        for item in ITEMS:
            seen.append(item)
            yield item

    ahead = ReadAhead(items(), prepared.append)
    for item in ahead:
        found.append(item)
        if len(found) == 2:  # the third one only
            ahead.read_next()
            ahead.read_next()
            assert seen == ITEMS[:3] and prepared == [ITEMS[2]]
    ahead.read_next()
    assert found == ITEMS and prepared == [ITEMS[2]]
    assert list(ahead) == []


def test_an_error_of_the_next_item_does_not_cost_the_present_one():
    def items():
        yield ITEMS[0]
        raise ValueError("damaged")

    ahead = ReadAhead(items(), lambda item: None)
    assert next(ahead) == ITEMS[0]
    ahead.read_next()
    with pytest.raises(ValueError, match="damaged"):
        next(ahead)
