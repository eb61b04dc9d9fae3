"""Rows of images and label sets. Functions take a Session and never commit it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.labels import LabelSet
from activeseg.db.models import Image, ImageStatus, LabelSetRow, Query, QueryStatus, Split
from activeseg.records import ImageRef

# Both databases bind more, but not without limit (SQLite: 32,766).
MAX_BIND = 900

# Parts of reasons (of [pool] limits; of `imaging.sandbox`) that say: the same bytes may be usable another time.
_LIMITED = ("raise [pool] max_", "looked at again by the next sync")

_LABELLED = sa.select(sa.column("image_id", sa.Integer)).select_from(sa.table("current_annotations"))

T = TypeVar("T")


def blocks(items: Sequence[T], size: int = MAX_BIND) -> Iterable[Sequence[T]]:
    """`items` cut into slices short enough for one IN list."""
    return (items[start : start + size] for start in range(0, len(items), size))


def label_set_row(session: Session, label_set: LabelSet) -> LabelSetRow:
    """The immutable row of this label set, inserted at first sight."""
    found = session.scalar(sa.select(LabelSetRow).where(LabelSetRow.fingerprint == label_set.fingerprint))
    if found is None:
        found = LabelSetRow(fingerprint=label_set.fingerprint, definition=label_set.as_dict())
        session.add(found)
        session.flush()
    return found


def by_uri(session: Session, uris: Sequence[str]) -> dict[str, list[Image]]:
    """All rows of these files, every content they ever had."""
    rows: dict[str, list[Image]] = {}
    for block in blocks(uris):
        for image in session.scalars(sa.select(Image).where(Image.uri.in_(block)).order_by(Image.id)):
            rows.setdefault(image.uri, []).append(image)
    return rows


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What is recorded of one content of a file.

    decodes: it once could be decoded; limited: it was set aside by a limit in [pool], or for want of memory; stamp: as the
    storage gave it.
    """

    id: int
    uri: str
    sha256: str
    size: int
    stamp: str | None
    status: ImageStatus
    decodes: bool
    limited: bool


def known_files(session: Session, uris: Sequence[str]) -> dict[str, list[KnownFile]]:
    """All rows of these files, every content they ever had; without the cost of whole Image objects."""
    limited = sa.func.coalesce(sa.or_(*(Image.reason.contains(part, autoescape=True) for part in _LIMITED)), sa.false())
    state = (Image.stamp, Image.status, Image.width.is_not(None), limited)
    columns = (Image.id, Image.uri, Image.sha256, Image.size_bytes, *state)
    rows: dict[str, list[KnownFile]] = {}
    for block in blocks(uris):
        for row in session.execute(sa.select(*columns).where(Image.uri.in_(block)).order_by(Image.id)):
            rows.setdefault(row.uri, []).append(KnownFile(*row))
    return rows


def newest_id(session: Session) -> int:
    """The largest id there is, 0 where there is none."""
    return session.scalar(sa.select(sa.func.max(Image.id))) or 0


def present(session: Session, prefix: str) -> Iterator[int]:
    """Ids of active and quarantined images of the pool and of whatever else lies below `prefix`, a few at a time.

    Not those labelled ones without a split that lie elsewhere: they belong to an imported data set.
    """
    elsewhere = sa.and_(Image.split == Split.POOL, Image.id.not_in(_LABELLED))
    statement = sa.select(Image.id).where(
        # LIKE takes Street for street on SQLite.
        sa.or_(sa.func.substr(Image.uri, 1, len(prefix)) == prefix, elsewhere),
        Image.status.in_([ImageStatus.ACTIVE, ImageStatus.QUARANTINED]),
    )
    yield from session.scalars(statement.execution_options(yield_per=10_000))


def record_stamps(session: Session, stamps: Mapping[int, str | None]) -> None:
    """Note what the storage says of the files that were just read. image id -> stamp."""
    rows = [{"id": image_id, "stamp": stamp} for image_id, stamp in stamps.items()]
    if rows:
        session.execute(sa.update(Image), rows)


def name_groups(session: Session, groups: Mapping[int, str]) -> None:
    """Note the clip or site of images that had none. image id -> its name."""
    if groups:
        session.execute(sa.update(Image), [{"id": image_id, "group_name": name} for image_id, name in groups.items()])


def retire(session: Session, image_ids: Sequence[int], status: ImageStatus) -> None:
    """Mark images superseded or missing; queries of theirs that no annotator has seen yet are withdrawn."""
    for block in blocks(image_ids):
        session.execute(sa.update(Image).where(Image.id.in_(block)).values(status=status))
        unseen = sa.update(Query).where(Query.image_id.in_(block), Query.status == QueryStatus.SELECTED)
        session.execute(unseen.values(status=QueryStatus.WITHDRAWN))


def quarantine(session: Session, reasons: Mapping[int, str]) -> None:
    """Set images aside, each with its reason; queries no annotator has seen yet are withdrawn."""
    retire(session, list(reasons), ImageStatus.QUARANTINED)
    for image_id, reason in reasons.items():
        session.execute(sa.update(Image).where(Image.id == image_id).values(reason=reason[:500]))


def set_split(session: Session, image_ids: Sequence[int], split: Split) -> None:
    """Move images out of the pool, into `split`."""
    for block in blocks(image_ids):
        session.execute(sa.update(Image).where(Image.id.in_(block)).values(split=split))


def refs(session: Session, image_ids: Sequence[int]) -> dict[int, ImageRef]:
    """image id -> what a reader of its bytes needs."""
    found: dict[int, ImageRef] = {}
    for block in blocks(image_ids):
        rows = session.execute(sa.select(Image.id, Image.uri, Image.sha256).where(Image.id.in_(block)))
        found.update({image_id: ImageRef(image_id, uri, sha256) for image_id, uri, sha256 in rows})
    return found


def count_by_status(session: Session) -> dict[tuple[Split, ImageStatus], int]:
    """(split, status) -> number of images."""
    statement = sa.select(Image.split, Image.status, sa.func.count()).group_by(Image.split, Image.status)
    return {(split, status): count for split, status, count in session.execute(statement)}
