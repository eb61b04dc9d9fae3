"""File names for exported images: unique in their split, the same whenever the same images are exported."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

_LONGEST = 180  # with a hash and '.png' below the 255 bytes a file system takes
_UNFIT = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


def export_names(images: Sequence[tuple[str, str, str]], pool: str) -> list[str]:
    """A file name for each (split, uri, sha256): the path inside the pool (`pool` ends with a slash) with '__' for '/', or,
    for an image from elsewhere, its own name.

    Masks are called like images but for the suffix, so two images whose names would differ in the suffix or in upper and
    lower case only both get a hash of their uri and content, also those whose names had to be cut.
    """
    plain = [_plain(uri, pool) for _, uri, _ in images]
    wanted = [(split, _folded(PurePosixPath(name).stem)) for (split, _, _), name in zip(images, plain, strict=True)]
    often = Counter(wanted)
    return [
        _with_hash(name, uri, sha256) if often[key] > 1 or len(name.encode()) > _LONGEST else name
        for name, key, (_, uri, sha256) in zip(plain, wanted, images, strict=True)
    ]


def _plain(uri: str, pool: str) -> str:
    inside = uri.removeprefix(pool) if uri.startswith(pool) else uri.rsplit("/", 1)[-1]
    name = _UNFIT.sub("_", inside.replace("/", "__"))
    return f"_{name}" if name.startswith(".") else name


def _folded(stem: str) -> str:
    """Equal for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())


def _with_hash(name: str, uri: str, sha256: str) -> str:
    path = PurePosixPath(name)
    stem = path.stem.encode()[:_LONGEST].decode(errors="ignore")
    return f"{stem}-{hashlib.sha256(f'{uri} {sha256}'.encode()).hexdigest()[:12]}{path.suffix[:8]}"
