"""Masks to Label Studio regions and back: brush (RLE) and bitmask (PNG) alike.

Where classes exclude each other regions are paint: of two that overlap one counts, as `result_to_mask` says. Where classes
may overlap each region says where its class is, and regions of other classes say nothing about it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.core.masks import compose_regions, split_regions, unite_regions
from activeseg.errors import AnnotationError
from activeseg.labelstudio.brush import decode_rle, encode_rle
from activeseg.labelstudio.labeling import CONTROL, IMAGE, MaskKind

BoolMask = npt.NDArray[np.bool_]

_TYPES: dict[MaskKind, str] = {"brush": "brushlabels", "bitmask": "bitmasklabels"}
_DATA_URL = "data:image/png;base64,"
_UNTOUCHED, _EDITED = "prediction", "prediction-changed"
_OPAQUE = 127


@dataclass(frozen=True, slots=True)
class AnnotatedMask:
    """What a person left on the screen.

    mask: of the label set's kind. regions: how many there were; changed: how many of them the person drew or edited.
    """

    mask: Mask
    regions: int
    changed: int


def mask_to_result(mask: Mask, label_set: LabelSet, *, kind: MaskKind) -> list[dict[str, Any]]:
    """One region per class in a mask of the label set's kind; pixels of no class under none. Raises MaskError for another.

    Where classes overlap, the smallest region comes first: Label Studio draws the first one on top, where a click finds it.
    """
    label_set.check_mask(mask)
    regions = split_regions(mask, range(len(label_set.names)))
    if label_set.overlap:
        regions.sort(key=lambda region: int(region[1].sum()))
    return [_region(index, region, label_set, kind) for index, region in regions]


def result_to_mask(
    result: Sequence[Mapping[str, Any]], label_set: LabelSet, *, width: int, height: int, fill: int = UNLABELED
) -> AnnotatedMask:
    """The mask that a result shows on an image of width x height.

    Exclusive classes: (H, W) uint8. Where regions overlap, those the person drew count first, of these the later one; then
    the predictions the person edited, of these the earlier one, which Label Studio draws on top; then untouched
    predictions. Pixels under no region get `fill`.
    Overlapping classes: planes (K, H, W) bool, each the union of its class's regions, whoever drew them.

    Raises AnnotationError, with the reason, for whatever does not describe this image.
    """
    if isinstance(result, str) or not isinstance(result, Sequence):
        raise AnnotationError(f"an annotation's result must be a list of regions; got {type(result).__name__}")
    untouched: list[tuple[int, BoolMask]] = []
    edited: list[tuple[int, BoolMask]] = []
    drawn: list[tuple[int, BoolMask]] = []
    layers = {_UNTOUCHED: untouched, _EDITED: edited}
    for number, region in enumerate(result):
        try:
            painted = _paint(region, label_set, width, height)
        except AnnotationError as error:
            raise AnnotationError(f"region {number + 1} of {len(result)}: {error}") from error
        layers.get(str(region.get("origin")), drawn).append(painted)
    shape, regions = (height, width), untouched + edited[::-1] + drawn
    mask: Mask
    if label_set.overlap:
        mask = unite_regions(shape, regions, planes=len(label_set.names))
    else:
        mask = compose_regions(shape, regions, fill=fill)
    return AnnotatedMask(mask, len(result), len(edited) + len(drawn))


def encode_bitmask(mask: BoolMask) -> str:
    """A mask (H, W) bool as Label Studio's bitmask: data URL of a 1-bit PNG, black inside and transparent outside."""
    image = Image.fromarray(mask.astype(np.uint8), "P")
    image.putpalette([0] * 6)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=1, transparency=bytes([0, 255]))
    return _DATA_URL + base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_bitmask(url: str, height: int, width: int) -> BoolMask:
    """Mask (H, W) bool of a bitmask, True where it is more than half opaque. Its size is checked before it is decoded."""
    if not isinstance(url, str) or not url.startswith(_DATA_URL):
        raise AnnotationError(f"a bitmask must be a {_DATA_URL!r} string")
    try:
        data = base64.b64decode(url[len(_DATA_URL) :], validate=True)
        if data[12:16] != b"IHDR" or struct.unpack(">II", data[16:24]) != (width, height):
            raise AnnotationError(f"a bitmask must be a PNG of {width}x{height} pixels")
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
    except (binascii.Error, struct.error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(f"a bitmask is not a readable PNG ({error})") from error
    return alpha > _OPAQUE


def _region(index: int, region: BoolMask, label_set: LabelSet, kind: MaskKind) -> dict[str, Any]:
    height, width = region.shape
    value: dict[str, Any] = {_TYPES[kind]: [label_set.names[index]]}
    if kind == "brush":
        value |= {"format": "rle", "rle": encode_rle(region)}
    else:
        value |= {"imageDataURL": encode_bitmask(region)}
    digest = hashlib.sha256(bytes([index]) + np.packbits(region).tobytes()).hexdigest()
    return {
        "id": digest[:10],
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
        raise AnnotationError(f"expected type {' or '.join(_TYPES.values())}, got {kind!r}")
    value = region.get("value")
    if not isinstance(value, Mapping):
        raise AnnotationError("it has no value")
    size = (region.get("original_width"), region.get("original_height"))
    if size != (width, height):
        raise AnnotationError(f"it was drawn on {size[0]}x{size[1]} pixels; the image has {width}x{height}")
    if region.get("image_rotation"):
        raise AnnotationError(f"the image was rotated by {region['image_rotation']} degrees: turn it back and submit again")
    index = _class_index(value.get(str(kind)), label_set)
    if kind == _TYPES["brush"]:
        return index, decode_rle(value.get("rle", ()), height, width)
    return index, decode_bitmask(value.get("imageDataURL", ""), height, width)


def _class_index(labels: Any, label_set: LabelSet) -> int:
    if not isinstance(labels, list) or len(labels) != 1:
        raise AnnotationError(f"expected exactly one label, got {labels!r}")
    if labels[0] not in label_set.names:
        raise AnnotationError(f"unknown label {labels[0]!r}; known are {', '.join(label_set.names)}")
    return label_set.names.index(labels[0])
