"""Which images of the pool a training may learn from without labels."""

from __future__ import annotations

import hashlib
import heapq

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import images
from activeseg.db.models import Image, ImageStatus, Split
from activeseg.db.truth import CURRENT
from activeseg.records import ImageRef


def draw(session: Session, count: int, *, seed: int) -> list[int]:
    """Ids of at most `count` images nobody has labelled, drawn by seed.

    None that has a mask waiting for a split (it may become a validation image), and none of a group (clip, site) that has
    validation or test images. An image's place follows from seed and content alone, so those drawn from two pools that
    overlap do, too. Memory grows with `count`, not with the pool.
    """
    frozen = Image.split.in_([Split.VAL, Split.TEST])
    kept_out = sa.select(Image.group_name).where(frozen, Image.group_name.is_not(None))
    statement = sa.select(Image.id, Image.sha256).where(
        Image.split == Split.POOL,
        Image.status == ImageStatus.ACTIVE,
        sa.or_(Image.group_name.is_(None), Image.group_name.not_in(kept_out)),
        Image.id.not_in(sa.select(CURRENT.c.image_id)),
    )
    rows = session.execute(statement.execution_options(yield_per=10_000))
    return [image_id for _, image_id in heapq.nsmallest(count, ((_place(seed, row.sha256), row.id) for row in rows))]


def refs(session: Session, image_ids: list[int]) -> list[ImageRef]:
    """What a reader of these images needs, in the order given."""
    found = images.refs(session, image_ids)
    return [found[image_id] for image_id in image_ids]


def _place(seed: int, sha256: str) -> bytes:
    return hashlib.blake2b(f"{seed} {sha256}".encode(), digest_size=8).digest()
