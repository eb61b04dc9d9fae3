"""Clips and sites: which one an image belongs to by its path, and which are in training and validation alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import images
from activeseg.db.database import Database
from activeseg.db.models import Image, ImageStatus, Split
from activeseg.errors import ConfigError

IN_BOTH = "groups in both train and val"
"""How reports and the status call them."""
_ROWS = 10_000
_LONGEST = 255  # as long as the column is
_TOLD = 3


@dataclass(frozen=True, slots=True)
class GroupReader:
    """Finds the clip or site in an image's path: what the pattern's first group matches, or the whole pattern."""

    pattern: re.Pattern[str] | None

    def __call__(self, uri: str) -> str | None:
        """Its name; None where nothing is found."""
        match = self.pattern.search(uri) if self.pattern else None
        if match is None:
            return None
        # The first group may be an alternative that did not take part.
        name = match.group(1) if match.re.groups else match.group(0)
        return name[:_LONGEST] if name else None


def group_reader(pattern: str | None) -> GroupReader:
    """Reads groups by [pool] group_pattern. Raises ConfigError where it is no regular expression."""
    try:
        return GroupReader(re.compile(pattern) if pattern else None)
    except re.error as error:
        raise ConfigError(f"[pool] group_pattern {pattern!r} is not a regular expression: {error}") from error


def name_and_tell(database: Database, group: GroupReader) -> dict[str, Any]:
    """Name the groups of all images that have none yet, also of labelled ones; what a stage's report says of groups.

    They were registered before `group_pattern` was set, or under one that did not fit. Commits page by page.
    """
    named = _name_missing(database, group) if group.pattern else 0
    with database.read() as session:
        both = told_in_both(session)
    return ({"got a group": named} if named else {}) | ({IN_BOTH: both} if both else {})


def _name_missing(database: Database, group: GroupReader) -> int:
    named = 0
    for page in _nameless(database):
        found = {image_id: name for image_id, uri in page if (name := group(uri)) is not None}
        if found:
            with database.write() as session:
                images.name_groups(session, found)
        named += len(found)
    return named


def _nameless(database: Database) -> Iterator[Sequence[sa.Row[int, str]]]:
    """(id, uri) of the images without a group, a page at a time: no transaction is open while a page is looked through."""
    last, rows = 0, sa.select(Image.id, Image.uri).where(Image.group_name.is_(None)).order_by(Image.id).limit(_ROWS)
    while True:
        with database.read() as session:
            page = session.execute(rows.where(Image.id > last)).all()
        if not page:
            return
        yield page
        last = page[-1].id


def in_both(session: Session) -> list[str]:
    """Names of groups with usable images in the training and in the validation split.

    The loop brings none about: they were imported so, or named when their images had splits already.
    """
    train, val = (
        sa.select(Image.group_name).where(
            Image.split == split, Image.status == ImageStatus.ACTIVE, Image.group_name.is_not(None)
        )
        for split in (Split.TRAIN, Split.VAL)
    )
    return sorted(name for name in session.scalars(sa.intersect(train, val)) if name is not None)


def told_in_both(session: Session) -> str | None:
    """'2 (clip_01, clip_07)': how many groups are in both splits, and the first of them. None where there is none."""
    names = in_both(session)
    if not names:
        return None
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return f"{len(names)} ({', '.join(names[:_TOLD])}{more})"
