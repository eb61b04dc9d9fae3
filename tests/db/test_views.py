from __future__ import annotations

import random
from typing import Any

import pytest
import sqlalchemy as sa

from activeseg.db.database import Database
from activeseg.db.models import Decision, ImageStatus, QueryStatus, Split, TrainingRun, TrainingStatus
from activeseg.db.views import VIEWS
from tests.db.rows import Rows, minutes


def select(database: Database, statement: str) -> list[dict[str, Any]]:
    with database.read() as session:
        return [dict(row) for row in session.execute(sa.text(statement)).mappings()]


def training(rows: Rows, checkpoint: int | None, num_images: int, status: TrainingStatus = TrainingStatus.DONE) -> int:
    return rows.add(
        TrainingRun(
            status=status,
            reason="test",
            configuration={},
            code_version="0",
            label_set_id=rows.label_set(),
            checkpoint_id=checkpoint,
            num_images=num_images,
            ended_at=minutes(5),
        )
    )


@pytest.mark.parametrize("view", list(VIEWS))
def test_a_view_of_an_empty_database_is_empty(database: Database, view: str) -> None:
    assert select(database, f"SELECT * FROM {view}") == []


@pytest.mark.parametrize("seed", range(3))
def test_the_ranking_view_descends_with_ranks_from_one(database: Database, rows: Rows, seed: int) -> None:
    draw = random.Random(seed)
    config = rows.config(rows.checkpoint("fcn-1", Decision.PROMOTED))
    images = [rows.image() for _ in range(30)]
    scores = {image: draw.randrange(12) / 4 for image in draw.sample(images, 30)}
    for image, entropy in scores.items():
        rows.score(config, image, entropy)
    found = select(database, "SELECT * FROM uncertainty_ranking ORDER BY rank")
    expected = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    assert [(row["image_id"], row["entropy_sum"]) for row in found] == expected
    assert [row["rank"] for row in found] == list(range(1, 31))
    assert {row["model_version"] for row in found} == {"fcn-1"}


def test_the_ranking_view_shows_only_the_active_pool(database: Database, rows: Rows) -> None:
    config = rows.config(rows.checkpoint(decision=Decision.PROMOTED))
    kept = rows.image()
    for image in (
        kept, rows.image(split=Split.TRAIN), rows.image(split=Split.TEST), rows.image(status=ImageStatus.QUARANTINED),
        rows.image(status=ImageStatus.MISSING), rows.image(status=ImageStatus.SUPERSEDED),
    ):  # fmt: skip
        rows.score(config, image, float(image))
    assert [(row["rank"], row["image_id"]) for row in select(database, "SELECT * FROM uncertainty_ranking")] == [(1, kept)]
    assert len(select(database, "SELECT * FROM uncertainty_ranking_history")) == 6


def test_the_ranking_view_shows_the_champions_newest_configuration(database: Database, rows: Rows) -> None:
    champion, other, image = rows.checkpoint(decision=Decision.PROMOTED), rows.checkpoint(), rows.image()
    for entropy, checkpoint in enumerate([champion, champion, other], 1):
        rows.score(rows.config(checkpoint), image, float(entropy))
    assert [row["entropy_sum"] for row in select(database, "SELECT * FROM uncertainty_ranking")] == [2.0]
    history = select(database, "SELECT * FROM uncertainty_ranking_history ORDER BY scoring_config_id")
    assert [(row["rank"], row["entropy_sum"]) for row in history] == [(1, 1.0), (1, 2.0), (1, 3.0)]


def test_the_ranking_view_follows_the_champion_at_once(database: Database, rows: Rows) -> None:
    first, second, image = rows.checkpoint("a", Decision.PROMOTED), rows.checkpoint("b", Decision.REFUSED), rows.image()
    rows.score(rows.config(first), image, 1.0)
    rows.score(rows.config(second), image, 2.0)

    def shown() -> list[str]:
        return [row["model_version"] for row in select(database, "SELECT * FROM uncertainty_ranking")]

    assert shown() == ["a"]
    rows.decide(second, Decision.PROMOTED)
    assert shown() == ["b"]
    rows.decide(first, Decision.REFUSED)
    assert shown() == ["b"]
    rows.decide(first, Decision.ROLLED_BACK)
    assert shown() == ["a"]


def test_a_champion_that_scored_nothing_yet_has_an_empty_ranking(database: Database, rows: Rows) -> None:
    old = rows.checkpoint(decision=Decision.PROMOTED)
    rows.score(rows.config(old), rows.image(), 1.0)
    rows.checkpoint(decision=Decision.PROMOTED)
    assert select(database, "SELECT * FROM uncertainty_ranking") == []


def test_the_learning_curve_is_mean_iou_over_training_size(database: Database, rows: Rows) -> None:
    first, second = rows.checkpoint("a"), rows.checkpoint("b")
    training(rows, first, 8)
    training(rows, None, 9, TrainingStatus.FAILED)
    training(rows, second, 20)
    rows.evaluation(first, 0.5)
    rows.evaluation(second, 0.625)
    rows.evaluation(second, 0.75, split=Split.TRAIN)
    rows.evaluation(second, 0.1, class_name="ball")
    found = select(database, "SELECT * FROM learning_curve ORDER BY training_run_id, split DESC")
    assert [(row["model_version"], row["num_images"], row["split"], row["mean_iou"]) for row in found] == [
        ("a", 8, "val", 0.5),
        ("b", 20, "val", 0.625),
        ("b", 20, "train", 0.75),
    ]


def test_annotation_progress_counts_each_rounds_queries(database: Database, rows: Rows) -> None:
    full, _ = rows.round(), rows.round()
    for status in (*[QueryStatus.ANNOTATED] * 3, *[QueryStatus.SKIPPED] * 2, *QueryStatus):
        rows.query(full, rows.image(), status)
    found = select(database, "SELECT * FROM annotation_progress ORDER BY round")
    columns = ("images", "annotated", "skipped", "withdrawn", "open")
    assert [tuple(row[name] for name in columns) for row in found] == [(10, 4, 3, 1, 2), (0, 0, 0, 0, 0)]


def test_scoring_throughput_has_a_row_a_run(database: Database, rows: Rows) -> None:
    config = rows.config(rows.checkpoint("a"))
    rows.run(config, images_planned=9, images_done=7, images_failed=2, images_per_second=4.5, coverage=1.0)
    found = select(database, "SELECT * FROM scoring_throughput ORDER BY scoring_run_id")
    assert [row["images_done"] for row in found] == [0, 7]
    assert (found[1]["model_version"], found[1]["images_per_second"], found[1]["coverage"]) == ("a", 4.5, 1.0)
