"""Cells of an image: which ones are asked about, which pixels they hold, how they are shown and named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from activeseg.core.cells import GRID, asked_of, doubtful_cells, framed, in_words, inside, only_inside
from activeseg.core.entropy import entropy_map, reduce_logits
from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.errors import ConfigError

SIZES = [(48, 64), (50, 71), (7, 5), (3, 2), (1, 1)]


def test_the_cells_with_the_most_entropy_are_chosen_and_the_first_of_equal_ones() -> None:
    grid = np.random.default_rng(3).random(16).tolist()
    for count in range(1, 17):
        found = doubtful_cells(grid, count)
        assert found == sorted(found)
        assert {grid[cell] for cell in found} == set(sorted(grid)[-count:])
    assert doubtful_cells([0.0] * 16, 3) == [0, 1, 2]
    assert doubtful_cells([1.0, 2.0] * 8, 9) == [0, *range(1, 16, 2)]


@pytest.mark.parametrize(("length", "count"), [(15, 1), (16, 0), (16, 17), (0, 1)])
def test_another_raster_or_number_is_refused(length: int, count: int) -> None:
    with pytest.raises(ConfigError, match="16 sums"):
        doubtful_cells([0.0] * length, count)


@pytest.mark.parametrize("size", SIZES)
def test_a_cell_holds_the_very_pixels_its_entropy_was_summed_over(size: tuple[int, int]) -> None:
    logits = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    entropy, sums = entropy_map(logits)[0].numpy(), reduce_logits(logits).grid[0].tolist()
    found = [float(entropy[inside([cell], size)].sum()) for cell in range(GRID * GRID)]
    assert found == pytest.approx(sums, rel=1e-5, abs=1e-6)
    assert sum(inside([cell], size).astype(int) for cell in range(GRID * GRID)).tolist() == np.ones(size, int).tolist()


def test_cells_that_there_are_not_are_refused() -> None:
    for cells in ([16], [-1], [0, 99]):
        with pytest.raises(ConfigError, match="cells from 0 to 15"):
            inside(cells, (8, 8))


def test_outside_the_cells_a_mask_is_unlabelled_and_inside_it_stays() -> None:
    mask = np.random.default_rng(0).integers(0, 5, (50, 71)).astype(np.uint8)
    found, asked = only_inside(mask, [0, 6, 15]), inside([0, 6, 15], mask.shape)
    assert found.dtype == np.uint8
    assert np.array_equal(found[asked], mask[asked])
    assert (found[~asked] == UNLABELED).all()


@pytest.mark.parametrize("size", [(48, 64), (360, 480), (9, 400)])
def test_the_frame_lies_on_the_edge_of_the_cells_and_the_rest_is_dark(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(3, 250, (*size, 3)).astype(np.uint8)
    asked = inside([5, 6, 9], size)
    shown = framed(picture, [5, 6, 9])
    frame = (shown == 255).all(axis=2)
    assert np.array_equal(shown[~asked], picture[~asked] // 3)
    assert np.array_equal(shown[asked & ~frame], picture[asked & ~frame])
    beside = np.pad(~asked, 1, constant_values=True)
    touches = beside[:-2, 1:-1] | beside[2:, 1:-1] | beside[1:-1, :-2] | beside[1:-1, 2:]
    assert (frame[asked & touches]).all(), "every pixel at the edge belongs to the frame"
    assert not frame[~asked].any()
    assert frame.sum() < asked.sum() or size[0] < 16


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([0], "row 1, column 1"),
        ([1, 2, 12], "row 1, columns 2-3; row 4, column 1"),
        ([7, 4, 6, 4], "row 2, columns 1 and 3-4"),
        (range(16), "; ".join(f"row {row}, columns 1-4" for row in range(1, 5))),
    ],
)
def test_cells_are_named_by_row_and_column(cells: list[int], words: str) -> None:
    assert in_words(cells) == words


def test_where_classes_overlap_only_the_whole_image_can_be_asked_about() -> None:
    labels = {overlap: LabelSet(("a", "b"), ((1, 2, 3), (4, 5, 6)), overlap=overlap) for overlap in (False, True)}
    assert asked_of([3, 1], labels[False]) == [1, 3]
    assert asked_of([3, 1], labels[True]) is None
    assert asked_of(None, labels[False]) is None
