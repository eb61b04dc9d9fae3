"""Masks to Label Studio regions and back: brush (RLE) and bitmask (PNG) alike.

Where classes exclude each other regions are paint: of two that overlap one counts, as `result_to_mask` says. Where classes
may overlap each region says where its class is, and regions of other classes say nothing about it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.core.masks import compose_regions, unite_regions
from activeseg.errors import AnnotationError
from activeseg.labelstudio.bitmask import decode_bitmask, encode_bitmask
from activeseg.labelstudio.brush import decode_rle, encode_rle
from activeseg.labelstudio.labeling import CONTROL, IMAGE, MaskKind

BoolMask = npt.NDArray[np.bool_]

MAX_REGIONS = 2_000
"""More regions than any person draws, or any browser bears: an annotation with more is refused."""

_TYPES: dict[MaskKind, str] = {"brush": "brushlabels", "bitmask": "bitmasklabels"}
_UNTOUCHED, _EDITED = "prediction", "prediction-changed"
_LONGEST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class AnnotatedMask:
    """What a person left on the screen.

    mask: of the label set's kind. regions: how many there were; changed: how many of them the person drew or edited.
    overlap_share: share of pixels, 0..1, that lie under more than one region.
    """

    mask: Mask
    regions: int
    changed: int
    overlap_share: float


def mask_to_result(mask: Mask, label_set: LabelSet, *, kind: MaskKind) -> list[dict[str, Any]]:
    """One region per class in a mask of the label set's kind; pixels of no class under none. Raises MaskError for another.

    Where classes overlap, the smallest region comes first: Label Studio draws the first one on top, where a click finds it.
    """
    label_set.check_mask(mask)
    if not label_set.overlap:
        areas = ((index, mask == index) for index in range(len(label_set.names)))
        return [_region(index, area, label_set, kind) for index, area in areas if area.any()]
    pixels = [int(np.count_nonzero(plane)) for plane in mask]
    smallest_first = sorted((index for index, count in enumerate(pixels) if count), key=lambda index: pixels[index])
    return [_region(index, mask[index], label_set, kind) for index in smallest_first]


def result_to_mask(
    result: Sequence[Mapping[str, Any]], label_set: LabelSet, *, width: int, height: int, fill: int = UNLABELED
) -> AnnotatedMask:
    """The mask that a result shows on an image of width x height.

    Exclusive classes: (H, W) uint8. Where regions overlap, those the person drew count first, of these the later one; then
    the predictions the person edited, of these the earlier one, which Label Studio draws on top; then untouched
    predictions. Pixels under no region get `fill`.
    Overlapping classes: planes (K, H, W) bool, each the union of its class's regions, whoever drew them.

    One region is unpacked at a time. Raises AnnotationError, with the reason, for whatever does not describe this image,
    and for more than MAX_REGIONS regions.
    """
    if isinstance(result, str) or not isinstance(result, Sequence):
        raise AnnotationError(f"an annotation's result must be a list of regions; got {_brief(result)}")
    if len(result) > MAX_REGIONS:
        raise AnnotationError(f"it has {len(result)} regions, more than the {MAX_REGIONS} that are read: merge some")
    # A link that a person drew between two regions says nothing about pixels.
    result = [region for region in result if not (isinstance(region, Mapping) and region.get("type") == "relation")]
    untouched, edited, drawn = _layers(result)
    painted = _Painted(result, untouched + edited[::-1] + drawn, label_set, (height, width))
    mask: Mask
    if label_set.overlap:
        mask = unite_regions(painted.size, painted, planes=len(label_set.names))
    else:
        mask = compose_regions(painted.size, painted, fill=fill)
    return AnnotatedMask(mask, len(result), len(edited) + len(drawn), painted.overlap_share)


def _layers(result: Sequence[Any]) -> tuple[list[int], list[int], list[int]]:
    """Numbers of the untouched, the edited and the drawn regions."""
    layers: tuple[list[int], list[int], list[int]] = ([], [], [])
    for number, region in enumerate(result):
        origin = region.get("origin") if isinstance(region, Mapping) else None
        layers[0 if origin == _UNTOUCHED else 1 if origin == _EDITED else 2].append(number)
    return layers


class _Painted:
    """Regions, each unpacked when its turn comes: no more than one is held. Watches where they overlap."""

    def __init__(self, result: Sequence[Any], order: Sequence[int], label_set: LabelSet, size: tuple[int, int]) -> None:
        self.result, self.order, self.label_set, self.size = result, order, label_set, size
        self.once, self.twice = np.zeros((2, *size), np.bool_)

    def __iter__(self) -> Iterator[tuple[int, BoolMask]]:
        height, width = self.size
        for number in self.order:
            try:
                index, area = _paint(self.result[number], self.label_set, width, height)
            except AnnotationError as error:
                raise AnnotationError(f"region {number + 1} of {len(self.result)}: {error}") from error
            self.twice |= self.once & area
            self.once |= area
            yield index, area

    @property
    def overlap_share(self) -> float:
        return float(np.count_nonzero(self.twice) / max(self.twice.size, 1))


def _region(index: int, area: BoolMask, label_set: LabelSet, kind: MaskKind) -> dict[str, Any]:
    height, width = area.shape
    value: dict[str, Any] = {_TYPES[kind]: [label_set.names[index]]}
    if kind == "brush":
        value |= {"format": "rle", "rle": (rle := encode_rle(area))}
        drawn = bytes(rle)
    else:
        value |= {"imageDataURL": (url := encode_bitmask(area))}
        drawn = url.encode("ascii")
    return {
        "id": hashlib.sha256(bytes([index]) + drawn).hexdigest()[:10],
        "type": _TYPES[kind],
        "from_name": CONTROL,
        "to_name": IMAGE,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value,
    }


def _paint(region: Mapping[str, Any], label_set: LabelSet, width: int, height: int) -> tuple[int, BoolMask]:
    kind = region.get("type") if isinstance(region, Mapping) else None
    if kind not in _TYPES.values():
        raise AnnotationError(f"expected type {' or '.join(_TYPES.values())}, got {_brief(kind)}")
    value = region.get("value")
    if not isinstance(value, Mapping):
        raise AnnotationError("it has no value")
    size = (region.get("original_width"), region.get("original_height"))
    if size != (width, height):
        raise AnnotationError(f"it was drawn on {_brief(size[0])}x{_brief(size[1])} pixels; the image has {width}x{height}")
    if rotation := region.get("image_rotation"):
        raise AnnotationError(f"the image was rotated by {_brief(rotation)} degrees: turn it back and submit again")
    index = _class_index(value.get(str(kind)), label_set)
    if kind == _TYPES["brush"]:
        return index, decode_rle(value.get("rle", ()), height, width)
    return index, decode_bitmask(value.get("imageDataURL", ""), height, width)


def _class_index(labels: Any, label_set: LabelSet) -> int:
    if not isinstance(labels, list) or len(labels) != 1:
        raise AnnotationError(f"expected exactly one label, got {_brief(labels)}")
    if labels[0] not in label_set.names:
        raise AnnotationError(f"unknown label {_brief(labels[0])}; known are {', '.join(label_set.names)}")
    return label_set.names.index(labels[0])


def _brief(value: Any) -> str:
    """A value from outside for a message: short, and safe to print however deep or long it is."""
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "...")
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"
    if value is None or isinstance(value, (int, float)):
        return str(value)
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (list, tuple, dict)) else type(value).__name__
