"""The largest entropy there is, for who only draws or names it: no torch is loaded."""

from __future__ import annotations

import math


def max_entropy(channels: int, *, sigmoid: bool) -> float:
    """The largest entropy a pixel can have, in nats: log C, or C log 2 where classes overlap."""
    return channels * math.log(2) if sigmoid else math.log(channels)
