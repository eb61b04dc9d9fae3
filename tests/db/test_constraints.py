from __future__ import annotations

import math

import pytest
import sqlalchemy as sa

from activeseg.db import images
from activeseg.db.database import Database
from activeseg.db.models import Image, ImageStatus, Query, QueryStatus, Round, Score, Split, TrainingRun, TrainingStatus
from tests.db.rows import Rows


@pytest.mark.parametrize("column", ["entropy_sum", "entropy_mean", "entropy_share", "margin_mean", "least_confidence_mean"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001])
def test_scores_that_are_no_finite_positive_number_are_refused(
    database: Database, rows: Rows, column: str, value: float
) -> None:
    config, image = rows.config(rows.checkpoint()), rows.image()
    with pytest.raises(sa.exc.IntegrityError), database.write() as session:
        session.add(rows.score_row(config, image, **{column: value}))
    with database.read() as session:
        assert session.scalar(sa.select(Score)) is None


@pytest.mark.parametrize("column", ["bald", "tta_jsd"])
@pytest.mark.parametrize("value", [math.inf, -0.001])
def test_disagreement_is_a_finite_positive_number_or_unknown(database: Database, rows: Rows, column: str, value: float) -> None:
    config, image = rows.config(rows.checkpoint()), rows.image()
    with pytest.raises(sa.exc.IntegrityError, match="finite"), database.write() as session:
        session.add(rows.score_row(config, image, **{column: value}))
    with database.write() as session:
        session.add(rows.score_row(config, image, **{column: None}))


def test_a_score_of_zero_is_a_score(rows: Rows) -> None:
    rows.score(rows.config(rows.checkpoint()), rows.image(), 0.0)


def test_an_image_is_scored_once_by_a_configuration(rows: Rows) -> None:
    config, image = rows.config(rows.checkpoint()), rows.image()
    rows.score(config, image, 1.0)
    with pytest.raises(sa.exc.IntegrityError):
        rows.score(config, image, 2.0)


@pytest.mark.parametrize("first", [QueryStatus.SELECTED, QueryStatus.PUSHED])
@pytest.mark.parametrize("second", [QueryStatus.SELECTED, QueryStatus.PUSHED])
def test_an_image_is_in_one_open_query(rows: Rows, first: QueryStatus, second: QueryStatus) -> None:
    image = rows.image()
    rows.query(rows.round(), image, first)
    with pytest.raises(sa.exc.IntegrityError):
        rows.query(rows.round(), image, second)


@pytest.mark.parametrize("first", [QueryStatus.ANNOTATED, QueryStatus.SKIPPED, QueryStatus.WITHDRAWN])
def test_an_answered_or_withdrawn_query_leaves_room_for_another(rows: Rows, first: QueryStatus) -> None:
    image = rows.image()
    rows.query(rows.round(), image, first)
    rows.query(rows.round(), image)


@pytest.mark.parametrize(
    ("table", "column"),
    [("images", "split"), ("images", "status"), ("queries", "status"), ("queries", "arm"), ("rounds", "status")],
)
def test_states_nobody_knows_are_refused(database: Database, rows: Rows, table: str, column: str) -> None:
    rows.query(rows.round(), rows.image())
    with pytest.raises(sa.exc.IntegrityError), database.write() as session:
        session.execute(sa.text(f"UPDATE {table} SET {column} = 'unheard of'"))


def test_the_same_file_with_the_same_content_is_one_row(rows: Rows) -> None:
    rows.image(uri="file:///a.png")
    with pytest.raises(sa.exc.IntegrityError):
        rows.image(uri="file:///a.png")


def test_quarantining_withdraws_only_what_no_annotator_has_seen(database: Database, rows: Rows) -> None:
    unseen, seen = rows.image(), rows.image()
    first = rows.query(rows.round(), unseen, QueryStatus.SELECTED)
    second = rows.query(rows.round(), seen, QueryStatus.PUSHED)
    with database.write() as session:
        images.quarantine(session, {unseen: "x" * 900, seen: "broken"})
    with database.read() as session:
        assert session.get_one(Query, first).status == QueryStatus.WITHDRAWN
        assert session.get_one(Query, second).status == QueryStatus.PUSHED
        assert session.get_one(Image, unseen).status == ImageStatus.QUARANTINED
        assert session.get_one(Image, unseen).reason == "x" * 500


def test_more_ids_than_a_statement_can_bind_are_asked_for_in_blocks(database: Database, rows: Rows) -> None:
    image = rows.image()
    with database.read() as session:
        found = images.refs(session, [*range(10_000, 80_000), image])
    assert list(found) == [image]


def test_a_prefix_with_wildcards_matches_only_itself(database: Database, rows: Rows) -> None:
    inside = rows.image(uri="file:///a_b%/1.png", split=Split.TRAIN)
    rows.image(uri="file:///axbc/1.png", split=Split.TRAIN)
    with database.read() as session:
        assert list(images.present(session, "file:///a_b%/")) == [inside]
        assert list(images.present(session, "file:///A_B%/")) == []


def test_images_of_a_pool_that_moved_are_still_the_pools(database: Database, rows: Rows) -> None:
    moved = rows.image(uri="file:///old/1.png")
    with database.read() as session:
        assert list(images.present(session, "file:///new/")) == [moved]


def test_what_an_error_says_is_kept_in_rows_without_secrets_and_no_longer_than_they_take(
    database: Database, rows: Rows
) -> None:
    number = rows.round()
    run = TrainingRun(
        status=TrainingStatus.FAILED,
        reason="t",
        configuration={},
        code_version="0",
        num_images=1,
        label_set_id=rows.label_set(),
    )
    rows.add(run)
    # Masked before it is cut: what is left of a password in the middle of which a text ends is none of the known shapes.
    for text in ("no answer from http://ada:hunter2secret@labels", f"{'x' * 970} http://ada:hunter2secret@labels is gone"):
        with database.write() as session:
            for kind, row in ((Round, number), (TrainingRun, run.id)):
                session.get_one(kind, row).error = text
        with database.read() as session:
            told = [session.get_one(kind, row).error or "" for kind, row in ((Round, number), (TrainingRun, run.id))]
        assert told == [text.replace("hunter2secret", "***")[:1000]] * 2
