"""What a source of images is: files with a URI and a size, and a way to read one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Lower-case suffixes of the files a source lists."""

MAX_STAMP = 100
"""Characters of a stamp, at most."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An image file as listed: its URI (stable, absolute) and its size in bytes.

    stamp: up to MAX_STAMP characters, given anew by the place whenever the bytes change: the same size and stamp mean the
    same bytes. None where the place cannot promise that, so that the file has to be read.
    """

    uri: str
    size: int
    stamp: str | None = None


class ImageSource(Protocol):
    """A place that images come from."""

    def files(self) -> Iterator[SourceFile]:
        """All images by suffix, hidden ones left out, sorted by path. Raises ConfigError where the place is gone."""

    def read(self, uri: str) -> bytes:
        """The bytes of one file. Raises ImageError where this file cannot be read, ConfigError where none can."""

    def hidden(self, uris: Iterable[str]) -> set[str]:
        """Those of these unlisted files that may be there all the same: this user may not look."""


def is_listed(relative: str) -> bool:
    """Whether a path relative to the source ('a/b.png') is an image by its suffix and hidden nowhere on the way."""
    suffix = os.path.splitext(relative)[1].lower()
    return suffix in IMAGE_SUFFIXES and not any(part.startswith(".") for part in relative.split("/"))
