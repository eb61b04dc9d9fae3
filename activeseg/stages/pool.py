"""files -> images: registers what is in the pool, sets aside what cannot be read, notices what changed or vanished."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from activeseg.core.idset import IdSet
from activeseg.db import groups, images
from activeseg.db.images import KnownFile
from activeseg.db.models import Image, ImageStatus, Split
from activeseg.errors import ImageError, NotReadyError
from activeseg.imaging.decode import ImageInfo
from activeseg.imaging.sandbox import cores, probe
from activeseg.records import StageReport
from activeseg.storage.files import SourceFile, too_large
from activeseg.workspace import Workspace

CHUNK = 128
"""Files read between two commits."""
LISTED = 1024
"""Files looked up at once."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file that was looked at, what is recorded of it, and what its bytes are; `problem` says why it cannot be used."""

    file: SourceFile
    known: Sequence[KnownFile]
    size: int
    sha256: str
    info: ImageInfo | None
    problem: str | None

    @property
    def same(self) -> KnownFile | None:
        """The row of these bytes."""
        return next((row for row in self.known if row.sha256 == self.sha256), None)


def sync_pool(workspace: Workspace, *, full: bool = False) -> StageReport:
    """Bring the images table up to date with the pool's files.

    New content becomes a row (quarantined with a reason where it cannot be decoded); a file whose bytes changed becomes a
    new row and supersedes the old one; a file that is gone is marked missing and comes back when it returns; what lies in a
    folder that may not be looked into stays as it is. Commits after every chunk of files it has read. Raises NotReadyError
    where there is not one file.

    A file whose size and stamp are as they were when it was last read is not read again, unless `full`. An image without a
    group, also an imported one, gets the one that `group_pattern` finds now; one that has a group keeps it. Memory grows
    with the pool by a bit an image.
    """
    started, counts = time.monotonic(), Counter[str]()
    group = groups.group_reader(workspace.settings.pool.group_pattern)
    listed = IdSet()
    with workspace.database.read() as session:
        newest = images.newest_id(session)
    for files in _chunks(workspace.pool_source.files(), LISTED):
        with workspace.database.read() as session:
            known = images.known_files(session, [file.uri for file in files])
        listed.update(row.id for rows in known.values() for row in rows)
        unsettled = [file for file in files if full or not _is_settled(file, known.get(file.uri, []))]
        counts.update(files=len(files), unchanged=len(files) - len(unsettled))
        for chunk in _chunks(iter(unsettled), CHUNK):
            seen = _look_at_all(workspace, chunk, known)
            with workspace.database.write() as session:
                counts.update(_register(session, item, group(item.file.uri)) for item in seen)
                _record_stamps(session, seen)
    if not counts["files"]:
        # Before anything is marked missing: an unmounted disk may leave an empty folder behind.
        raise NotReadyError(f"no images in {workspace.settings.images_uri}: put images there or set [pool] images")
    counts["missing"] = _mark_missing(workspace, listed, newest)
    written = sum(counts[name] for name in ("new", "quarantined", "returned", "missing"))
    details: dict[str, Any] = {name: counts[name] for name in ("new", "returned", "missing", "unchanged")}
    details |= groups.name_and_tell(workspace.database, group)
    return StageReport("pool sync", written, counts["quarantined"], time.monotonic() - started, details)


def _is_settled(file: SourceFile, known: Sequence[KnownFile]) -> bool:
    """Whether these are the bytes that were read last, and what came of them cannot have changed since.

    Not so for what was set aside after it had been decoded (its disk may be back), for what was never read (no permission),
    for what was over a limit, which may have been raised, nor for what is not this file's present content.
    """
    if file.stamp is None:
        return False
    for row in known:
        bad = row.status == ImageStatus.QUARANTINED and not row.decodes and row.sha256 and not row.limited
        final = row.status == ImageStatus.ACTIVE or bad
        if final and (row.size, row.stamp) == (file.size, file.stamp):
            return True
    return False


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(items, size)):
        yield chunk


