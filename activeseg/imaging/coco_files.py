"""COCO files: masks written as one segmentation for each class of an image, and read from whoever wrote them.

Categories are classes by name; their ids are class indices + 1, as COCO counts. A pixel under no segmentation is unlabelled.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np

from activeseg.core.labels import LabelSet, Mask
from activeseg.core.masks import compose_regions, split_regions, unite_regions
from activeseg.errors import DataError, MaskError
from activeseg.imaging.coco import BoolMask, decode_counts, draw_polygons, encode_rle
from activeseg.storage.manifest import is_unicode

ANNOTATED = "activeseg_annotated"
"""True at an image without annotations says that somebody looked at it. The format itself cannot tell that from an image that
nobody has annotated yet."""

MAX_ANNOTATIONS = 2_000
MAX_POLYGONS = 20_000
"""More than these of one image are refused: each costs a walk over its pixels or its outline."""

_SUPPORTED = "expected polygons [[x1, y1, ...], ...] or run lengths {'size': [height, width], 'counts': list or text}"


class CocoWriter:
    """Writes masks of a label set to a COCO file, image by image: what is held does not grow with the masks.

    iscrowd is 0, as in COCO's stuff format: a region may be several things, but none of it is to be left out.
    """

    def __init__(self, stream: TextIO, label_set: LabelSet) -> None:
        self.stream, self.label_set = stream, label_set
        self.images: list[dict[str, Any]] = []
        self.count = 0
        stream.write('{\n"annotations": [')

    def add(self, name: str, mask: Mask) -> None:
        """A mask of the label set's kind, of the image of this file name."""
        height, width = mask.shape[-2:]
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": name, "height": height, "width": width})
        before = self.count
        for index, region in split_regions(mask, range(len(self.label_set.names))):
            self.stream.write(",\n" if self.count else "\n")
            self.count += 1
            self.stream.write(_dumps(_annotation(self.count, number, index + 1, region)))
        if self.count == before:
            self.images[-1][ANNOTATED] = True

    def close(self) -> None:
        """Write what stands around the annotations."""
        parts = {
            "categories": [_category(self.label_set, index) for index in range(len(self.label_set.names))],
            "images": self.images,
            "info": {"description": "activeseg dataset export", "uncovered_pixels": "unlabelled", "version": "1"},
            "licenses": [],
        }
        self.stream.write("\n]")
        for name, value in parts.items():
            self.stream.write(f",\n{_dumps(name)}: {_lines(value) if isinstance(value, list) else _dumps(value)}")
        self.stream.write("\n}\n")


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image as a COCO file lists it, with its annotations, which nobody has checked yet."""

    name: str
    width: Any
    height: Any
    annotations: list[Any] = field(default_factory=list)
    marked: bool = False

    @property
    def annotated(self) -> bool:
        """Whether somebody is known to have annotated it: it has annotations, or our own exporter's mark."""
        return self.marked or bool(self.annotations)


@dataclass(frozen=True, slots=True)
class CocoFile:
    """A COCO file. images: by file name; categories: id -> name; problems: of images and annotations that are unusable."""

    images: Mapping[str, CocoImage]
    categories: Mapping[int, str]
    problems: Mapping[str, str]

    def mask(self, name: str, size: tuple[int, int], label_set: LabelSet, *, fill: int) -> Mask:
        """The mask of an image of (H, W), of the label set's kind.

        Where classes exclude each other a later annotation lies over an earlier one, and uncovered pixels are `fill`.
        Raises MaskError, with the reason, for what does not describe this image.
        """
        image = self.images.get(name)
        if image is None:
            raise MaskError(f"image {name} is not in the COCO file")
        if (image.height, image.width) != size:
            said = f"{image.width!r:.20}x{image.height!r:.20}"
            raise MaskError(f"the COCO file says that it is {said}, it is {size[1]}x{size[0]} when it stands upright")
        _check_number(image.annotations)
        regions = ((self._class_of(item, label_set), _region(item.get("segmentation"), size)) for item in image.annotations)
        if label_set.overlap:
            return unite_regions(size, regions, planes=len(label_set.names))
        return compose_regions(size, regions, fill=fill)

    def _class_of(self, annotation: Any, label_set: LabelSet) -> int:
        identity = annotation.get("category_id")
        name = self.categories.get(identity) if type(identity) is int else None
        if name is None:
            raise MaskError(f"category {identity!r:.40} is not in the categories of the COCO file")
        if name not in label_set.names:
            raise MaskError(f"category {name[:60]!r} is no class; the class list has: {', '.join(label_set.names)}")
        return label_set.names.index(name)


