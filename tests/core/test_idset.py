from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activeseg.core.idset import IdSet

IDS = st.integers(0, 5_000)


@given(st.lists(st.lists(IDS)), st.lists(IDS))
def test_it_holds_what_was_added_and_nothing_else(added: list[list[int]], asked: list[int]) -> None:
    ids, expected = IdSet(), set[int]()
    for numbers in added:
        ids.update(numbers)
        expected.update(numbers)
    assert [number in ids for number in [*asked, *expected]] == [number in expected for number in [*asked, *expected]]


def test_a_negative_id_is_refused_and_never_contained() -> None:
    with pytest.raises(ValueError, match="-1"):
        IdSet().update([-1])
    ids = IdSet()
    ids.update(range(100))
    assert -1 not in ids
