"""Images and their masks from files a user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from activeseg.core.labels import LabelSet, Mask
from activeseg.errors import ConfigError, MaskError, NotReadyError
from activeseg.imaging.class_folders import class_folders, png_masks
from activeseg.imaging.masks import decode_planes
from activeseg.imaging.sandbox import decode_mask, decode_plane

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

_Item = TypeVar("_Item")


def read_mask(path: Path, stem: str, label_set: LabelSet, *, size: tuple[int, ...], max_pixels: int) -> Mask:
    """The mask of the image STEM of `size` (H, W): a file, or STEM.png in a folder.

    Where classes overlap a file holds the planes of all classes one below the other, as activeseg stores them, and a
    folder has a folder for each class, as `class_folders` says, with STEM.png in it; a class without that file is nowhere
    in the image.
    Raises MaskError where it is missing, has more than max_pixels pixels or does not fit the image or the classes, and
    ConfigError as `class_folders`.
    """
    try:
        mask = _read(path, stem, label_set, size, max_pixels)
        label_set.check_mask(mask)
    except OSError as error:
        raise MaskError(f"mask {error.filename} cannot be read: {error.strerror}") from error
    except MaskError as error:
        raise MaskError(f"mask of {stem} in {path}: {error}") from error
    if mask.shape[-2:] != size:
        raise MaskError(f"mask of {stem} in {path} is {mask.shape[-1]}x{mask.shape[-2]}, the image is {size[1]}x{size[0]}")
    return mask


def mask_files(images: Sequence[Path], masks: Sequence[Path]) -> list[Path]:
    """One place to read a mask from for each image. Raises ConfigError unless there is one for each, or one folder."""
    if len(masks) == 1 and masks[0].is_dir():
        return [masks[0]] * len(images)
    if len(masks) != len(images):
        raise ConfigError(f"expected {len(images)} masks, one for each image, or one folder; got {len(masks)}")
    return list(masks)


def image_files(folder: Path) -> list[Path]:
    """The images in a folder, by name. Raises NotReadyError where there is none."""
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise NotReadyError(f"no image in {folder}")
    return files


def spread(items: Sequence[_Item], limit: int) -> list[_Item]:
    """At most `limit` items, evenly spread from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int)
    return [items[place] for place in places]


def _read(path: Path, stem: str, label_set: LabelSet, size: tuple[int, ...], max_pixels: int) -> Mask:
    if not label_set.overlap:
        file = png_masks(path).get(stem, path / f"{stem}.png") if path.is_dir() else path
        return decode_mask(file.read_bytes(), max_pixels=max_pixels)
    if not path.is_dir():
        return decode_planes(path.read_bytes(), len(label_set.names), max_pixels=max_pixels)
    folders = class_folders(path, label_set)
    files = {index: found for index, folder in folders.items() if (found := png_masks(folder).get(stem))}
    if not files:
        raise MaskError(f"no {stem}.png in any folder named like a class")
    planes = np.zeros((len(label_set.names), *size), np.bool_)
    for index, file in files.items():
        plane = decode_plane(file.read_bytes(), max_pixels=max_pixels)
        if plane.shape != planes.shape[1:]:
            raise MaskError(
                f"{file.parent.name}/{file.name} is {plane.shape[1]}x{plane.shape[0]}, the image is {size[1]}x{size[0]}"
            )
        planes[index] = plane
    return planes