def _look_at_all(workspace: Workspace, files: Sequence[SourceFile], known: Mapping[str, Sequence[KnownFile]]) -> list[_Seen]:
    """Several at a time: their decoders are processes, which are waited for."""
    with ThreadPoolExecutor(cores(), thread_name_prefix="activeseg-look") as readers:
        return list(readers.map(lambda file: _look(workspace, file, known.get(file.uri, [])), files))


def _look(workspace: Workspace, file: SourceFile, known: Sequence[KnownFile]) -> _Seen:
    """Read and hash a file; decode it only where these bytes were never seen, or were over a limit."""
    limits = workspace.settings.pool
    if file.size > limits.max_bytes:
        return _Seen(file, known, file.size, "", None, str(too_large(file.size, limits.max_bytes)))
    try:
        data = workspace.pool_source.read(file.uri, max_bytes=limits.max_bytes)
    except ImageError as error:
        return _Seen(file, known, file.size, "", None, str(error))
    digest = hashlib.sha256(data).hexdigest()
    if any(row.sha256 == digest and (row.decodes or not row.limited) for row in known):
        return _Seen(file, known, len(data), digest, None, None)
    try:
        info = probe(data, max_pixels=limits.max_pixels, policy=workspace.input_policy)
        return _Seen(file, known, len(data), digest, info, None)
    except ImageError as error:
        return _Seen(file, known, len(data), digest, None, str(error))


def _register(session: Session, seen: _Seen, group: str | None) -> str:
    """Write one file's state; returns what happened to it."""
    retired = (ImageStatus.SUPERSEDED, ImageStatus.MISSING)
    others = [row.id for row in seen.known if row is not seen.same and row.status not in retired]
    images.retire(session, others, ImageStatus.SUPERSEDED)
    if seen.same is not None:
        return _see_again(session, seen.same, seen.info)
    # New content is a new image: unlabelled, whatever the old one was.
    session.add(
        Image(
            uri=seen.file.uri,
            sha256=seen.sha256,
            size_bytes=seen.size,
            stamp=seen.file.stamp,
            width=seen.info.width if seen.info else None,
            height=seen.info.height if seen.info else None,
            group_name=group,
            split=Split.POOL,
            status=ImageStatus.ACTIVE if seen.info else ImageStatus.QUARANTINED,
            reason=seen.problem[:500] if seen.problem else None,
        )
    )
    return "new" if seen.info else "quarantined"


def _see_again(session: Session, known: KnownFile, info: ImageInfo | None) -> str:
    """info: of bytes that decode now and did not before."""
    # Its bytes were just read, and that they once decoded means: what set it aside since (a disk away) is over.
    decodes = known.decodes or info is not None
    if known.status == ImageStatus.ACTIVE or (known.status == ImageStatus.QUARANTINED and not decodes):
        return "unchanged"
    held = session.get_one(Image, known.id)
    if info is not None:
        held.width, held.height = info.width, info.height
    held.status = ImageStatus.ACTIVE if decodes else ImageStatus.QUARANTINED
    held.reason = None if decodes else held.reason
    return "returned"


def _record_stamps(session: Session, seen: Iterable[_Seen]) -> None:
    differing = {item.same.id: item.file.stamp for item in seen if item.same and item.same.stamp != item.file.stamp}
    images.record_stamps(session, differing)


def _mark_missing(workspace: Workspace, listed: IdSet, newest: int) -> int:
    """Retire what was there before this run, up to the id `newest`, and was not listed."""
    prefix = workspace.settings.images_uri.rstrip("/") + "/"
    with workspace.database.read() as session:
        gone = [image_id for image_id in images.present(session, prefix) if image_id <= newest and image_id not in listed]
        refs = images.refs(session, gone)
    hidden = workspace.pool_source.hidden(ref.uri for ref in refs.values())
    gone = [image_id for image_id in gone if refs[image_id].uri not in hidden]
    if gone:
        with workspace.database.write() as session:
            images.retire(session, gone, ImageStatus.MISSING)
    return len(gone)
