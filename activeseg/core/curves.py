"""Curves of mIoU over labelled images: area, labels to reach a goal, and whether one strategy beats another.

Counts are (S, R, N, 3, C): seeds, rounds, the images measured on, and hits, truth pixels and predicted pixels by class, as in
`core.metrics`. Labels are (R,), images labelled in each round, ascending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from activeseg.core.bootstrap import Interval
from activeseg.core.metrics import class_iou, mean_present
from activeseg.errors import ConfigError

Floats = npt.NDArray[np.float64]

_BLOCK_BYTES = 64 * 1024**2


def curve(counts: npt.NDArray[Any], classes: Sequence[int] | None = None) -> Floats:
    """(..., N, 3, C) -> (...) mIoU over the N images, one confusion matrix over all of them.

    classes: only these channels count; None: all. Classes that are nowhere in the truth do not count; NaN where none is.
    """
    iou = class_iou(counts.sum(axis=-3))
    return mean_present(iou if classes is None else iou[..., list(classes)])


def area(labels: Sequence[int], values: Floats) -> Floats:
    """(..., R) -> (...) normalised area under a curve: its mean height, trapezoids over the number of labels.

    nAULC = 1 / (b_R - b_1) * integral of mIoU db. With one round it is the value itself. NaN stays NaN.
    """
    if values.shape[-1] == 1:
        first: Floats = values[..., 0]
        return first
    widths = np.diff(np.asarray(labels, np.float64))
    heights: Floats = (values[..., :-1] + values[..., 1:]) / 2
    whole: Floats = (heights * widths).sum(axis=-1) / widths.sum()
    return whole


def labels_to_reach(labels: Sequence[int], values: Floats, goal: float) -> float | None:
    """Labels at which a curve (R,) first reaches `goal`, interpolated between rounds; None where it does not.

    A curve that begins at or above the goal needed no more than its first labels, which are returned.
    """
    reached = np.flatnonzero(values >= goal)
    if not len(reached):
        return None
    place = int(reached[0])
    if place == 0:
        return float(labels[0])
    before, after = float(values[place - 1]), float(values[place])
    if np.isnan(before):
        return float(labels[place])
    return labels[place - 1] + (goal - before) / (after - before) * (labels[place] - labels[place - 1])


def labels_saved(labels: Sequence[int], values: Floats, baseline: Floats) -> float | None:
    """Share of labels that a curve (R,) saves against a baseline (R,) at equal mIoU; negative where it needs more.

    Measured at the highest mIoU both curves reach: 1 - labels of the curve / labels of the baseline. A curve that begins
    above it counts with its first labels, so that the share is a bound. None where a curve has a round without a value.
    """
    if np.isnan(values).any() or np.isnan(baseline).any():
        return None
    goal = min(float(values.max()), float(baseline.max()))
    own, other = labels_to_reach(labels, values, goal), labels_to_reach(labels, baseline, goal)
    return None if own is None or other is None else 1 - own / other


def saving(own: float | None, baseline: float | None) -> float | None:
    """1 - L95 / L95 of the baseline: labels saved on the way to the goal; None where one of them does not reach it."""
    return None if own is None or baseline is None else 1 - own / baseline


@dataclass(frozen=True, slots=True)
class CurveComparison:
    """A strategy minus a baseline. area: nAULC. rounds: mIoU in each round. saved: see `labels_saved`, NaN where there is
    none. Of the last one draws without a value are left out; `saved_draws` is the share of those with one."""

    area: Interval
    rounds: tuple[Interval, ...]
    saved: Interval
    saved_draws: float


def compare_curves(
    labels: Sequence[int],
    counts: npt.NDArray[Any],
    baseline: npt.NDArray[Any],
    *,
    classes: Sequence[int] | None = None,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> CurveComparison:
    """How a strategy's curve differs from a baseline's on the same seeds and images, with paired bootstrap intervals.

    counts, baseline: (S, R, N, 3, C) each, seed s of one beside seed s of the other. A draw takes seeds and, independently,
    images with replacement, the same ones for both curves and all rounds (percentile bootstrap; Efron, Tibshirani 1993).
    With very few seeds the interval is too narrow: S values can only be drawn in so many ways.

    Raises ConfigError for shapes that do not fit and for truths that differ.
    """
    _check(labels, counts, baseline)
    seeds, _, images = counts.shape[:3]
    random = np.random.default_rng(seed)
    chosen_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=samples).astype(np.float64) / seeds
    weights = random.multinomial(images, np.full(images, 1 / images), size=samples).astype(np.float64)
    per_draw = seeds * counts.shape[1] * 3 * counts.shape[4] * 8
    block = max(1, _BLOCK_BYTES // per_draw)
    drawn = [
        [
            _weighted(side, weights[first : first + block], chosen_seeds[first : first + block], classes)
            for side in (counts, baseline)
        ]
        for first in range(0, samples, block)
    ]
    own, other = (np.concatenate([pair[side] for pair in drawn]) for side in (0, 1))
    whole_own, whole_other = (curve(side, classes).mean(axis=0) for side in (counts, baseline))
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    saved = np.array([_or_nan(labels_saved(labels, one, two)) for one, two in zip(own, other, strict=True)])
    return CurveComparison(
        area=_interval(area(labels, whole_own) - area(labels, whole_other), area(labels, own) - area(labels, other), ends),
        rounds=tuple(
            _interval(whole_own[place] - whole_other[place], own[:, place] - other[:, place], ends)
            for place in range(len(labels))
        ),
        saved=_interval(_or_nan(labels_saved(labels, whole_own, whole_other)), saved, ends),
        saved_draws=float(np.mean(~np.isnan(saved))),
    )


def _weighted(counts: npt.NDArray[Any], images: Floats, seeds: Floats, classes: Sequence[int] | None) -> Floats:
    """Counts (S, R, N, 3, C), weights of images (B, N) and of seeds (B, S) -> the mean curves (B, R) of the draws."""
    summed = np.einsum("bn,srnkc->bsrkc", images, counts.astype(np.float64), optimize=True)
    iou = class_iou(summed)
    values = mean_present(iou if classes is None else iou[..., list(classes)])
    mean: Floats = np.einsum("bs,bsr->br", seeds, values)
    return mean


def _interval(whole: Any, drawn: Floats, ends: tuple[float, float]) -> Interval:
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, ends) if known.size else (np.nan, np.nan)
    return Interval(float(whole), float(low), float(high))


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _check(labels: Sequence[int], counts: npt.NDArray[Any], baseline: npt.NDArray[Any]) -> None:
    if counts.ndim != 5 or counts.shape != baseline.shape or counts.shape[1] != len(labels) or not all(counts.shape):
        raise ConfigError(
            f"expected two (S, R, N, 3, C) stacks with R = {len(labels)}; got {counts.shape} and {baseline.shape}"
        )
    truth = counts[:1, :1, :, 1]
    if not ((counts[:, :, :, 1] == truth).all() and (baseline[:, :, :, 1] == truth).all()):
        raise ConfigError("the curves were not measured on the same images and masks in the same order")
