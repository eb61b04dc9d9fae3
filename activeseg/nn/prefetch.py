"""Work done beside the caller, in order: ahead of him in a few threads, or behind him in one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Result, None, None]:
    """`map(function, items)` with up to `workers` threads and at most `ahead` results waiting; keeps the order.

    `items` is iterated in the caller's thread. An exception of `function` is raised where its result would have come;
    work that has not begun by then, or when the iterator is closed, is dropped.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="activeseg-read")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Behind(Generic[Item]):
    """Calls `function` on items in a thread of its own, in their order, with at most `waiting` of them not yet begun.

        with Behind(write, waiting=1) as writer:
            writer.put(chunk)

    Once a call has failed no other one is made, and its exception is raised by the next `put` or at the end of the block,
    which waits for all calls. Where the block itself raises, what was put before is done all the same.
    """

    def __init__(self, function: Callable[[Item], object], *, waiting: int) -> None:
        self._function, self._waiting = function, waiting
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="activeseg-behind")
        self._pending: deque[Future[None]] = deque()
        self._failed: BaseException | None = None

    def put(self, item: Item) -> None:
        """Hand over an item; waits while too many are under way. Raises what an earlier call raised."""
        self._pending.append(self._pool.submit(self._call, item))
        while len(self._pending) > self._waiting + 1:
            self._pending.popleft().result()
        self._raise()

    def finish(self) -> None:
        """Wait for all calls. Raises what one of them raised."""
        while self._pending:
            self._pending.popleft().result()
        self._raise()

    def __enter__(self) -> Behind[Item]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self._raise()

    def _call(self, item: Item) -> None:
        if self._failed is None:
            try:
                self._function(item)
            except BaseException as error:
                self._failed = error

    def _raise(self) -> None:
        if self._failed is not None:
            raise self._failed
