"""The mask files of a folder: one of class indices for each image or, where classes overlap, up to one for each class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from activeseg.core.labels import LabelSet, Mask
from activeseg.errors import ConfigError, ImageError, MaskError
from activeseg.imaging.class_folders import class_folders, png_masks
from activeseg.imaging.sandbox import decode_mask, decode_plane
from activeseg.storage.files import read_file

_NOWHERE = " in any class folder; where an image has none of the classes, say so by an empty (all 0) mask in one of them"

MAX_BYTES = 200_000_000
"""Larger files are refused: a mask of a hundred megapixels has a few megabytes."""


@dataclass(frozen=True)
class MaskFiles:
    """The mask files of a folder."""

    folder: Path
    label_set: LabelSet
    max_pixels: int

    @cached_property
    def files(self) -> dict[str, dict[int, Path]]:
        """By the image's stem and then by class index; a file of all exclusive classes stands under 0.

        Raises ConfigError where the folder is not there or not laid out as the classes ask.
        """
        if not self.folder.is_dir():
            raise ConfigError(f"mask folder {self.folder} does not exist")
        if not self.label_set.overlap:
            return {stem: {0: path} for stem, path in _index_masks(self.folder, self.label_set).items()}
        found: dict[str, dict[int, Path]] = {}
        for index, folder in class_folders(self.folder, self.label_set).items():
            for stem, path in png_masks(folder).items():
                found.setdefault(stem, {})[index] = path
        return found

    def read(self, stem: str, size: tuple[int, int]) -> tuple[Mask, str]:
        """The mask of an image of size (H, W), and the sha256 of its file or files. Raises MaskError where it does not fit."""
        paths = self.files.get(stem)
        if paths is None:
            raise MaskError(f"no mask {stem}.png" + (_NOWHERE if self.label_set.overlap else ""))
        return self._planes(paths, size) if self.label_set.overlap else self._indices(paths[0], size)

    def _planes(self, paths: dict[int, Path], size: tuple[int, int]) -> tuple[Mask, str]:
        files = {index: (f"{path.parent.name}/{path.name}", _read(path)) for index, path in sorted(paths.items())}
        digest = hashlib.sha256()
        for index, (_, content) in files.items():
            digest.update(f"{index} {hashlib.sha256(content).hexdigest()}\n".encode())
        return planes_of(files, len(self.label_set.names), size, max_pixels=self.max_pixels), digest.hexdigest()

    def _indices(self, path: Path, size: tuple[int, int]) -> tuple[Mask, str]:
        content = _read(path)
        return indices_of(path.name, content, size, max_pixels=self.max_pixels), hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return read_file(path, MAX_BYTES)
    except OSError as error:
        raise MaskError(f"mask {path.name} cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise MaskError(f"mask {path.name}: {error}".partition(";")[0]) from error


def planes_of(files: Mapping[int, tuple[str, bytes]], count: int, size: tuple[int, int], *, max_pixels: int) -> Mask:
    """Planes (count, H, W) bool from PNG files, class index -> (its name for messages, its bytes). Raises MaskError."""
    mask = np.zeros((count, *size), np.bool_)
    for index, (name, content) in files.items():
        try:
            plane = decode_plane(content, max_pixels=max_pixels)
        except MaskError as error:
            raise MaskError(f"{name}: {error}") from error
        _check_size(plane, size, name)
        mask[index] = plane
    return mask


def indices_of(name: str, content: bytes, size: tuple[int, int], *, max_pixels: int) -> Mask:
    """Class indices (H, W) uint8 from the bytes of a PNG. Raises MaskError, with its name where the size is another."""
    mask = decode_mask(content, max_pixels=max_pixels)
    _check_size(mask, size, name)
    return mask


def _check_size(mask: Mask, size: tuple[int, int], name: str) -> None:
    if mask.shape != size:
        raise MaskError(f"mask {name} is {mask.shape[1]}x{mask.shape[0]}, its image {size[1]}x{size[0]}")


def _index_masks(folder: Path, label_set: LabelSet) -> dict[str, Path]:
    files = png_masks(folder)
    named = [name for name in label_set.names if (folder / name.replace("/", "_")).is_dir()]
    if named and not files:
        raise ConfigError(
            f"mask folder {folder} holds no mask, but folders named like classes ({', '.join(named)}): set [labels] overlap "
            "to true where classes overlap, or name a folder of index masks"
        )
    return files
