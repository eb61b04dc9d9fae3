from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from activeseg.config.strategies import BASES
from activeseg.core.acquisition import (
    ACQUISITIONS,
    READS,
    READS_CLASSES,
    STORED,
    PoolStatistics,
    acquisition_values,
    class_entropy,
    rank_images,
)
from activeseg.core.entropy import reduce_logits
from activeseg.errors import ConfigError, NonFiniteScoreError
from activeseg.records import ClassScore, ImageScore

SCORE = ImageScore(
    image_id=7,
    entropy_sum=10.0,
    entropy_mean=0.5,
    valid_pixels=20,
    entropy_share=0.25,
    margin_mean=0.3,
    least_confidence_mean=0.2,
    grid=(10.0,) + (0.0,) * 15,
    classes=(ClassScore(0, 6.0, 15, 7.0, 0.9), ClassScore(2, 4.0, 5, 3.0, None)),
)

# Few values, so that ties are common; order of arrival is arbitrary.
scored_images = st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from([-1.5, -0.0, 0.0, 2.25, 3.0, 1e300])), unique_by=lambda pair: pair[0]
)


@pytest.mark.slow
@given(scored_images)
def test_ranking_equals_brute_force(scores: list[tuple[int, float]]) -> None:
    """Place of an image = how many beat it: a higher score, or the same score and a lower id."""
    expected: dict[int, int] = {}
    for image_id, score in scores:
        expected[sum(s > score or (s == score and i < image_id) for i, s in scores)] = image_id
    assert [ranked.image_id for ranked in rank_images(scores)] == [expected[place] for place in range(len(scores))]


def test_ranking_is_highest_first_and_ties_go_by_image_id() -> None:
    ranking = rank_images([(4, 1.0), (9, 3.0), (2, 1.0), (5, 2.0), (3, 1.0)])
    assert [(r.image_id, r.score) for r in ranking] == [(9, 3.0), (5, 2.0), (2, 1.0), (3, 1.0), (4, 1.0)]


def test_ranking_does_not_depend_on_order_of_arrival() -> None:
    scores = [(image_id, float(image_id % 4)) for image_id in range(40)]
    shuffled = scores.copy()
    random.Random(1).shuffle(shuffled)
    assert rank_images(iter(shuffled)) == rank_images(scores)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_score_raises_and_never_ranks(bad: float) -> None:
    with pytest.raises(NonFiniteScoreError, match="image 3 has score"):
        rank_images([(1, 1.0), (3, bad), (2, 2.0)])


def test_an_image_ranks_once() -> None:
    with pytest.raises(ConfigError, match=r"repeated image ids: \[1\]"):
        rank_images([(1, 1.0), (2, 1.0), (1, 2.0)])


def test_an_empty_pool_has_an_empty_ranking() -> None:
    assert rank_images([]) == []


# --- functions of a pool's statistics --------------------------------------------------------------------------------


def pool_of(logits: list[torch.Tensor], valid: list[torch.Tensor], *, sigmoid: bool = False) -> PoolStatistics:
    """What a scoring pass stores of images (C, H, W), read back as columns."""
    found = [reduce_logits(z[None], v[None], sigmoid=sigmoid) for z, v in zip(logits, valid, strict=True)]
    singles = ("entropy_sum", "valid_pixels", "entropy_share", "margin_mean", "least_confidence_mean")
    columns = {name: np.array([float(getattr(one, name)[0]) for one in found]) for name in singles}
    columns["entropy_mean"] = columns["entropy_sum"] / columns["valid_pixels"]
    columns |= {"bald": np.arange(len(found)) / 8, "tta_jsd": np.arange(len(found)) / 4}
    regions = [np.array([getattr(one, name)[0].tolist() for one in found], dtype=float) for name in REGIONS]
    return PoolStatistics(np.arange(100, 100 + len(found)), columns, np.arange(logits[0].shape[0]), *regions)


REGIONS = ("region_pixels", "region_entropy_sum")


