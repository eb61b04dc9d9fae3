"""files -> images: registers what is in the pool, sets aside what cannot be read, notices what changed or vanished."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from sqlalchemy.orm import Session

from activeseg.db import images
from activeseg.db.models import Image, ImageStatus, Split
from activeseg.errors import ConfigError, ImageError, NotReadyError
from activeseg.imaging.decode import ImageInfo, probe
from activeseg.records import StageReport
from activeseg.storage.files import SourceFile
from activeseg.workspace import Workspace

CHUNK = 128
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A listed file and what its bytes are; `problem` says why it cannot be used."""

    uri: str
    size: int
    sha256: str
    info: ImageInfo | None
    problem: str | None


def sync_pool(workspace: Workspace) -> StageReport:
    """Bring the images table up to date with the pool's files.

    New content becomes a row (quarantined with a reason where it cannot be decoded); a file whose bytes changed becomes
    a new row and supersedes the old one; a file that is gone is marked missing and comes back when it returns. Commits
    after every chunk of files. Raises NotReadyError where there is not one file.
    """
    started, counts = time.monotonic(), Counter[str]()
    group = _group_reader(workspace.settings.pool.group_pattern)
    listed: set[str] = set()
    for chunk in _chunks(workspace.pool_source.files(), CHUNK):
        listed.update(file.uri for file in chunk)
        with workspace.database.read() as session:
            known = images.by_uri(session, [file.uri for file in chunk])
        seen = [_look(workspace, file, known.get(file.uri, [])) for file in chunk]
        with workspace.database.write() as session:
            for item in seen:
                counts[_register(session, item, known.get(item.uri, []), group(item.uri))] += 1
    if not listed:
        # Before anything is marked missing: an unmounted disk may leave an empty folder behind.
        raise NotReadyError(f"no images in {workspace.settings.images_uri}: put images there or set [pool] images")
    counts["missing"] = _mark_missing(workspace, listed)
    written = sum(counts[name] for name in ("new", "quarantined", "returned", "missing"))
    details = {name: counts[name] for name in ("new", "returned", "missing", "unchanged")}
    return StageReport("pool sync", written, counts["quarantined"], time.monotonic() - started, details)


def _group_reader(pattern: str | None) -> _GroupReader:
    try:
        return _GroupReader(re.compile(pattern) if pattern else None)
    except re.error as error:
        raise ConfigError(f"[pool] group_pattern {pattern!r} is not a regular expression: {error}") from error


@dataclass(frozen=True, slots=True)
class _GroupReader:
    """The clip or site in an image's path: the pattern's first group, or the whole match."""

    pattern: re.Pattern[str] | None

    def __call__(self, uri: str) -> str | None:
        match = self.pattern.search(uri) if self.pattern else None
        if match is None:
            return None
        return str(match.group(1) if match.re.groups else match.group(0))[:255]


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(items, size)):
        yield chunk


def _look(workspace: Workspace, file: SourceFile, known: list[Image]) -> _Seen:
    """Read and hash a file; decode it only where these bytes were never seen."""
    limits = workspace.settings.pool
    if file.size > limits.max_bytes:
        problem = f"file has {file.size} bytes, more than the {limits.max_bytes} allowed; shrink it or raise [pool] max_bytes"
        return _Seen(file.uri, file.size, "", None, problem)
    try:
        data = workspace.pool_source.read(file.uri)
    except ImageError as error:
        return _Seen(file.uri, file.size, "", None, str(error))
    digest = hashlib.sha256(data).hexdigest()
    if any(image.sha256 == digest for image in known):
        return _Seen(file.uri, len(data), digest, None, None)
    try:
        return _Seen(file.uri, len(data), digest, probe(data, max_pixels=limits.max_pixels), None)
    except ImageError as error:
        return _Seen(file.uri, len(data), digest, None, str(error))


def _register(session: Session, seen: _Seen, known: list[Image], group: str | None) -> str:
    """Write one file's state; returns what happened to it."""
    same = next((image for image in known if image.sha256 == seen.sha256), None)
    retired = (ImageStatus.SUPERSEDED, ImageStatus.MISSING)
    others = [image.id for image in known if image is not same and image.status not in retired]
    images.retire(session, others, ImageStatus.SUPERSEDED)
    if same is not None:
        return _see_again(session, same)
    # New content is a new image: unlabelled, whatever the old one was.
    session.add(
        Image(
            uri=seen.uri,
            sha256=seen.sha256,
            size_bytes=seen.size,
            width=seen.info.width if seen.info else None,
            height=seen.info.height if seen.info else None,
            group_name=group,
            split=Split.POOL,
            status=ImageStatus.ACTIVE if seen.info else ImageStatus.QUARANTINED,
            reason=seen.problem[:500] if seen.problem else None,
        )
    )
    return "new" if seen.info else "quarantined"


def _see_again(session: Session, image: Image) -> str:
    # Its bytes were just read, and a width says that they once decoded: what set it aside since (a disk away) is over.
    sound = image.width is not None
    if image.status == ImageStatus.ACTIVE or (image.status == ImageStatus.QUARANTINED and not sound):
        return "unchanged"
    held = session.get_one(Image, image.id)
    held.status = ImageStatus.ACTIVE if sound else ImageStatus.QUARANTINED
    held.reason = None if sound else held.reason
    return "returned"


def _mark_missing(workspace: Workspace, listed: set[str]) -> int:
    prefix = workspace.settings.images_uri.rstrip("/") + "/"
    with workspace.database.write() as session:
        gone = [image_id for uri, image_id in images.active_uris(session, prefix).items() if uri not in listed]
        images.retire(session, gone, ImageStatus.MISSING)
    return len(gone)
