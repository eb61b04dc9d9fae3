from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from activeseg.nn.prefetch import Behind, map_ahead


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


def test_what_is_done_behind_keeps_the_order_and_one_item_waits_at_most() -> None:
    done: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def work(item: int) -> None:
        begun.set()
        assert go_on.wait(10)
        done.append(item)

    with Behind(work, waiting=1) as behind:
        behind.put(0)
        assert begun.wait(10)
        behind.put(1)  # the caller does not wait for it
        assert done == []
        go_on.set()
        for item in range(2, 6):
            behind.put(item)
    assert done == list(range(6))


def test_after_a_failure_behind_nothing_more_is_done_and_it_is_raised() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 1:
            raise ValueError("disk full")
        done.append(item)

    def run(items: range) -> None:
        with Behind(work, waiting=0) as behind:
            for item in items:
                behind.put(item)

    for items in (range(9), range(2), range(1, 2)):  # asked for more, and at the end only
        with pytest.raises(ValueError, match="disk full"):
            run(items)
    assert done == [0, 0]
