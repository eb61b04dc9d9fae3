"""A prediction beside the truth: panels, the scores of one image's classes, sheets of images with their annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.core.metrics import ConfusionMatrix, OverlapCounts, smoothed
from activeseg.errors import ConfigError, MaskError
from activeseg.explain.overlay import Pixels
from activeseg.explain.panels import Foot, Row, label_map, laid_over, lay_out, photo, seen_classes, total_width
from activeseg.explain.sheet import Lettering, TableRow, legend_block, stack, table_block, text_block
from activeseg.records import ClassMetric

_FORMULAS = {
    False: "IoU = TP / (TP + FP + FN), Dice = 2 TP / (2 TP + FP + FN)",
    True: "IoU = (I + s) / (U + s), Dice = 2 (I + s) / (areas + s), s = 0.00001",
}


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """An image (H, W, 3) uint8, its predicted and its true mask of the label set's kind, and what stands above them."""

    image: Pixels
    prediction: Mask
    truth: Mask
    caption: str = ""


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
    Raises ConfigError without an item and MaskError as `image_scores`.
    """
    if not items:
        raise ConfigError("a figure needs at least one image; got none")
    rows = [
        Row(
            (photo(item.image), label_map(item.prediction, label_set), label_map(item.truth, label_set)),
            item.caption,
            below=_score_list(image_scores(item.prediction, item.truth, label_set), label_set, documents=documents),
        )
        for item in items
    ]
    masks = [mask for item in items for mask in (item.prediction, item.truth)]

    def foot(widths: Sequence[int], letters: Lettering) -> list[Image.Image]:
        note = f"{_FORMULAS[documents]}, from the pixels of one image; classes of its truth, best first"
        width = total_width(widths)
        return [text_block(note, width, letters), legend_block(seen_classes(masks, label_set), width, letters)]

    return lay_out(("image", "prediction", "truth"), rows, foot=foot)


def contact_sheet(items: Sequence[tuple[Pixels, Mask, str]], label_set: LabelSet, *, pairs: int = 2) -> Image.Image:
    """A grid of (image, mask, name): each image beside the same with its mask laid over it, `pairs` in a row.

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
        return [legend_block(seen_classes(masks, label_set), total_width(widths), letters)]

    return lay_out([""] * (2 * columns), rows, foot=foot)


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
