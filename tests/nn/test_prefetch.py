from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from activeseg.nn.prefetch import map_ahead


def test_results_keep_the_order_of_the_items_whichever_is_ready_first() -> None:
    second_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_done.wait(10)
        if item == 1:
            second_done.set()
        return item * item

    assert list(map_ahead(work, range(5), workers=2, ahead=3)) == [0, 1, 4, 9, 16]


def test_no_more_is_taken_than_may_wait() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = map_ahead(lambda item: item, items(), workers=2, ahead=3)
    assert [next(results), next(results)] == [0, 1]
    assert len(taken) == 5
    results.close()
    assert len(taken) == 5


def test_an_exception_comes_in_the_place_of_its_result() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    results = map_ahead(work, range(5), workers=2, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_closing_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    results = map_ahead(lambda item: item, range(100), workers=4, ahead=8)
    next(results)
    results.close()
    assert threading.active_count() == before