def images(channels: int, *, uniform: bool = False, impossible: bool = False) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Images of several sizes, with pixels that do not count."""
    chance = torch.Generator().manual_seed(channels)
    sizes = ((7, 9), (5, 4), (12, 6), (3, 3))
    logits = [torch.randn(channels, *size, generator=chance) * (0 if uniform else 3) for size in sizes]
    if impossible:
        for one in logits:
            one[-1, ::2] = -torch.inf
    return logits, [torch.rand(size, generator=chance) < 0.8 for size in sizes]


def brute_force(name: str, logits: list[torch.Tensor], valid: list[torch.Tensor]) -> list[float]:
    """Pixel by pixel, in float64, with plain loops."""
    pixels = []  # of each image: (entropy, predicted class, p sorted)
    for image, counts in zip(logits, valid, strict=True):
        of_image = []
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                if counts[y, x]:
                    exps = [math.exp(float(z) - float(image[:, y, x].max())) for z in image[:, y, x]]
                    p = [value / sum(exps) for value in exps]
                    entropy = -sum(value * math.log(value) for value in p if value > 0)
                    of_image.append((entropy, p.index(max(p)), sorted(p, reverse=True)))
        pixels.append(of_image)
    channels = logits[0].shape[0]
    predicted = Counter(label for of_image in pixels for _, label, _ in of_image)
    total = sum(len(of_image) for of_image in pixels)
    weights = [1 / math.sqrt(predicted[c] / total + 0.001) for c in range(channels)]
    weights = [weight / (sum(weights) / channels) for weight in weights]
    formulas = {
        "entropy_sum": lambda of_image: sum(h for h, _, _ in of_image),
        "entropy_mean": lambda of_image: sum(h for h, _, _ in of_image) / len(of_image),
        "entropy_count": lambda of_image: sum(h > 0.5 * math.log(channels) for h, _, _ in of_image) / len(of_image),
        "margin": lambda of_image: sum(1 - (p[0] - p[1]) for _, _, p in of_image) / len(of_image),
        "least_confidence": lambda of_image: sum(1 - p[0] for _, _, p in of_image) / len(of_image),
        "class_balanced_entropy": lambda of_image: sum(weights[c] * h for h, c, _ in of_image) / len(of_image),
    }
    return [formulas[name](of_image) for of_image in pixels]


@pytest.mark.parametrize("kind", [{}, {"uniform": True}, {"impossible": True}], ids=["random", "uniform", "impossible"])
@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("name", sorted(ACQUISITIONS.keys() - {"bald", "tta_jsd"}))
def test_a_function_equals_brute_force_over_the_pixels(name: str, channels: int, kind: dict[str, bool]) -> None:
    logits, valid = images(channels, **kind)
    found = acquisition_values(name, pool_of(logits, valid))
    assert found == pytest.approx(brute_force(name, logits, valid), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["bald", "tta_jsd"])
def test_disagreement_is_the_stored_statistic(name: str) -> None:
    pool = pool_of(*images(3))
    assert acquisition_values(name, pool).tolist() == pool.columns[name].tolist()


def test_the_functions_are_those_the_settings_know() -> None:
    assert set(ACQUISITIONS) == set(BASES) == set(READS)
    assert set(STORED) | READS_CLASSES == set(BASES)


def test_class_balance_prefers_doubt_about_rare_classes() -> None:
    """Two images with the same entropy: one doubts a class that fills the pool, one a class that is hardly there."""
    pool = PoolStatistics(
        np.array([1, 2]),
        {"valid_pixels": np.array([100.0, 100.0])},
        np.array([0, 1]),
        np.array([[100.0, 0.0], [95.0, 5.0]]),
        np.array([[10.0, 0.0], [5.0, 5.0]]),
    )
    common, rare = acquisition_values("class_balanced_entropy", pool)
    assert rare > 2 * common


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_degenerate_pools_have_numbers(name: str) -> None:
    """No images, one class, all pixels of one class, no valid pixel, constant scores."""
    empty = PoolStatistics(np.arange(0), dict.fromkeys(COLUMNS, np.empty(0)), np.arange(2), *np.zeros((2, 0, 2)))
    assert acquisition_values(name, empty).shape == (0,)
    for pixels in ([[9.0, 0.0]] * 3, [[0.0, 0.0]] * 3, [[9.0]] * 3):
        regions = np.array(pixels)
        columns = dict.fromkeys(COLUMNS, np.full(3, 0.5)) | {"valid_pixels": regions.sum(axis=1)}
        pool = PoolStatistics(np.arange(3), columns, np.arange(regions.shape[1]), regions, regions / 2)
        values = acquisition_values(name, pool)
        assert values.tolist() == [values[0]] * 3
        assert [ranked.image_id for ranked in rank_images(zip(range(3), values, strict=True))] == [0, 1, 2]


COLUMNS = (*STORED.values(), "valid_pixels")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_number_that_is_none_is_refused_and_the_image_named(name: str, bad: float) -> None:
    pool = pool_of(*images(3))
    for column in (*pool.columns.values(), *pool.by_class()):
        column[2] = bad
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteScoreError, match=r"image 10\d has " + name):
        acquisition_values(name, pool)


def test_a_statistic_that_was_not_read_is_an_error_and_no_zero() -> None:
    pool = PoolStatistics(np.arange(3), {"entropy_sum": np.ones(3)})
    with pytest.raises(ConfigError, match="entropy_share: not read; read were entropy_sum"):
        acquisition_values("entropy_count", pool)
    with pytest.raises(ConfigError, match="by class: not read"):
        acquisition_values("class_balanced_entropy", pool)


def test_an_unknown_acquisition_function_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'entropy'; known: entropy_sum, entropy_mean"):
        acquisition_values("entropy", pool_of(*images(2)))


def test_class_entropy_sums_the_named_classes_once() -> None:
    assert class_entropy(SCORE, [2]) == 4.0
    assert class_entropy(SCORE, [0, 2, 0]) == SCORE.entropy_sum
    with pytest.raises(ConfigError, match=r"\[1\] have no score"):
        class_entropy(SCORE, [0, 1])


def test_ranking_and_selection_load_no_torch() -> None:
    code = "import sys, activeseg.core.selection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
