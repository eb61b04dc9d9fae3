from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db.bulk import insert_rows
from activeseg.db.database import Database
from activeseg.db.models import ClassScoreRow, Image, ImageStatus, Score, ScoringRun, Split
from activeseg.db.models.columns import now
from activeseg.db.scores import insert_scores
from activeseg.errors import NonFiniteScoreError
from activeseg.records import ClassScore, ImageScore
from tests.db.rows import Rows


def image_score(image: int, entropy: float = 1 / 3) -> ImageScore:
    """Figures that have no short decimal form; a class that is predicted nowhere has no confidence."""
    parts = tuple(ClassScore(index, entropy / 7, 5 * index, entropy / 9, 2 / 3 if index else None) for index in range(3))
    cells = tuple(entropy * cell / 11 for cell in range(64))
    return ImageScore(image, entropy, entropy / 3072, 3072, 0.1, 2 / 7, 1e-300, cells, parts)


def run_of(rows: Rows) -> ScoringRun:
    with rows.database.read() as session:
        config = rows.config(rows.checkpoint())
        return session.get_one(ScoringRun, rows.runs[config])


def stored(database: Database, model: Any, config: int) -> list[dict[str, Any]]:
    """What the driver has, whatever the models make of it."""
    table = model.__table__
    columns = [column.name for column in table.columns if column.name not in ("scoring_config_id", "scoring_run_id")]
    statement = f"SELECT {', '.join(columns)} FROM {table.name} WHERE scoring_config_id = {config} ORDER BY 1, 2"
    with database.read() as session:
        return [dict(row) for row in session.execute(sa.text(statement)).mappings()]


def test_bulk_rows_are_those_the_models_write(database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = now()
    monkeypatch.setattr("activeseg.db.scores.now", lambda: moment)
    bulk, one_by_one = run_of(rows), run_of(rows)
    scores = [image_score(rows.image(), entropy) for entropy in (0.0, 1 / 3, 798104.5)]
    with database.write() as session:
        insert_scores(session, bulk, scores)
    with database.write() as session:
        for score in scores:
            elsewhere = ("classes", "feature", "gradient")
            values = {name: getattr(score, name) for name in ImageScore.__slots__ if name not in elsewhere}
            session.add(Score(scoring_config_id=one_by_one.scoring_config_id, scoring_run_id=one_by_one.id,
                              scored_at=moment, **values))  # fmt: skip
            for part in score.classes:
                figures = {name: getattr(part, name) for name in ClassScore.__slots__}
                identity = {"scoring_config_id": one_by_one.scoring_config_id, "image_id": score.image_id}
                session.add(ClassScoreRow(**identity, **figures))
    for model, count in ((Score, 3), (ClassScoreRow, 9)):
        found = stored(database, model, bulk.scoring_config_id)
        assert len(found) == count
        assert found == stored(database, model, one_by_one.scoring_config_id)
    with database.read() as session:
        row = session.get_one(Score, (bulk.scoring_config_id, scores[1].image_id))
    assert (row.scored_at, row.scoring_run_id) == (moment, bulk.id)
    assert row.grid == pytest.approx(scores[1].grid, rel=2**-24)


def write(session: Session, run: ScoringRun, scores: list[ImageScore]) -> None:
    """As a stage does: a chunk and how far the run is, in one transaction."""
    session.get_one(ScoringRun, run.id).images_done = len(scores)
    insert_scores(session, run, scores)


@pytest.mark.parametrize("fault", ["twice", "unknown image", "negative", "negative class"])
def test_a_violated_constraint_leaves_nothing_behind(database: Database, rows: Rows, fault: str) -> None:
    run, scores = run_of(rows), [image_score(rows.image()) for _ in range(3)]
    last = scores[-1]
    scores[-1] = {
        "twice": scores[0],
        "unknown image": replace(last, image_id=10**6),
        "negative": replace(last, margin_mean=-0.001),
        "negative class": replace(last, classes=(replace(last.classes[0], region_entropy_sum=-1.0),)),
    }[fault]
    with pytest.raises(sa.exc.IntegrityError), database.write() as session:
        write(session, run, scores)
    assert stored(database, Score, run.scoring_config_id) == stored(database, ClassScoreRow, run.scoring_config_id) == []
    with database.write() as session:
        assert session.get_one(ScoringRun, run.id).images_done == 0
        write(session, run, scores[:2])
    assert len(stored(database, Score, run.scoring_config_id)) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["entropy_sum", "grid", "mean_confidence"])
def test_what_is_not_finite_is_refused_by_the_images_number(
    sqlite_url: str, place: str, value: float, request: pytest.FixtureRequest
) -> None:
    database = Database(sqlite_url)
    request.addfinalizer(database.close)
    rows = Rows(database)
    run, good = run_of(rows), image_score(rows.image())
    bad = {
        "entropy_sum": replace(good, entropy_sum=value),
        "grid": replace(good, grid=(*good.grid[:-1], value)),
        "mean_confidence": replace(good, classes=(replace(good.classes[0], mean_confidence=value),)),
    }[place]
    with pytest.raises(NonFiniteScoreError, match=f"image {good.image_id}: expected finite"), database.write() as session:
        insert_scores(session, run, [good, bad])
    assert stored(database, Score, run.scoring_config_id) == []


def test_nothing_to_write_is_no_statement(database: Database, rows: Rows) -> None:
    run = run_of(rows)
    with database.write() as session:
        insert_scores(session, run, [])


def test_texts_and_states_go_in_bulk_too(database: Database, rows: Rows) -> None:
    values = [(f"file:///{place}.png", "0" * 64, 1, None, Split.POOL, ImageStatus.ACTIVE, now()) for place in range(3)]
    names = ("uri", "sha256", "size_bytes", "width", "split", "status", "created_at")
    with database.write() as session:
        insert_rows(session, Image, names, values)
    with database.read() as session:
        found = session.scalars(sa.select(Image).order_by(Image.id)).all()
    assert [tuple(getattr(row, name) for name in names) for row in found] == values