def parse_coco(document: Any) -> CocoFile:
    """A COCO file from its JSON.

    What is wrong with one image is in its problems. Raises DataError where it is none, and where it is not clear which image an
    annotation belongs to or which class a category is: any image might lack something then.
    """
    parts = [document.get(name) if isinstance(document, dict) else None for name in ("images", "annotations", "categories")]
    if not all(isinstance(part, list) for part in parts):
        raise DataError("expected a COCO file: an object with lists of images, annotations and categories")
    problems: dict[str, str] = {}
    listed = parts[0] or []
    images = _images(listed, problems)
    ids = {item["id"] for item in listed if isinstance(item, dict) and type(item.get("id")) is int}
    for number, annotation in enumerate(parts[1] or []):
        identity = annotation.get("image_id") if isinstance(annotation, dict) else None
        if type(identity) is not int or identity not in ids:
            raise DataError(f"annotation {number + 1} belongs to no listed image: its image_id is {identity!r:.40}")
        if identity in images:
            images[identity].annotations.append(annotation)
    return CocoFile({image.name: image for image in images.values()}, _categories(parts[2] or []), problems)


def _images(items: Sequence[Any], problems: dict[str, str]) -> dict[int, CocoImage]:
    found: dict[int, CocoImage] = {}
    sound = [item for item in items if _is_listed(item, "file_name")]
    if len(sound) < len(items):
        problems["images"] = f"{len(items) - len(sound)} of them have no whole number as id or no file name"
    names, ids = Counter(item["file_name"] for item in sound), Counter(item["id"] for item in sound)
    for item in sound:
        if names[item["file_name"]] > 1 or ids[item["id"]] > 1:
            problems[item["file_name"]] = "its file name or its id is listed more than once"
        else:
            marked = item.get(ANNOTATED) is True
            found[item["id"]] = CocoImage(item["file_name"], item.get("width"), item.get("height"), marked=marked)
    return found


def _is_listed(item: Any, name: str) -> bool:
    """Whether it is an object with a whole number as id and some text as name, which can be written."""
    if not (isinstance(item, dict) and type(item.get("id")) is int and isinstance(item.get(name), str)):
        return False
    return bool(item[name]) and is_unicode(item[name])


def _categories(items: Sequence[Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for item in items:
        if _is_listed(item, "name") and found.setdefault(item["id"], item["name"]) != item["name"]:
            said = f"{found[item['id']][:40]!r} and {item['name'][:40]!r}"
            raise DataError(f"category {item['id']} is listed with two names: {said}")
    return found


def _check_number(annotations: Sequence[Any]) -> None:
    if len(annotations) > MAX_ANNOTATIONS:
        raise MaskError(f"it has {len(annotations)} annotations, more than the {MAX_ANNOTATIONS} that are read: merge some")
    segmentations = [item.get("segmentation") for item in annotations]
    polygons = sum(len(segmentation) for segmentation in segmentations if isinstance(segmentation, list))
    if polygons > MAX_POLYGONS:
        raise MaskError(f"it has {polygons} polygons, more than the {MAX_POLYGONS} that are read: give run lengths")


def _region(segmentation: Any, size: tuple[int, int]) -> BoolMask:
    if isinstance(segmentation, list) and segmentation:
        return draw_polygons(segmentation, size)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), list | str):
        raise MaskError(f"segmentation: {_SUPPORTED}; got {segmentation!r:.60}")
    if segmentation.get("size") != list(size):
        said = segmentation.get("size")
        raise MaskError(f"segmentation: its size [height, width] is {said!r:.40}, that of its image {list(size)}")
    return decode_counts(segmentation["counts"], size)


def _annotation(number: int, image: int, category: int, region: BoolMask) -> dict[str, Any]:
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": encode_rle(region),
        "area": int(region.sum()),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "iscrowd": 0,
    }


def _category(label_set: LabelSet, index: int) -> dict[str, Any]:
    shown = {"id": index + 1, "name": label_set.names[index], "supercategory": "", "color": list(label_set.colors[index])}
    return shown | ({"ignored": True} if index == label_set.ignore_index else {})


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _lines(items: Sequence[Any]) -> str:
    return "[\n" + ",\n".join(map(_dumps, items)) + "\n]" if items else "[]"
