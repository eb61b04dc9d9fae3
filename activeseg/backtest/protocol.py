"""What a backtest was asked for: strategies, how many labels after each round, seeds, the training on everything."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from activeseg.config.strategies import Strategy
from activeseg.errors import ConfigError

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)")


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of images, or a share of the pool in per cent."""

    value: float
    percent: bool

    @classmethod
    def parse(cls, text: str, option: str) -> Amount:
        """'10%' or '37'. Raises ConfigError naming the option."""
        match = _AMOUNT.fullmatch(text.strip())
        if match is None or not (value := float(match[1])) or not (match[2] or value.is_integer()):
            raise ConfigError(f"{option}: expected a number of images such as 37, or a share such as 10%; got {text!r}")
        return cls(value, bool(match[2]))

    def images(self, pool: int) -> int:
        """How many images of a pool of that size: rounded half up, and never none."""
        return max(1, math.floor(self.value * pool / 100 + 0.5)) if self.percent else int(self.value)


@dataclass(frozen=True, slots=True)
class Protocol:
    """A backtest's plan. labels: images labelled in round 0, 1, ...; full_steps: of the training on everything, 0 = none."""

    strategies: tuple[str, ...]
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    full_steps: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def parse_strategies(text: str) -> tuple[str, ...]:
    """'random,entropy_sum' as names. Raises ConfigError for one that is unknown or named twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"--strategies: expected different names with commas between them; got {text!r}")
    return tuple(Strategy.parse(name).name for name in names)


def labels_of_steps(initial: str, step: str, until: str, pool: int) -> tuple[int, ...]:
    """--initial 10% --step 5% --until 40% as numbers of images. Raises ConfigError where they do not go together."""
    first, by, last = (
        Amount.parse(text, option) for text, option in ((initial, "--initial"), (step, "--step"), (until, "--until"))
    )
    if len({first.percent, by.percent, last.percent}) > 1:
        raise ConfigError("--initial, --step and --until: give all three in per cent, or all three as numbers of images")
    if last.value < first.value:
        raise ConfigError(f"--until: expected at least --initial ({initial}); got {until}")
    # A share such as 0.1 % is not exact in binary: a hair's breadth beyond the end is the end.
    rounds = 1 + math.floor((last.value - first.value) / by.value + 1e-9)
    amounts = [Amount(first.value + by.value * number, first.percent) for number in range(rounds)]
    return _ascending([amount.images(pool) for amount in amounts], pool)


def labels_of_budgets(text: str, pool: int) -> tuple[int, ...]:
    """--budgets 2%,5%,10% as numbers of images. Raises ConfigError."""
    return _ascending([Amount.parse(part, "--budgets").images(pool) for part in text.split(",")], pool)


def _ascending(labels: Sequence[int], pool: int) -> tuple[int, ...]:
    if any(later <= earlier for earlier, later in pairwise(labels)):
        raise ConfigError(f"each round must label more images than the one before; of a pool of {pool} they come to {labels}")
    if labels[-1] > pool:
        raise ConfigError(f"the last round would label {labels[-1]} images, the pool has {pool}")
    return tuple(labels)
