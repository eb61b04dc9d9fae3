"""How both databases read the ranking and the work: in the order of an index, never sorting, however deep the page."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import sqlalchemy as sa

from activeseg.db import requests, truth
from activeseg.db.bulk import insert_rows
from activeseg.db.database import Database
from activeseg.db.models import (
    Checkpoint,
    Decision,
    Image,
    Model,
    RequestRow,
    Score,
    Split,
    TrainingRun,
    TrainingRunAnnotation,
    TrainingStatus,
)
from activeseg.db.models.columns import now
from activeseg.db.rankings import Cursor, ranking
from activeseg.db.scores import work_pages
from tests.db.rows import Rows

SIZE, CONFIGS = 3000, 4
COLUMNS = "image_id, uri, entropy_sum, entropy_mean, model_version, scored_at"
PAGES = {
    "first": f"SELECT {COLUMNS} FROM uncertainty_ranking ORDER BY entropy_sum DESC, image_id LIMIT 20",
    "after": f"SELECT {COLUMNS} FROM uncertainty_ranking WHERE entropy_sum <= 500.5 AND (entropy_sum < 500.5 OR image_id > 7) "
    "ORDER BY entropy_sum DESC, image_id LIMIT 20",
    "numbered": f"SELECT row_number() OVER (ORDER BY entropy_sum DESC, image_id) AS place, {COLUMNS} "
    "FROM uncertainty_ranking ORDER BY entropy_sum DESC, image_id LIMIT 20",
}


@pytest.fixture
def filled(database: Database, rows: Rows) -> Database:
    """A pool large enough for planners to care, scored by four checkpoints; the last one is the champion."""
    with database.write() as session:
        values = [(i, f"file:///{i}.png", "0" * 64, 1, "pool", "active", now()) for i in range(1, SIZE + 1)]
        insert_rows(session, Image, ("id", "uri", "sha256", "size_bytes", "split", "status", "created_at"), values)
    names = ("entropy_sum", "entropy_mean", "entropy_share", "margin_mean", "least_confidence_mean", "valid_pixels")
    columns = ("scoring_config_id", "scoring_run_id", "image_id", *names, "grid", "scored_at")
    for _ in range(CONFIGS):
        config = rows.config(rows.checkpoint(decision=Decision.PROMOTED))
        run, when = rows.runs[config], now()
        scores = ((config, run, i, i * 7919 % SIZE / 2, 0.5, 0.5, 0.5, 0.5, 9, [0.0], when) for i in range(1, SIZE + 1))
        with database.write() as session:
            insert_rows(session, Score, columns, scores)
    with database.write() as session:
        session.execute(sa.text("ANALYZE"))
    return database


def plan(database: Database, statement: str, parameters: Any = None) -> str:
    """The database's own words."""
    explain = "EXPLAIN (COSTS OFF)" if database.dialect == "postgresql" else "EXPLAIN QUERY PLAN"
    with database.read() as session:
        rows = session.connection().exec_driver_sql(f"{explain} {statement}", parameters)
        return "\n".join(str(row[-1]) for row in rows)


