"""A prediction beside the truth: panels, the scores of one image's classes, sheets of images with their annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.core.metrics import ConfusionMatrix, OverlapCounts, smoothed
from activeseg.errors import ConfigError, MaskError
from activeseg.explain.panels import Foot, Row, label_map, laid_over, lay_out, legend, panel_side, photo, shrunk, total_width
from activeseg.explain.sheet import Lettering, TableRow, stack, table_block, text_block
from activeseg.imaging.coloring import Pixels
from activeseg.records import ClassMetric

_HEADINGS = ("image", "prediction", "truth")
_FORMULAS = {
    False: "IoU = TP / (TP + FP + FN), Dice = 2 TP / (2 TP + FP + FN)",
    True: "IoU = (I + s) / (U + s), Dice = 2 (I + s) / (areas + s), s = 0.00001",
}


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """An image, its predicted and its true mask as a figure shows them, their scores, and what stands above them."""

    image: Pixels
    prediction: Mask
    truth: Mask
    scores: tuple[ClassMetric, ...]
    caption: str = ""


def compare(image: Pixels, prediction: Mask, truth: Mask, label_set: LabelSet, *, caption: str = "") -> Compared:
    """`image_scores` from all pixels of an image (H, W, 3) uint8 and its masks; then they are shrunk to their panels.

    So many large images fit into memory. Raises MaskError as `image_scores`, and for masks of another size than the image.
    """
    if image.shape[:2] != truth.shape[-2:]:
        raise MaskError(f"expected masks of the image's size {image.shape[:2]} (height, width); got {truth.shape[-2:]}")
    scores = tuple(image_scores(prediction, truth, label_set))
    small, [predicted, true] = shrunk(image, (prediction, truth), panel_side(len(_HEADINGS)))
    return Compared(small, predicted, true, scores, caption)


def image_scores(prediction: Mask, truth: Mask, label_set: LabelSet) -> list[ClassMetric]:
    """IoU, Dice and accuracy of the classes in one image's truth, from its pixel counts, best IoU first.

    The ignored class and unlabelled pixels do not count. Each record holds the documents' smoothed form as well.
    Raises MaskError for arrays that are no masks of these classes or of different sizes.
    """
    for mask in (prediction, truth):
        label_set.check_mask(mask)
    if prediction.shape != truth.shape:
        raise MaskError(f"expected a truth of the prediction's size {prediction.shape[-2:]}; got {truth.shape[-2:]}")
    tally: ConfusionMatrix | OverlapCounts
    if label_set.overlap:
        tally = OverlapCounts(label_set.num_classes)
        tally.update(torch.from_numpy(prediction[list(label_set.channels)]), label_set.to_channels(truth))
    else:
        tally = ConfusionMatrix(label_set.num_classes, UNLABELED)
        tally.update(label_set.to_channels(prediction), label_set.to_channels(truth))
    documents = smoothed(tally.counts[None])
    scores = zip(tally.compute().by_class(label_set), documents.iou, documents.dice, strict=True)
    rows = [replace(row, smoothed_iou=iou, smoothed_dice=dice) for row, iou, dice in scores if row.truth_pixels]
    return sorted(rows, key=lambda row: -(row.iou or 0.0))


def truth_figure(items: Sequence[Compared], label_set: LabelSet, *, documents: bool = False) -> Image.Image:
    """A row per image: image | prediction | truth, and below it IoU and Dice of each class of its truth, best first.

    documents: the scores are the documents' smoothed ones. The legend names all classes seen.
    Raises ConfigError without an item.
    """
    if not items:
        raise ConfigError("a figure needs at least one image; got none")
    rows = [
        Row(
            (photo(item.image), label_map(item.prediction, label_set), label_map(item.truth, label_set)),
            item.caption,
            below=_score_list(item.scores, label_set, documents=documents),
        )
        for item in items
    ]
    masks = [mask for item in items for mask in (item.prediction, item.truth)]

    def foot(widths: Sequence[int], letters: Lettering) -> list[Image.Image]:
        note = f"{_FORMULAS[documents]}, from the pixels of one image; classes of its truth, best first"
        width = total_width(widths)
        return [text_block(note, width, letters), *legend(masks, label_set, width, letters)]

    return lay_out(_HEADINGS, rows, foot=foot)


def contact_sheet(items: Sequence[tuple[Pixels, Mask, str]], label_set: LabelSet, *, pairs: int = 2) -> Image.Image:
    """A grid of (image, mask, name): each image beside the same with its mask laid over it, `pairs` in a row.

    Of large images hand over what `for_sheet` makes of them: the sheet shows no more.
    Raises ConfigError without an item and MaskError for a mask that does not fit its image.
    """
    if not items or pairs < 1:
        raise ConfigError(f"a contact sheet needs an image and at least one pair in a row; got {len(items)} and {pairs}")
    columns = min(pairs, len(items))
    lines = [items[start : start + columns] for start in range(0, len(items), columns)]
    rows = []
    for line in lines:
        panels = [panel for image, mask, _ in line for panel in (photo(image), laid_over(image, mask, label_set))]
        rows.append(
            Row(
                [*panels, *[None] * (2 * columns - len(panels))],
                names=[*(name for _, _, name in line), *[""] * (columns - len(line))],
            )
        )
    masks = [mask for _, mask, _ in items]

    def foot(widths: Sequence[int], letters: Lettering) -> list[Image.Image]:
        return legend(masks, label_set, total_width(widths), letters, over_image=True)

    return lay_out([""] * (2 * columns), rows, foot=foot)


def for_sheet(image: Pixels, mask: Mask, *, pairs: int) -> tuple[Pixels, Mask]:
    """An image and its mask as large as a contact sheet with so many pairs in a row shows them.

    Raises MaskError for a mask that does not fit its image.
    """
    if image.shape[:2] != mask.shape[-2:]:
        raise MaskError(f"expected a mask of the image's size {image.shape[:2]} (height, width); got {mask.shape[-2:]}")
    small, [shown] = shrunk(image, (mask,), panel_side(2 * pairs))
    return small, shown


def _score_list(scores: Sequence[ClassMetric], label_set: LabelSet, *, documents: bool) -> Foot:
    def draw(widths: Sequence[int], letters: Lettering) -> list[Image.Image]:
        width = total_width(widths)
        if not scores:
            return [text_block("no class in the truth", width, letters)]
        rows = [
            TableRow(row.name, label_set.colors[row.class_index], (_number(iou), _number(dice)))
            for row in scores
            for iou, dice in [(row.smoothed_iou, row.smoothed_dice) if documents else (row.iou, row.dice)]
        ]
        chosen = [row.smoothed_iou if documents else row.iou for row in scores]
        mean = sum(value or 0.0 for value in chosen) / len(chosen)
        table = table_block(("class", "IoU", "Dice"), rows, width, letters)
        return [stack([table, text_block(f"mean IoU of these classes {mean:.3f}", width, letters)], gap=2)]

    return draw


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
