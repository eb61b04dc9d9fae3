"""From saliency to a mask: the object is found, the same each time, and where nothing is salient nothing is made up."""

from __future__ import annotations

import numpy as np
import pytest

from activeseg.errors import ConfigError, DataError, ImageError, SaliencyError
from activeseg.explain.attribution import localise
from activeseg.explain.graphcut import LONGEST_SIDE, graph_cut, graph_cut_mask, seed_map


def plant(seed: int, *, height: int = 96, width: int = 128) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An ellipse of two colours on grainy ground of two, a distractor in the object's colour, and saliency on a part of it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    middle, radii = (height * 0.5, width * 0.45), (height * 0.28, width * 0.22)
    truth = ((rows - middle[0]) / radii[0]) ** 2 + ((columns - middle[1]) / radii[1]) ** 2 < 1
    distractor = (rows < height // 8) & (columns > width - width // 8)
    image = np.where((rows > height * 0.7)[..., None], (70, 95, 60), (120, 150, 190)).astype(np.float64)
    image[distractor] = (190, 60, 50)
    image[truth] = np.where((columns < middle[1])[..., None], (190, 60, 50), (160, 110, 30))[truth]
    noisy = (image + rng.normal(0, 15, image.shape)).clip(0, 255).astype(np.uint8)
    # Bright only on the object's upper left: half of it, and the network doubts everywhere a little.
    bump = np.exp(-(((rows - middle[0] + 6) / 12) ** 2 + ((columns - middle[1] + 4) / 16) ** 2))
    saliency = bump * rng.gamma(1.0, 1.0, truth.shape) + 0.08 * rng.gamma(1.0, 1.0, truth.shape) * (0.3 + truth)
    return noisy, saliency.astype(np.float32), truth


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_a_planted_object_is_found(seed: int, iterations: int) -> None:
    image, saliency, truth = plant(seed)
    mask = graph_cut_mask(image, saliency, iterations=iterations)
    assert (mask.shape, mask.dtype) == (truth.shape, np.bool_)
    assert overlap(mask, truth) >= 0.8
    assert overlap(seed_map(saliency) == 1, truth) < 0.5


def test_the_same_arguments_give_the_same_mask_whatever_ran_before() -> None:
    image, saliency, _ = plant(0)
    first = graph_cut_mask(image, saliency, iterations=2)
    other, its_saliency, _ = plant(1)
    graph_cut_mask(other, its_saliency, iterations=2)
    np.testing.assert_array_equal(graph_cut_mask(image, saliency, iterations=2), first)


def test_arguments_stay_as_they_were() -> None:
    image, saliency, _ = plant(0)
    before = image.copy(), saliency.copy()
    image.setflags(write=False)
    saliency.setflags(write=False)
    graph_cut_mask(image, saliency)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(saliency, before[1])


def test_the_mask_is_one_piece() -> None:
    from activeseg.core.masks import label_components

    image, saliency, truth = plant(2)
    second = truth[::-1, ::-1]  # salient as well, but smaller after the cut than the first
    mask = graph_cut_mask(image, saliency + np.where(second, 0.5, 0).astype(np.float32))
    assert np.unique(label_components(mask.astype(np.uint8))[mask]).size == 1


def test_a_large_image_is_cut_at_a_smaller_size_and_answered_at_its_own() -> None:
    image, saliency, truth = plant(3)
    factor = 2 * LONGEST_SIDE // image.shape[1]
    large, larger_saliency, larger_truth = (array.repeat(factor, 0).repeat(factor, 1) for array in (image, saliency, truth))
    mask = graph_cut_mask(large, larger_saliency)
    assert mask.shape == larger_truth.shape
    assert overlap(mask, larger_truth) >= 0.8


@pytest.mark.parametrize("factor", [1, 10])
def test_the_seeds_handed_back_are_those_of_the_cut(factor: int) -> None:
    """Seeds keep their side of the cut, so all that are the object's and touch it lie inside, all others outside."""
    image, saliency, _ = plant(3)
    large, larger = image.repeat(factor, 0).repeat(factor, 1), saliency.repeat(factor, 0).repeat(factor, 1)
    # What is fine is gone at the size of the cut: quantiles of the large map would be other places.
    larger = larger * np.random.default_rng(0).gamma(1.0, 1.0, larger.shape).astype(np.float32)
    mask, seeds = graph_cut(large, larger)
    assert (seeds.shape, seeds.dtype) == (mask.shape, np.int8)
    assert not mask[seeds < 0].any()
    assert (seeds > 0)[mask].any()
    if factor > 1:
        steps = np.count_nonzero(np.diff(seeds, axis=1), axis=1)
        assert steps.max() < LONGEST_SIDE
        assert (seeds != seed_map(larger)).any()
    np.testing.assert_array_equal(localise(large, larger).seeds, seeds)


def test_seeds_are_the_quantiles() -> None:
    saliency = np.random.default_rng(0).permutation(100).reshape(10, 10).astype(np.float32)
    seeds = seed_map(saliency, foreground=0.95, background=0.30)
    assert sorted(saliency[seeds == 1].tolist()) == [95, 96, 97, 98, 99]
    assert sorted(saliency[seeds == -1].tolist()) == list(range(30))


def test_many_zeros_are_all_background() -> None:
    """A ReLU network's saliency is often exactly zero on more than 30 % of the pixels."""
    saliency = np.zeros((10, 10), np.float32)
    saliency[:3, :4] = 1 + np.arange(12).reshape(3, 4)
    seeds = seed_map(saliency)
    assert np.count_nonzero(seeds == -1) == 88
    assert np.count_nonzero(seeds == 1) == 5


@pytest.mark.parametrize(
    "saliency",
    [
        np.zeros((20, 30), np.float32),
        np.full((20, 30), 3.5, np.float32),
        np.full((20, 30), np.nan, np.float32),
        np.pad(np.ones((1, 1), np.float32), 9),  # one bright pixel: less than 5 %
        np.ones((1, 1), np.float32),
    ],
    ids=["zeros", "constant", "nan", "one pixel of many", "one pixel"],
)
def test_saliency_that_points_nowhere_is_an_error(saliency: np.ndarray) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*saliency.shape, 3)).astype(np.uint8)
    with pytest.raises(SaliencyError) as caught:
        graph_cut_mask(image, saliency)
    assert isinstance(caught.value, DataError)


@pytest.mark.parametrize("size", [(1, 2), (3, 3), (1, 50), (8, 8), (7, 1500)])
def test_any_size_is_cut(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    mask = graph_cut_mask(rng.integers(0, 256, (*size, 3)).astype(np.uint8), rng.random(size).astype(np.float32))
    assert mask.shape == size
    assert mask.any()


def test_wrong_arguments_are_refused() -> None:
    image, saliency, _ = plant(0)
    with pytest.raises(ImageError, match="as its saliency"):
        graph_cut_mask(image[:-1], saliency)
    for foreground, background in ((0.3, 0.3), (1.1, 0.3), (0.9, -0.1), (0.2, 0.8)):
        with pytest.raises(ConfigError, match="quantiles"):
            graph_cut_mask(image, saliency, foreground=foreground, background=background)
