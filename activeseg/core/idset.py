"""A set of row ids that costs a bit an id."""

from __future__ import annotations

from collections.abc import Iterable


class IdSet:
    """Non-negative integers that are dense from 0 on, as a table's ids are; memory is the largest one / 8 bytes."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def update(self, ids: Iterable[int]) -> None:
        """Add ids. Raises ValueError for a negative one."""
        for number in ids:
            if number < 0:
                raise ValueError(f"expected an id of 0 or more, got {number}")
            place = number >> 3
            if place >= len(self._bits):
                # Grown by a part of itself, as lists are: adding ids one by one costs no copy each.
                self._bits.extend(bytes(place + 1 - len(self._bits) + len(self._bits) // 8))
            self._bits[place] |= 1 << (number & 7)

    def __contains__(self, number: int) -> bool:
        return 0 <= number >> 3 < len(self._bits) and bool(self._bits[number >> 3] >> (number & 7) & 1)
