"""Parts of an image that are asked about: cells of the raster that its entropy is summed on.

The raster has GRID x GRID cells, numbered row by row from 0 at the top left. A side that GRID does not divide gives its first
cells one pixel more each, as `torch.tensor_split` does, so that a cell holds the pixels its entropy was summed over.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GRID = 4
"""The regional raster has GRID x GRID cells."""

_DARK = 3  # what is not asked about keeps a third of its light
_WIDTH = 150  # the frame is a 150th of the longer side wide, 2 pixels at least


def doubtful_cells(grid: Sequence[float], count: int) -> list[int]:
    """Numbers, ascending, of the `count` cells with the most entropy; of equal ones the first.

    grid: row-major sums of all GRID * GRID cells. Raises ConfigError for another number of them or of cells to choose.
    """
    if len(grid) != GRID * GRID or not 0 < count <= len(grid):
        raise ConfigError(f"expected {GRID * GRID} sums and 1 to {GRID * GRID} cells to choose; got {len(grid)} and {count}")
    return sorted(sorted(range(len(grid)), key=lambda cell: (-grid[cell], cell))[:count])


def asked_of(cells: Collection[int] | None, label_set: LabelSet) -> list[int] | None:
    """The cells that can be asked about; None for the whole image, as where classes overlap: their masks know no pixel
    without a label, and what is outside would count as absent.
    """
    return None if cells is None or label_set.overlap else sorted(cells)


def inside(cells: Collection[int], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where an image of this size (height, width) lies in one of the cells: (H, W) bool. Raises ConfigError for no cell."""
    import numpy as np

    if unknown := sorted(cell for cell in cells if not 0 <= cell < GRID * GRID):
        raise ConfigError(f"expected cells from 0 to {GRID * GRID - 1}; got {unknown}")
    wanted = np.zeros((GRID, GRID), np.bool_)
    wanted.flat[list(cells)] = True
    rows, columns = (np.repeat(np.arange(GRID), [side // GRID + (part < side % GRID) for part in range(GRID)]) for side in size)
    found: npt.NDArray[np.bool_] = wanted[rows[:, None], columns[None]]
    return found


def only_inside(mask: Mask, cells: Collection[int]) -> Mask:
    """A mask (H, W) uint8 whose pixels outside the cells are unlabelled."""
    import numpy as np

    return np.where(inside(cells, (mask.shape[0], mask.shape[1])), mask, np.uint8(UNLABELED))


def framed(picture: npt.NDArray[np.uint8], cells: Collection[int]) -> npt.NDArray[np.uint8]:
    """A picture (H, W, 3) uint8 with a white frame around the cells, on their side, and the rest of it dark."""
    import numpy as np

    asked = inside(cells, (picture.shape[0], picture.shape[1]))
    width = max(2, max(asked.shape) // _WIDTH)
    bordered, (height, across) = np.pad(asked, width), asked.shape
    core = asked.copy()
    for down in (0, width, 2 * width):
        for right in (0, width, 2 * width):
            core &= bordered[down : down + height, right : right + across]
    shown = np.where(asked[..., None], picture, picture // np.uint8(_DARK))
    shown[asked & ~core] = 255
    return shown


def in_words(cells: Collection[int]) -> str:
    """Which cells these are, for people: 'row 1, columns 2-3; row 4, column 1'."""
    rows = groupby(sorted(set(cells)), key=lambda cell: cell // GRID)
    return "; ".join(f"row {row + 1}, {_columns([cell % GRID + 1 for cell in found])}" for row, found in rows)


def _columns(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"column{'s' if len(numbers) > 1 else ''} {' and '.join(texts)}"
