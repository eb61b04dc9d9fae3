"""Acquisition functions: how an image's statistics become the one number it is ranked by (higher = less sure)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from types import MappingProxyType

from activeseg.errors import ConfigError, NonFiniteScoreError
from activeseg.records import ImageScore, RankedImage

ACQUISITIONS: Mapping[str, Callable[[ImageScore], float]] = MappingProxyType(
    {
        name: attrgetter(name)
        for name in ("entropy_sum", "entropy_mean", "entropy_share", "margin_mean", "least_confidence_mean")
    }
)
"""Known acquisition functions by name; each reads a stored statistic, so changing it needs no forward pass."""


def acquisition_value(score: ImageScore, acquisition: str) -> float:
    """The number that `acquisition` gives an image. Raises ConfigError naming the known functions."""
    if acquisition not in ACQUISITIONS:
        raise ConfigError(f"unknown acquisition function {acquisition!r}; known: {', '.join(ACQUISITIONS)}")
    return ACQUISITIONS[acquisition](score)


def class_entropy(score: ImageScore, class_indices: Iterable[int]) -> float:
    """Entropy of some classes of an image in nats: the sum of their channel entropies.

    class_indices: values of the label set's index masks; a class counts once, however often it is named.
    Raises ConfigError for a class the score has no channel for (unknown, or the ignored one).
    """
    sums = {entry.class_index: entry.channel_entropy_sum for entry in score.classes}
    wanted = set(class_indices)
    if unknown := sorted(wanted - sums.keys()):
        raise ConfigError(f"class indices {unknown} have no score; scored are {sorted(sums)}")
    return math.fsum(sums[index] for index in wanted)


def rank_images(scores: Iterable[tuple[int, float]]) -> list[RankedImage]:
    """The ranking of (image_id, score) pairs in any order: highest score first, ties by image_id.

    Raises NonFiniteScoreError where a score is NaN or infinite, ConfigError where an image occurs twice.
    """
    ranking = [RankedImage(image_id, score) for image_id, score in scores]
    if broken := [ranked for ranked in ranking if not math.isfinite(ranked.score)]:
        raise NonFiniteScoreError(
            f"image {broken[0].image_id} has score {broken[0].score} ({len(broken)} such of {len(ranking)}); "
            "a finite number was expected: look at the checkpoint and at the image"
        )
    if repeated := [image_id for image_id, times in Counter(r.image_id for r in ranking).items() if times > 1]:
        raise ConfigError(f"each image may be ranked once; repeated image ids: {sorted(repeated)[:5]}")
    return sorted(ranking, key=lambda ranked: (-ranked.score, ranked.image_id))
