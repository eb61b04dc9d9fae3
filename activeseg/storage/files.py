"""What a source of images is: files with a URI and a size, and a way to read one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from activeseg.errors import ImageError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Lower-case suffixes of the files a source lists."""

MAX_STAMP = 100
"""Characters of a stamp, at most."""

MAX_URI = 2048
"""Bytes of a URI, at most: so many characters fit a row, and with much more of them PostgreSQL cannot index it."""

_KEPT = 1900
# No listed file ends like this: each has a suffix.
_SHORTENED = re.compile(r"…[0-9a-f]{32}$")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An image file as listed: its URI (stable, absolute, `storable`) and its size in bytes.

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

    def read(self, uri: str, *, max_bytes: int | None = None) -> bytes:
        """The bytes of one file. Raises ImageError where this file cannot be read, ConfigError where none can.

        max_bytes: ImageError for more, of which no more are read; a file may have grown since it was listed.
        """

    def hidden(self, uris: Iterable[str]) -> set[str]:
        """Those of these unlisted files that may be there all the same: this user may not look."""


def storable(uri: str) -> str:
    """The URI; where no row can hold it, its beginning and a digest: they name a file that is told of and not read."""
    data = uri.encode()
    if len(data) <= MAX_URI:
        return uri
    return f"{data[:_KEPT].decode(errors='ignore')}…{hashlib.sha256(data).hexdigest()[:32]}"


def require_storable(uri: str) -> None:
    """Raise ImageError for what `storable` made of a longer URI."""
    if _SHORTENED.search(uri):
        raise ImageError(
            f"its path is longer than the {MAX_URI} bytes a row holds (letters beyond ASCII count as several): shorten its "
            "name or those of its folders"
        )


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """The bytes of a regular file. Raises OSError where it is none or cannot be read, ImageError for more than `max_bytes`.

    A pipe in its place is not waited for, and a device or a file that grows is not read without end.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        data = file.read() if max_bytes is None else file.read(max_bytes + 1)
    if max_bytes is not None and len(data) > max_bytes:
        raise too_large(max(status.st_size, len(data)), max_bytes)
    return data


def too_large(size: int, max_bytes: int) -> ImageError:
    """The error for a file of more bytes than are read."""
    return ImageError(f"file has {size} bytes, more than the {max_bytes} allowed; shrink it or raise [pool] max_bytes")


def is_listed(relative: str) -> bool:
    """Whether a path relative to the source ('a/b.png') is an image by its suffix and hidden nowhere on the way."""
    suffix = os.path.splitext(relative)[1].lower()
    return suffix in IMAGE_SUFFIXES and not any(part.startswith(".") for part in relative.split("/"))
