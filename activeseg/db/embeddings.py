"""Embeddings: where images lie for an embedder. Written once, beside the scores or before there are any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.embedding import unpack
from activeseg.db.bulk import insert_rows
from activeseg.db.database import Database
from activeseg.db.images import blocks
from activeseg.db.models import Embedder, Embedding, Image, ImageStatus, Score, Split
from activeseg.records import ImageRef

FEATURES, GRADIENTS = "features of scoring configuration {}", "gradients of scoring configuration {}"
"""Names of the embedders below."""


def find_embedder(session: Session, name: str) -> int | None:
    """The embedder of that name, if there is one."""
    return session.scalar(sa.select(Embedder.id).where(Embedder.name == name))


def embedder(session: Session, name: str, scoring_config_id: int | None = None) -> int:
    """The same, inserted at first sight."""
    found = find_embedder(session, name)
    if found is not None:
        return found
    row = Embedder(name=name, scoring_config_id=scoring_config_id)
    session.add(row)
    session.flush()
    return row.id


def feature_embedder(session: Session, scoring_config_id: int) -> int:
    """What the network of a scoring configuration sees in an image; the score stage makes its row before it begins."""
    return embedder(session, FEATURES.format(scoring_config_id), scoring_config_id)


def gradient_embedder(session: Session, scoring_config_id: int) -> int:
    """How it would change if its prediction were right, for badge_seg."""
    return embedder(session, GRADIENTS.format(scoring_config_id), scoring_config_id)


def insert(session: Session, embedder_id: int, vectors: Mapping[int, bytes]) -> None:
    """Write packed embeddings by image id; of an image that has one already the old one stays."""
    missing = without(session, embedder_id, list(vectors))
    session.flush()
    rows = ((embedder_id, image_id, vectors[image_id]) for image_id in missing)
    insert_rows(session, Embedding, ("embedder_id", "image_id", "vector"), rows)


def load(session: Session, embedder_id: int, image_ids: Sequence[int]) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Those of the images that have an embedding, in the order given, and their embeddings (M, 128) as rows."""
    found: list[int] = []
    parts = [unpack([])]
    for block in blocks(image_ids):
        statement = sa.select(Embedding.image_id, Embedding.vector)
        statement = statement.where(Embedding.embedder_id == embedder_id, Embedding.image_id.in_(block))
        packed = {row.image_id: row.vector for row in session.execute(statement)}
        present = [image_id for image_id in block if image_id in packed]
        found += present
        parts.append(unpack([packed[image_id] for image_id in present]))
    return found, np.concatenate(parts)


def without(session: Session, embedder_id: int, image_ids: Sequence[int]) -> list[int]:
    """Those of the images that have no embedding, in the order given."""
    present: set[int] = set()
    for block in blocks(image_ids):
        statement = sa.select(Embedding.image_id)
        statement = statement.where(Embedding.embedder_id == embedder_id, Embedding.image_id.in_(block))
        present.update(session.scalars(statement))
    return [image_id for image_id in image_ids if image_id not in present]


def labelled() -> sa.ColumnElement[bool]:
    """Images that are trained on: distances are measured to them, too, though they are not scored any more."""
    return Image.split == Split.TRAIN


def in_pool(scoring_config_id: int | None = None) -> sa.ColumnElement[bool]:
    """Images of the pool; with a configuration, those that have a score under it."""
    if scoring_config_id is None:
        return Image.split == Split.POOL
    scored = sa.exists().where(Score.scoring_config_id == scoring_config_id, Score.image_id == Image.id)
    return sa.and_(Image.split == Split.POOL, scored)


def count_missing(session: Session, embedder_id: int, which: sa.ColumnElement[bool]) -> int:
    """How many active images of these have no embedding."""
    return session.scalar(sa.select(sa.func.count()).select_from(Image).where(_lack(embedder_id), which)) or 0


def missing_pages(
    database: Database, embedder_id: int, which: sa.ColumnElement[bool], *, page: int = 1024
) -> Iterator[list[ImageRef]]:
    """The active images of these without an embedding by id, at most `page` at a time, each page when it is asked for."""
    after = 0
    statement = sa.select(Image.id, Image.uri, Image.sha256).where(_lack(embedder_id), which).order_by(Image.id).limit(page)
    while True:
        with database.read() as session:
            rows = session.execute(statement.where(Image.id > after)).all()
        if not rows:
            return
        after = rows[-1].id
        yield [ImageRef(row.id, row.uri, row.sha256) for row in rows]


def _lack(embedder_id: int) -> sa.ColumnElement[bool]:
    has = sa.exists().where(Embedding.embedder_id == embedder_id, Embedding.image_id == Image.id)
    return sa.and_(Image.status == ImageStatus.ACTIVE, ~has)
