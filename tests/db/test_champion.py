from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.db import checkpoints
from activeseg.db.checkpoints import EvaluationFigures
from activeseg.db.database import Database
from activeseg.db.models import Decision, Promotion, Split
from activeseg.errors import NotReadyError
from activeseg.records import ClassMetric
from tests.db.rows import Rows


def pointer(database: Database) -> str | None:
    with database.read() as session:
        found = checkpoints.champion(session)
        view = session.scalar(sa.text("SELECT model_version FROM champion"))
    assert (found.model_version if found else None) == view
    return view


def roll_back(database: Database) -> None:
    with database.write() as session:
        previous = checkpoints.previous_champion(session)
        assert previous is not None
        checkpoints.decide(session, previous.id, Decision.ROLLED_BACK, "test", decided_by="test")


def former(database: Database) -> str | None:
    with database.read() as session:
        found = checkpoints.previous_champion(session)
        return found.model_version if found else None


def test_without_a_promotion_there_is_no_champion(database: Database, rows: Rows) -> None:
    rows.checkpoint("a", Decision.REFUSED)
    assert pointer(database) is None
    assert former(database) is None
    with database.read() as session, pytest.raises(NotReadyError, match="activeseg dataset import"):
        checkpoints.require_champion(session)


def test_a_refusal_leaves_the_champion(database: Database, rows: Rows) -> None:
    rows.checkpoint("a", Decision.PROMOTED)
    rows.checkpoint("b", Decision.REFUSED)
    assert pointer(database) == "a"


def test_two_rollbacks_go_two_back(database: Database, rows: Rows) -> None:
    for version in "abc":
        rows.checkpoint(version, Decision.PROMOTED)
    rows.checkpoint("refused", Decision.REFUSED)
    roll_back(database)
    assert pointer(database) == "b"
    roll_back(database)
    assert pointer(database) == "a"
    assert former(database) is None


def ranking(session: Session) -> list[tuple[str, int]]:
    return [
        tuple(row) for row in session.execute(sa.text("SELECT model_version, image_id FROM uncertainty_ranking ORDER BY rank"))
    ]


def test_a_rollback_moves_the_pointer_and_the_ranking_at_one_moment_or_not_at_all(database: Database, rows: Rows) -> None:
    dull, bright = rows.image(), rows.image()
    for version, scores in (("a", (1.0, 2.0)), ("b", (2.0, 1.0))):
        config = rows.config(rows.checkpoint(version, Decision.PROMOTED))
        for image, score in zip((dull, bright), scores, strict=True):
            rows.score(config, image, score)
    former, latest = [("a", bright), ("a", dull)], [("b", dull), ("b", bright)]

    def roll(session: Session) -> None:
        target = checkpoints.previous_champion(session)
        assert target is not None
        checkpoints.decide(session, target.id, Decision.ROLLED_BACK, "test", decided_by="test")

    def killed_in_the_middle() -> None:
        with database.write() as session:
            roll(session)
            assert ranking(session) == former
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed_in_the_middle()
    assert pointer(database) == "b"
    with database.write() as session:
        roll(session)
        with database.read() as beside:  # who reads meanwhile sees both as they were
            assert (ranking(beside), checkpoints.require_champion(beside).model_version) == (latest, "b")
    with database.read() as session:
        assert (ranking(session), checkpoints.require_champion(session).model_version) == (former, "a")


def test_a_promotion_after_a_rollback_goes_back_to_where_it_came_from(database: Database, rows: Rows) -> None:
    rows.checkpoint("a", Decision.PROMOTED)
    rows.checkpoint("b", Decision.PROMOTED)
    roll_back(database)
    rows.checkpoint("c", Decision.PROMOTED)
    assert former(database) == "a"


def test_an_older_checkpoint_promoted_by_hand_goes_back_to_the_newer_one(database: Database, rows: Rows) -> None:
    first = rows.checkpoint("a", Decision.PROMOTED)
    rows.checkpoint("b", Decision.PROMOTED)
    rows.decide(first, Decision.PROMOTED)
    assert (pointer(database), former(database)) == ("a", "b")


def test_promoting_the_champion_again_is_no_step(database: Database, rows: Rows) -> None:
    rows.checkpoint("a", Decision.PROMOTED)
    second = rows.checkpoint("b", Decision.PROMOTED)
    rows.decide(second, Decision.PROMOTED)
    assert former(database) == "a"


def test_a_rollback_to_a_name_takes_back_all_that_came_after(database: Database, rows: Rows) -> None:
    ids = [rows.checkpoint(version, Decision.PROMOTED) for version in "abcd"]
    rows.decide(ids[1], Decision.ROLLED_BACK)
    assert (pointer(database), former(database)) == ("b", "a")