def asked(database: Database, call: Any, table: str = "scores") -> list[tuple[str, Any]]:
    """The statements on a table that a function sends, with their parameters."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, text: str, parameters: Any, *_: Any) -> None:
        if table in text:
            statements.append((text, parameters))

    sa.event.listen(database.engine, "before_cursor_execute", note)
    call()
    sa.event.remove(database.engine, "before_cursor_execute", note)
    return statements


def assert_walks_the_ranking(text: str) -> None:
    assert "ix_scores_ranking" in text, text
    assert not any(word in text for word in ("Sort", "TEMP B-TREE", "AUTOMATIC", "Seq Scan on scores", "SCAN scores")), text


def test_pages_of_the_view_are_read_from_the_ranking_index_without_a_sort(filled: Database) -> None:
    for statement in PAGES.values():
        assert_walks_the_ranking(plan(filled, statement))
    assert "entropy_sum<" in plan(filled, PAGES["after"]).replace(" ", ""), "the page does not begin at its first row"


def test_pages_of_the_view_are_the_ranking(filled: Database) -> None:
    with filled.read() as session:
        pages = {name: session.execute(sa.text(text)).all() for name, text in PAGES.items()}
        ranked = session.execute(sa.text("SELECT rank, image_id, entropy_sum FROM uncertainty_ranking ORDER BY rank")).all()
    assert [row.rank for row in ranked] == list(range(1, SIZE + 1))
    order = [row.image_id for row in ranked]
    assert [row.image_id for row in pages["first"]] == order[:20]
    assert [(row.place, row.image_id) for row in pages["numbered"]] == list(enumerate(order[:20], 1))
    behind = [row.image_id for row in ranked if (row.entropy_sum, -row.image_id) < (500.5, -7)]
    assert [row.image_id for row in pages["after"]] == behind[:20]


def test_our_own_pages_are_read_from_the_ranking_index_without_a_sort(filled: Database) -> None:
    def call() -> None:
        with filled.read() as session:
            champion = session.scalars(sa.select(Checkpoint).order_by(Checkpoint.id.desc())).first()
            assert champion is not None
            for after in (None, Cursor(1000, 500.5, 7)):
                assert len(ranking(session, champion, limit=20, after=after)) == 20

    pages = [(text, values) for text, values in asked(filled, call) if "entropy_mean" in text]
    assert len(pages) == 2
    for text, parameters in pages:
        assert_walks_the_ranking(plan(filled, text, parameters))


def test_pages_of_work_are_read_from_an_index_in_their_order(filled: Database, rows: Rows) -> None:
    config = rows.config(rows.checkpoint())
    new = asked(filled, lambda: list(islice(work_pages(filled, config, page=20), 2)))
    ranked = asked(filled, lambda: list(islice(work_pages(filled, config, previous=2, page=20), 2)))[1:]
    assert len(new) == len(ranked) == 2
    for text, parameters in new:
        words = plan(filled, text, parameters)
        assert not any(word in words for word in ("Sort", "TEMP B-TREE", "Seq Scan", "SCAN images")), words
    for text, parameters in ranked:
        assert_walks_the_ranking(plan(filled, text, parameters))


def test_whether_a_request_waits_is_known_without_reading_those_that_were_taken(database: Database) -> None:
    values = [("pull", {}, "label studio webhook", now(), now()) for _ in range(SIZE)]
    with database.write() as session:
        insert_rows(session, RequestRow, ("kind", "argument", "requested_by", "created_at", "taken_at"), values)
        session.execute(sa.text("ANALYZE"))

    def call() -> None:
        with database.read() as session:
            assert not requests.is_waiting(session, [requests.PULL, requests.ROUND])

    [(text, parameters)] = asked(database, call, "requests")
    assert "ix_requests_waiting" in plan(database, text, parameters)


def test_a_deleted_row_is_looked_up_by_index_in_whatever_refers_to_it() -> None:
    deleted = {"predictions", "evaluations", "job_runs", "requests", "schedule_slots"}
    tables = Model.metadata.tables.values()
    keys = {(table.name, key.parent.name) for table in tables for key in table.foreign_keys if key.column.table.name in deleted}
    assert keys == {("tasks", "prediction_id")}
    for name, column in keys:
        assert column in {next(iter(index.columns)).name for index in Model.metadata.tables[name].indexes}


def test_whether_trainings_saw_an_annotation_is_read_from_an_index(database: Database, rows: Rows) -> None:
    annotations = [rows.annotation(rows.image(split=Split.TRAIN)) for _ in range(3)]
    runs = [
        TrainingRun(
            status=TrainingStatus.DONE,
            reason="t",
            configuration={},
            code_version="0",
            num_images=1,
            label_set_id=rows.label_set(),
        )
        for _ in range(2)
    ]
    for run in runs:
        rows.add(run)
        rows.add(TrainingRunAnnotation(training_run_id=run.id, annotation_id=annotations[0]))

    def call() -> None:
        with database.read() as session:
            assert truth.untrained(session) == 2

    [(text, parameters)] = asked(database, call, "training_run_annotations")
    # So few rows are read as a whole on PostgreSQL, whatever there is.
    if database.dialect == "sqlite":
        assert "ix_training_run_annotations_annotation_id" in plan(database, text, parameters)
