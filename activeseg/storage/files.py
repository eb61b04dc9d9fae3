"""What a source of images is: files with a URI and a size, and a way to read one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Lower-case suffixes of the files a source lists."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An image file as listed: its URI (stable, absolute) and its size in bytes."""

    uri: str
    size: int


class ImageSource(Protocol):
    """A place that images come from."""

    def files(self) -> Iterator[SourceFile]:
        """All images by suffix, hidden ones left out, sorted by path. Raises ConfigError where the place is gone."""

    def read(self, uri: str) -> bytes:
        """The bytes of one file. Raises ImageError where this file cannot be read, ConfigError where none can."""


def is_listed(relative: str) -> bool:
    """Whether a path relative to the source ('a/b.png') is an image by its suffix and hidden nowhere on the way."""
    path = PurePosixPath(relative)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in path.parts)
