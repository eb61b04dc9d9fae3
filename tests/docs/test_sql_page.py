"""The SQL of docs/sql.md runs as it stands there, on both databases, and its tables tell the views' true columns."""

from __future__ import annotations

import re
from typing import Any

import pytest
import sqlalchemy as sa

from activeseg.db.database import Database
from activeseg.db.models import (
    AnnotationStatus,
    Arm,
    Decision,
    ImageStatus,
    JobOutcome,
    JobRun,
    Model,
    QueryStatus,
    RoundStatus,
    Split,
    TrainingRun,
    TrainingStatus,
)
from activeseg.db.models.columns import now
from activeseg.db.views import VIEWS
from tests.db.rows import Rows
from tests.docs.pages import PAGES, ROOT, blocks, commands, text_of

PAGE = ROOT / "docs" / "sql.md"
QUERIES = blocks(PAGE, "sql")
_COLUMN = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


@pytest.fixture
def filled(database: Database) -> Database:
    """Two rounds of a loop that went well: files 0001..0006 in the pool, the first three and a control image asked about."""
    rows = Rows(database)
    images = [rows.image(uri=f"file:///pool/{number:04d}.png") for number in range(1, 7)]
    for version, quality, entropy in (("fcn-one", 0.4, 10.0), ("fcn-two", 0.6, 5.0)):
        checkpoint = rows.checkpoint(version, Decision.PROMOTED)
        train(rows, checkpoint)
        rows.evaluation(checkpoint, quality)
        rows.evaluation(checkpoint, quality / 2, class_name="ball")
        config = rows.config(checkpoint)
        rows.run(config, images_planned=6, images_done=6, images_per_second=3.5, coverage=1.0)
        for place, image in enumerate(images):
            rows.score(config, image, entropy * (place + 1), {0: 1.0, 1: 2.0, 2: entropy * place})
    round_id = rows.round(RoundStatus.PUSHED)
    project = rows.project()
    for number, arm in ((2, Arm.CHOSEN), (3, Arm.CONTROL)):
        query = rows.query(round_id, images[number], QueryStatus.ANNOTATED, arm)
        outside = (project, number)
        rows.annotation(images[number], outside=outside, query_id=query, annotator="ann", lead_time=9.5, changed_share=0.25)
    rows.query(round_id, images[4], QueryStatus.PUSHED)
    rows.image(uri="file:///pool/broken.png", status=ImageStatus.QUARANTINED, reason="file is empty (0 bytes)")
    labelled = rows.image(uri="file:///train/1.png", split=Split.TRAIN)
    rows.annotation(labelled, status=AnnotationStatus.QUARANTINED, reason="it has no value")
    rows.add(JobRun(job="round", host="here", pid=1, outcome=JobOutcome.DONE, message="push 3", started_at=now()))
    return database


def train(rows: Rows, checkpoint: int) -> None:
    """A training that made this checkpoint."""
    done = TrainingRun(
        status=TrainingStatus.DONE,
        reason="first",
        configuration={},
        code_version="0",
        label_set_id=rows.label_set(),
        checkpoint_id=checkpoint,
        num_images=8,
        started_at=now(),
        ended_at=now(),
    )
    rows.add(done)


def run(database: Database, statement: str) -> list[tuple[Any, ...]]:
    """Rows of a query, given to the driver untouched, as a person's own tool would."""
    with database.engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute(statement.rstrip().rstrip(";"))
        return list(cursor.fetchall())


def test_every_query_of_the_page_runs_and_finds_something(filled: Database) -> None:
    assert len(QUERIES) >= 8
    for query in QUERIES:
        assert run(filled, query), f"nothing found by:\n{query}"


def test_the_page_answers_what_it_says(filled: Database) -> None:
    """Its answers for rows whose truth is known by hand."""
    least_sure, one_class, classes, one_image, asked, curve = (run(filled, query) for query in QUERIES[:6])
    assert [row[0] for row in least_sure] == [1, 2, 3, 4, 5, 6]
    assert [row[1] for row in least_sure] == [30.0, 25.0, 20.0, 15.0, 10.0, 5.0]
    assert [row[2] for row in one_class] == [25.0, 20.0, 15.0, 10.0, 5.0, 0.0]
    assert [(row[0], row[1]) for row in classes] == [(2, 75.0), (1, 12.0), (0, 6.0)]
    assert sorted((row[0], row[1], row[2]) for row in one_image) == [("fcn-one", 6, 10.0), ("fcn-two", 6, 5.0)]
    assert [(row[1], row[5], row[6], row[8]) for row in asked] == [("control", "annotated", "ann", 0.25)]
    assert [row[1] for row in curve] == [0.4, 0.6]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_queries_in_shell_commands_run_too(page: Any, sqlite_url: str) -> None:
    database = Database(sqlite_url)
    for command in commands(page):
        if command.words[0] in ("sqlite3", "psql"):
            statement = command.words[-1]
            if not statement.startswith("."):
                run(database, statement)
    database.close()


def test_every_view_is_documented_with_its_true_columns(filled: Database) -> None:
    sections = {part.split("\n", 1)[0]: part for part in text_of(PAGE).split("\n### ")[1:]}
    assert set(sections) == set(VIEWS)
    inspector = sa.inspect(filled.engine)
    for name, section in sections.items():
        true_columns = [column["name"] for column in inspector.get_columns(name)]
        assert _COLUMN.findall(section) == true_columns, f"docs/sql.md, {name}: the view has {true_columns}"


def test_every_table_stands_in_the_architecture() -> None:
    page = text_of(ROOT / "docs" / "architecture.md").split("## The tables", 1)[1].split("\n## ", 1)[0]
    assert set(_COLUMN.findall(page)) == set(Model.metadata.tables)
