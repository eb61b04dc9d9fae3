"""Acquisition functions: how images' statistics become the one number they are ranked by (higher = less sure)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from activeseg.errors import ConfigError, NonFiniteScoreError
from activeseg.records import STORED, ImageScore, RankedImage

Values = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PoolStatistics:
    """Statistics of N images, by column: what `records.ImageScore` holds of one of them, as far as it was read.

    image_ids: (N,), each once. columns: (N,) by the names of ImageScore.
    class_indices: (C,), the classes of the next two. region_pixels, region_entropy_sum: (N, C), see `records.ClassScore`;
    0 for a class an image has no row of.
    """

    image_ids: Whole
    columns: Mapping[str, Values]
    class_indices: Whole | None = None
    region_pixels: Values | None = None
    region_entropy_sum: Values | None = None

    def column(self, name: str) -> Values:
        """(N,) values. Raises ConfigError where they were not read."""
        if name not in self.columns:
            raise ConfigError(f"statistic {name}: not read; read were {', '.join(self.columns) or 'none'}")
        return self.columns[name]

    def by_class(self) -> tuple[Values, Values]:
        """region_pixels and region_entropy_sum. Raises ConfigError where they were not read."""
        if self.region_pixels is None or self.region_entropy_sum is None:
            raise ConfigError("statistics by class: not read")
        return self.region_pixels, self.region_entropy_sum


Acquisition = Callable[[PoolStatistics], Values]
"""(N,) numbers from the statistics of N images, in their order."""

CLASS_SHARE_FLOOR = 1e-3


def entropy_sum(pool: PoolStatistics) -> Values:
    """s = sum_x H(x), H(x) = -sum_c p_c(x) log p_c(x), in nats: 0 to n log C for n valid pixels and C classes.

    Shannon's entropy of a pixel (Settles, Active Learning Literature Survey, 2009), summed: large images count more.
    """
    return pool.column("entropy_sum")


def entropy_mean(pool: PoolStatistics) -> Values:
    """s = 1/n sum_x H(x), in nats: 0 to log C. Ranks like `entropy_sum` where all images have one size."""
    return pool.column("entropy_mean")


def entropy_count(pool: PoolStatistics) -> Values:
    """s = 1/n #{x: H(x) > tau}: 0 to 1, with tau = `core.entropy.SHARE_THRESHOLD` * the largest possible entropy.

    Counting uncertain pixels rather than averaging keeps a little doubt everywhere from outweighing much doubt somewhere
    (Salay et al., 2020).
    """
    return pool.column("entropy_share")


def margin(pool: PoolStatistics) -> Values:
    """s = 1/n sum_x (1 - (p_first(x) - p_second(x))): 0 to 1 (Scheffer et al., 2001)."""
    return pool.column("margin_mean")


def least_confidence(pool: PoolStatistics) -> Values:
    """s = 1/n sum_x (1 - p_first(x)): 0 to 1 - 1/C (Lewis and Gale, 1994)."""
    return pool.column("least_confidence_mean")


def bald(pool: PoolStatistics) -> Values:
    """s = mean over cells of H(mean_t p_t) - mean_t H(p_t) over dropout passes t, in nats: 0 to log C.

    Mutual information of label and weights (Houlsby et al., 2011; Gal et al., 2017); see `core.disagreement`.
    """
    return pool.column("bald")


def tta_jsd(pool: PoolStatistics) -> Values:
    """The formula of `bald` over mirrored and resized views t of the image, in nats: 0 to log C.

    The Jensen-Shannon divergence of the views' predictions (as Golestaneh and Kitani, 2020, ask for equal ones).
    """
    return pool.column("tta_jsd")


def class_balanced_entropy(pool: PoolStatistics) -> Values:
    """s = 1/n sum_c w_c E_c, in nats: entropy in which a pixel predicted as a rare class weighs more.

    E_c: the summed entropy of the pixels predicted as class c. w_c = (f_c + 1e-3)^(-1/2), divided by its mean over the
    classes, where f_c is the share of the pool's pixels predicted as c: so an image's number depends on the others. An
    image without valid pixels has 0. Where classes overlap, pixels of no class do not count.
    After Cai et al., Revisiting Superpixels for Active Learning (2021), who weigh regions by how rare their class is, by
    another function of the share.
    """
    pixels, entropy = pool.by_class()
    valid = pool.column("valid_pixels")
    if not pixels.size:
        return np.zeros(len(valid))
    share = pixels.sum(axis=0) / max(float(valid.sum()), 1.0)
    weights = 1 / np.sqrt(share + CLASS_SHARE_FLOOR)
    weighted: Values = (entropy * (weights / weights.mean())).sum(axis=1)
    # An image without valid pixels has no entropy either.
    means: Values = weighted / np.maximum(valid, 1.0)
    return means


ACQUISITIONS: Mapping[str, Acquisition] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            entropy_sum,
            entropy_mean,
            entropy_count,
            class_balanced_entropy,
            margin,
            least_confidence,
            bald,
            tta_jsd,
        )
    }
)
"""Acquisition functions by name. Each reads stored statistics, so changing to it needs no forward pass, but for the
statistics a scoring pass only takes when asked (`bald`, `tta_jsd`)."""

READS: Mapping[str, frozenset[str]] = MappingProxyType(
    {name: frozenset({column}) for name, column in STORED.items()} | {"class_balanced_entropy": frozenset({"valid_pixels"})}
)
"""The columns each function reads."""
READS_CLASSES = frozenset({"class_balanced_entropy"})
"""Functions that read the statistics by class too."""


def acquisition_values(name: str, pool: PoolStatistics) -> Values:
    """(N,) finite numbers in the images' order.

    Raises ConfigError for an unknown function, naming the known ones, NonFiniteScoreError naming the first image whose
    number is NaN (as a statistic that is missing is) or infinite.
    """
    if name not in ACQUISITIONS:
        raise ConfigError(f"unknown acquisition function {name!r}; known: {', '.join(ACQUISITIONS)}")
    values = ACQUISITIONS[name](pool)
    require_finite(pool.image_ids, values, name)
    return values


def require_finite(image_ids: Whole, values: Values, name: str = "score") -> None:
    """Raises NonFiniteScoreError that names the first image whose value is NaN or infinite."""
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        raise NonFiniteScoreError(
            f"image {image_ids[broken[0]]} has {name} {values[broken[0]]} ({len(broken)} such of {len(values)}); "
            "a finite number was expected: look at the checkpoint and at the image, or score the pool again"
        )


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
