"""Whether new values come from where earlier ones came from: the population stability index, and what chance makes of it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri

from activeseg.errors import ConfigError

Values = npt.NDArray[np.float64]

BINS = 10
PER_BIN = 10
"""Values of the smaller sample that a bin should get: fewer values have fewer bins."""
LEVEL = 0.001
"""How often equal distributions may exceed `Shift.chance`."""


@dataclass(frozen=True, slots=True)
class Shift:
    """How a sample differs from a reference.

    index: the population stability index, >= 0, nats. chance: what it exceeds in one of a thousand draws from one and the
    same distribution. bins: those that hold any value. medians: of the reference and of the sample.
    """

    index: float
    chance: float
    bins: int
    medians: tuple[float, float]

    def exceeds(self, limit: float) -> bool:
        """Whether the index is above a limit, and above what chance explains."""
        return self.index > max(limit, self.chance)


def stability_index(reference: npt.ArrayLike, sample: npt.ArrayLike, *, bins: int = BINS) -> Shift:
    """The population stability index of two samples: sum over bins of (q - p) log(q / p).

    reference, sample: (M,) and (N,) finite numbers, each at least one; computed in float64. p and q are their shares of a bin.
    The index is Jeffreys' divergence of the two histograms (Kullback and Leibler 1951), known under this name from credit
    scoring (Siddiqi 2006), where below 0.1 counts as no shift and above 0.25 as a large one.

    Bins lie between quantiles of the reference, at most `bins`, and so few that the smaller sample has PER_BIN values for each
    (two at least). A quantile so frequent that it would fill a bin has one of its own, so ties and constant samples are
    compared exactly. Counts are smoothed by one value spread as both samples together are: the index is finite where a sample
    leaves a bin empty, and 0 where all shares are equal.

    chance: of equal distributions the index is (1/M + 1/N) times a chi-squared variable with one degree of freedom less than
    bins (Yurdakul and Naranjo 2020), so that few values make a large index by themselves.

    Raises ConfigError for empty samples, for numbers that are not finite and for bins < 2.
    """
    old, new = _checked("reference", reference), _checked("sample", sample)
    if bins < 2:
        raise ConfigError(f"bins: expected 2 or more; got {bins}")
    edges = _edges(old, max(2, min(bins, min(len(old), len(new)) // PER_BIN)))
    before, after = (np.bincount(np.searchsorted(edges, one), minlength=len(edges) + 1) for one in (old, new))
    held = before + after > 0
    before, after = before[held], after[held]
    both = (before + after) / (len(old) + len(new))
    p, q = (before + both) / (len(old) + 1), (after + both) / (len(new) + 1)
    index = float(((q - p) * np.log(q / p)).sum())
    used = len(before)
    chance = (1 / len(old) + 1 / len(new)) * float(chdtri(used - 1, LEVEL)) if used > 1 else 0.0
    return Shift(max(index, 0.0), chance, used, (float(np.median(old)), float(np.median(new))))


def _checked(name: str, values: npt.ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ConfigError(f"{name}: expected a line of finite numbers, at least one; got {array.shape}")
    return array


def _edges(reference: Values, bins: int) -> Values:
    """Upper ends of all bins but the last, ascending; a bin holds what is above the end before and not above its own."""
    values = np.unique(np.quantile(reference, np.arange(1, bins) / bins, method="inverted_cdf"))
    ordered = np.sort(reference)
    number = np.searchsorted(ordered, values, side="right") - np.searchsorted(ordered, values, side="left")
    # What is frequent lies alone, between the number below it and itself.
    return np.union1d(values, np.nextafter(values[number * bins >= len(ordered)], -np.inf))


class Reservoir:
    """A uniform sample of a stream of unknown length (Vitter 1985, algorithm R); all of it while it is short.

    size: how many values are kept. The same stream and seed give the same sample.
    """

    def __init__(self, size: int, *, seed: int) -> None:
        self.size, self.seen, self._kept = size, 0, list[float]()
        self._random = random.Random(seed)

    def extend(self, values: Iterable[float]) -> None:
        """Go on with the stream."""
        for value in values:
            self.seen += 1
            if len(self._kept) < self.size:
                self._kept.append(value)
            elif (place := self._random.randrange(self.seen)) < self.size:
                self._kept[place] = value

    def values(self) -> Values:
        """(min(size, seen),) what was kept."""
        return np.array(self._kept, dtype=np.float64)
