"""What people are shown of an image, on both databases."""

from __future__ import annotations

import pytest

from activeseg.db import shown
from activeseg.db.models import Checkpoint, Decision, ImageStatus, Prediction
from tests.db.rows import Rows

SHA = "0" * 64


def predict(rows: Rows, image: int, checkpoint: int | None, *, entropy: str | None = "pictures/x.png") -> int:
    source = f"checkpoint:{checkpoint}" if checkpoint else "graphcut:x@0"
    return rows.add(
        Prediction(
            image_id=image,
            source=source,
            checkpoint_id=checkpoint,
            mask_location=f"mask/{rows.next()}.png",
            mask_sha256=SHA,
            entropy_location=entropy,
        )
    )


def test_the_champions_prediction_comes_first_and_without_one_the_youngest(rows: Rows) -> None:
    image, bare = rows.image(), rows.image()
    predict(rows, image, None, entropy=None)
    with rows.database.read() as session:
        found = shown.prediction_of(session, image)
        assert found is not None
        assert (found.model_version, found.of_champion, found.mask.label_set) == (None, False, None)
        assert shown.prediction_of(session, bare) is None
    champion, other = rows.checkpoint("m1", Decision.PROMOTED), rows.checkpoint("m2", Decision.REFUSED)
    predict(rows, image, champion)
    predict(rows, image, other)
    predict(rows, bare, champion, entropy=None)
    with rows.database.read() as session:
        found = shown.prediction_of(session, image)
        assert found is not None
        assert (found.model_version, found.of_champion) == ("m1", True)
        row = session.get_one(Checkpoint, champion)
        assert shown.with_entropy_map(session, row, [image, bare]) == {image}


def test_an_images_confidence_is_the_mean_over_its_predicted_pixels(rows: Rows) -> None:
    checkpoint = rows.checkpoint("m1", Decision.PROMOTED)
    config = rows.config(checkpoint)
    rows.run(config)
    image, nothing = rows.image(), rows.image()
    for one, parts in ((image, {0: (300, 0.9), 1: (100, 0.5), 2: (0, None)}), (nothing, {0: (0, None)})):
        rows.score(config, one, 1.0)
        for index, (pixels, confidence) in parts.items():
            row = rows.class_row(config, one, index, 1.0)
            row.region_pixels, row.mean_confidence = pixels, confidence
            rows.add(row)
    with rows.database.read() as session:
        found = shown.mean_confidences(session, session.get_one(Checkpoint, checkpoint), [image, nothing])
    assert found == {image: pytest.approx((300 * 0.9 + 100 * 0.5) / 400)}


def test_what_came_back_last_are_answers_that_count_of_images_that_are_there(rows: Rows) -> None:
    round_id = rows.round()
    first, second, gone, imported = rows.image(), rows.image(), rows.image(status=ImageStatus.MISSING), rows.image()
    for image in (first, second, first, gone):
        rows.annotation(image, query_id=rows.query(round_id, image) if image is not first else None, at=rows.next())
    rows.annotation(first, query_id=rows.query(round_id, first), at=50)
    rows.annotation(imported, at=60)
    with rows.database.read() as session:
        assert [row.image_id for row in shown.last_answered(session, limit=5)] == [first, second]
        assert [row.image_id for row in shown.last_answered(session, limit=1)] == [first]
