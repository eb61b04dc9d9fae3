"""A stored prediction as people are shown it: its regions and its entropy map, at the size of the picture they draw on.

Of an image that is asked about in part only the regions in that part are shown, and the map frames it.

Both are None where nothing can be shown: a file that is damaged or gone, or made for other classes, costs its own task the
picture and no other task anything.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from activeseg.core.cells import framed, only_inside
from activeseg.core.scaling import shrink_mask
from activeseg.db.models import LabelingProject, Prediction
from activeseg.errors import DataError
from activeseg.imaging.browser import resize_picture
from activeseg.imaging.decode import decode_image
from activeseg.imaging.thumbnails import encode_png
from activeseg.labelstudio.labeling import MaskKind
from activeseg.labelstudio.regions import mask_to_result
from activeseg.workspace import Workspace

Size = tuple[int, int]
"""(height, width) in pixels."""


def shown_regions(
    workspace: Workspace,
    project: LabelingProject,
    prediction: Prediction,
    *,
    size: Size,
    shown: Size,
    cells: Collection[int] | None = None,
) -> list[dict[str, Any]] | None:
    """The regions of a prediction; None for a stored mask that is none of this image (any more).

    It was stored before [labels] changed, or its file is damaged. size: of the image; shown: of the picture people draw on;
    cells: what of it is asked about, None for all of it.
    """
    kind: MaskKind = "bitmask" if project.mask_kind == "bitmask" else "brush"
    try:
        mask = workspace.read_mask(prediction.mask_location, prediction.mask_sha256)
        if mask.shape[-2:] != size:
            return None
        mask = shrink_mask(mask, shown)
        return mask_to_result(mask if cells is None else only_inside(mask, cells), workspace.label_set, kind=kind)
    except DataError:
        return None


def shown_entropy(
    workspace: Workspace, prediction: Prediction | None, *, size: Size, shown: Size, cells: Collection[int] | None = None
) -> bytes | None:
    """The entropy map of a prediction, a PNG; None where there is none, none is wanted, or its file is damaged."""
    location = prediction.entropy_location if prediction is not None else None
    if location is None or workspace.settings.labelstudio.entropy_map == "none":
        return None
    try:
        data = workspace.artifacts.read(location)
        if shown == size and cells is None:
            return data
        picture = resize_picture(decode_image(data, max_pixels=workspace.settings.pool.max_pixels), shown)
        return encode_png(picture if cells is None else framed(picture, cells))
    except DataError:
        return None