def test_a_rollback_to_what_never_served_is_a_step_that_can_be_taken_back(database: Database, rows: Rows) -> None:
    rows.checkpoint("a", Decision.PROMOTED)
    rows.decide(rows.checkpoint("b", Decision.REFUSED), Decision.ROLLED_BACK)
    assert (pointer(database), former(database)) == ("b", "a")


def test_a_decision_names_the_champion_it_found(database: Database, rows: Rows) -> None:
    first, second = rows.checkpoint("a", Decision.PROMOTED), rows.checkpoint("b")
    with database.write() as session:
        row = checkpoints.decide(session, second, Decision.PROMOTED, "x" * 900, decided_by="gate", statistics={"low": 0.1})
    with database.read() as session:
        held = session.get_one(Promotion, row.id)
        assert (held.previous_id, held.reason, held.statistics) == (first, "x" * 500, {"low": 0.1})


def test_an_unknown_version_names_the_latest(database: Database, rows: Rows) -> None:
    for number in range(7):
        rows.checkpoint(f"v{number}")
    with database.read() as session, pytest.raises(NotReadyError, match=r"no checkpoint 'x'; the latest are: v6, .*v2$"):
        checkpoints.by_version(session, "x")


def test_undecided_are_those_without_any_decision(database: Database, rows: Rows) -> None:
    rows.checkpoint("a", Decision.REFUSED)
    rows.checkpoint("b")
    rows.checkpoint("c", Decision.PROMOTED)
    rows.checkpoint("d")
    with database.read() as session:
        assert [row.model_version for row in checkpoints.undecided(session)] == ["b", "d"]


def test_an_evaluation_replaces_the_former_one_of_its_split(database: Database, rows: Rows) -> None:
    checkpoint = rows.checkpoint("a", Decision.PROMOTED)
    present = ClassMetric(0, "sky", 0.5, 0.6, 0.7, 10)
    absent = ClassMetric(1, "ball", None, None, None, 0)
    for value, classes in ((0.25, [present, absent]), (0.5, [absent])):
        with database.write() as session:
            figures = EvaluationFigures({"mean_iou": value}, classes, 3)
            checkpoints.store_evaluation(session, checkpoint, Split.VAL, figures)
            checkpoints.store_evaluation(session, checkpoint, Split.TEST, EvaluationFigures({"mean_iou": 0.125}, [], 1))
    with database.read() as session:
        found = {(row.metric, row.class_name): row.value for row in checkpoints.evaluations(session, checkpoint, Split.VAL)}
        assert found == {("mean_iou", "*"): 0.5, ("truth_pixels", "ball"): 0.0}
        assert [row.value for row in checkpoints.evaluations(session, checkpoint, Split.TEST)] == [0.125]


@pytest.mark.parametrize("database_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_two_that_evaluate_one_checkpoint_wait_for_each_other(database: Database, rows: Rows) -> None:
    """SQLite lets only one write at all. Both delete what they see; the second must see what the first has written."""
    checkpoint = rows.checkpoint("a")
    problems: list[Exception] = []

    def store(value: float) -> None:
        try:
            with database.write() as session:
                checkpoints.store_evaluation(session, checkpoint, Split.VAL, EvaluationFigures({"mean_iou": value}, [], 1))
        except sa.exc.SQLAlchemyError as error:
            problems.append(error)

    second = threading.Thread(target=store, args=(0.5,))
    with database.write() as session:
        checkpoints.store_evaluation(session, checkpoint, Split.VAL, EvaluationFigures({"mean_iou": 0.25}, [], 1))
        second.start()
        while second.is_alive() and not waiting_for_a_lock(database):
            second.join(0.01)
        assert second.is_alive()
    second.join()
    assert problems == []
    with database.read() as session:
        assert [row.value for row in checkpoints.evaluations(session, checkpoint, Split.VAL)] == [0.5]


def waiting_for_a_lock(database: Database) -> bool:
    statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with database.read() as session:
        return bool(session.scalar(sa.text(statement)))


def test_the_overview_marks_the_champion_and_shows_the_last_decision(database: Database, rows: Rows) -> None:
    first = rows.checkpoint("a", Decision.PROMOTED)
    second = rows.checkpoint("b", Decision.PROMOTED)
    rows.checkpoint("c")
    rows.evaluation(second, 0.5)
    rows.evaluation(second, 0.9, split=Split.TRAIN)
    rows.decide(first, Decision.ROLLED_BACK)
    with database.read() as session:
        found = checkpoints.overview(session)
    keys = ("model_version", "champion", "decision", "mean_iou")
    assert [tuple(row[key] for key in keys) for row in found] == [
        ("c", False, None, None),
        ("b", False, Decision.PROMOTED, 0.5),
        ("a", True, Decision.ROLLED_BACK, None),
    ]
