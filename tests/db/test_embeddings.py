"""Embeddings are written once, found again by whoever made them, and missed where they are missing."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa

from activeseg.core.embedding import pack, unpack
from activeseg.db import embeddings
from activeseg.db.database import Database
from activeseg.db.models import Embedder, Embedding, ImageStatus, Split
from tests.db.rows import Rows


def vector(number: int) -> bytes:
    return pack(np.random.default_rng(number).normal(size=128))


def test_an_embedder_is_made_once_and_knows_its_configuration(database: Database, rows: Rows) -> None:
    config, other = rows.config(rows.checkpoint()), rows.config(rows.checkpoint())
    with database.write() as session:
        assert embeddings.find_embedder(session, embeddings.FEATURES.format(config)) is None
        made = [embeddings.feature_embedder(session, config) for _ in range(2)]
        made += [embeddings.gradient_embedder(session, config), embeddings.feature_embedder(session, other)]
        made.append(embeddings.embedder(session, "start weights"))
        assert embeddings.find_embedder(session, embeddings.FEATURES.format(config)) == made[0]
    assert made[0] == made[1]
    assert len(set(made)) == 4
    with database.read() as session:
        configs = {row.id: row.scoring_config_id for row in session.scalars(sa.select(Embedder))}
    assert [configs[one] for one in made] == [config, config, config, other, None]


def test_embeddings_come_back_as_they_were_in_the_order_asked_for(database: Database, rows: Rows) -> None:
    images = [rows.image() for _ in range(4)]
    packed = {image: vector(image) for image in images}
    with database.write() as session:
        one, other = (embeddings.embedder(session, name) for name in ("one", "other"))
        embeddings.insert(session, one, {image: packed[image] for image in images[:3]})
        embeddings.insert(session, other, {images[3]: packed[images[3]]})
    order = [images[2], 999_999, images[3], images[0]]
    with database.read() as session:
        found, vectors = embeddings.load(session, one, order)
        assert found == [images[2], images[0]]
        assert np.array_equal(vectors, unpack([packed[image] for image in found]))
        assert embeddings.without(session, one, order) == [999_999, images[3]]
        found, vectors = embeddings.load(session, one, [])
        assert (found, vectors.shape) == ([], (0, 128))


def test_an_image_keeps_its_first_embedding(database: Database, rows: Rows) -> None:
    first, second = rows.image(), rows.image()
    with database.write() as session:
        embedder = embeddings.embedder(session, "one")
        embeddings.insert(session, embedder, {first: vector(1)})
        embeddings.insert(session, embedder, {first: vector(2), second: vector(3)})
        embeddings.insert(session, embedder, {})
    with database.read() as session:
        kept = {row.image_id: row.vector for row in session.scalars(sa.select(Embedding))}
    assert kept == {first: vector(1), second: vector(3)}


@pytest.mark.parametrize("page", [1, 2, 100])
def test_images_without_an_embedding_are_found_page_by_page(database: Database, rows: Rows, page: int) -> None:
    config = rows.config(rows.checkpoint())
    scored = [rows.image() for _ in range(4)]
    for image in scored:
        rows.score(config, image, 1.0)
    unscored, labelled = rows.image(), rows.image(split=Split.TRAIN)
    rows.image(split=Split.TRAIN, status=ImageStatus.MISSING)
    rows.image(split=Split.VAL)
    with database.write() as session:
        embedder = embeddings.feature_embedder(session, config)
        embeddings.insert(session, embedder, {scored[1]: vector(1)})
    expected = {
        embeddings.labelled(): [labelled],
        embeddings.in_pool(config): [scored[0], *scored[2:]],
        embeddings.in_pool(): [scored[0], *scored[2:], unscored],
    }
    for which, images in expected.items():
        pages = list(embeddings.missing_pages(database, embedder, which, page=page))
        assert [image.image_id for one in pages for image in one] == images
        assert max(map(len, pages)) <= page
        with database.read() as session:
            assert embeddings.count_missing(session, embedder, which) == len(images)
