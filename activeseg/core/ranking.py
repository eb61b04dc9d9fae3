"""A ranking of many images as two arrays, orders drawn from it, and which of its places may still be taken."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from activeseg.core.acquisition import Values, Whole, require_finite
from activeseg.errors import ConfigError

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Images by score, highest first, ties by image id; a place counts from 0. image_ids, scores: (N,). name: of the score."""

    image_ids: Whole
    scores: Values
    name: str

    @classmethod
    def of(cls, image_ids: npt.ArrayLike, scores: npt.ArrayLike, name: str = "score") -> Ranking:
        """The ranking of images in any order.

        Raises NonFiniteScoreError where a score is NaN or infinite, ConfigError where an image occurs twice.
        """
        ids, values = np.asarray(image_ids, dtype=np.int64), np.asarray(scores, dtype=np.float64)
        require_finite(ids, values, name)
        kinds, times = np.unique(ids, return_counts=True)
        if len(kinds) < len(ids):
            raise ConfigError(f"each image may be ranked once; repeated image ids: {kinds[times > 1][:5].tolist()}")
        order = np.lexsort((ids, -values))
        return cls(ids[order], values[order], name)

    def __len__(self) -> int:
        return len(self.image_ids)

    def describe(self, place: int) -> str:
        """'entropy_sum 51234, rank 3 of 305'."""
        value = float(self.scores[place])
        shown = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return f"{self.name} {shown}, rank {place + 1} of {len(self)}"


class Limits:
    """Which places may still be taken. free: (N,); here each once, elsewhere taking one may close others too."""

    def __init__(self, size: int) -> None:
        self.free: Flags = np.ones(size, dtype=bool)

    def take(self, place: int) -> None:
        """Take a place, free or not."""
        self.free[place] = False


Pick = tuple[int, str]
"""A place, and why it was taken beside its rank ('': for nothing else)."""

Picker = Callable[[int, Sequence[int], Limits], list[Pick]]
"""(size, places of the control arm, limits) -> at most `size` free places, which it takes, in the order to show them."""


def pick_in_order(order: Iterable[int], size: int, limits: Limits, why: str = "") -> list[Pick]:
    """The first `size` places of an order that are free when their turn comes."""
    picked: list[Pick] = []
    for place in order:
        if len(picked) >= size:
            break
        if limits.free[place]:
            limits.take(place)
            picked.append((place, why))
    return picked


def top(ranking: Ranking) -> Picker:
    """The best of a ranking."""
    return lambda size, control, limits: pick_in_order(range(len(ranking)), size, limits)


def power(ranking: Ranking, *, beta: float, seed: int) -> Picker:
    """Draws without replacement in which an image's chance is proportional to s^beta at each draw.

    Kirsch et al., Stochastic Batch Acquisition (2023), 'power': the top of beta * log s + Gumbel noise. Scores of networks
    lie close together for their size, and would all have about one chance: here s is standardised, 0 for the lowest
    score of the ranking and 1 for the highest. Images with the lowest score, the only ones whose s is not positive, come
    after all others, by rank; where all scores are equal so are the chances.
    """
    _require_positive(beta)
    spread = float(ranking.scores[0] - ranking.scores[-1]) if len(ranking) else 0.0
    standard = (ranking.scores - ranking.scores[-1]) / spread if spread > 0 else np.ones(len(ranking))
    with np.errstate(divide="ignore"):
        return _drawn(beta * np.log(standard), f"power beta {beta:g}", seed)


def softrank(ranking: Ranking, *, beta: float, seed: int) -> Picker:
    """Draws without replacement in which an image's chance is proportional to rank^-beta at each draw.

    Kirsch et al. (2023), 'softrank': the top of -beta * log rank + Gumbel noise. Only the order of the scores counts.
    """
    _require_positive(beta)
    return _drawn(-beta * np.log(np.arange(1, len(ranking) + 1)), f"softrank beta {beta:g}", seed)


def _drawn(keys: Values, name: str, seed: int) -> Picker:
    """Largest key + Gumbel noise first; equal ones, among them those of -inf, by rank."""
    rng = seeded_random(name.partition(" ")[0], seed)
    uniform = np.array([rng.random() for _ in range(len(keys))])
    gumbel = -np.log(-np.log(np.clip(uniform, np.finfo(float).tiny, None)))
    order = np.argsort(-(keys + gumbel), kind="stable").tolist()
    return lambda size, control, limits: pick_in_order(order, size, limits, f"drawn by {name}")


def seeded_random(purpose: str, seed: int) -> random.Random:
    """A generator of its own for each purpose, so that draws with one seed do not resemble each other."""
    return random.Random(f"{purpose} {seed}")


def _require_positive(beta: float) -> None:
    if not 0 < beta < np.inf:
        raise ConfigError(f"beta: expected a number above 0; got {beta}")
