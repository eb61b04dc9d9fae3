"""The report on the control arm counts what annotators answered, once, and says what it left out."""

from __future__ import annotations

import random
from typing import Any

import pytest
import sqlalchemy as sa

from activeseg.core.control import ENOUGH
from activeseg.core.findings import PROXY, Findings
from activeseg.db.arms import BOOTSTRAP, NOT_SHOWN, QUARANTINED, STAMPED, findings
from activeseg.db.database import Database
from activeseg.db.models import (
    AnnotationStatus,
    Arm,
    Checkpoint,
    Decision,
    Prediction,
    Query,
    QueryStatus,
    Round,
    Task,
    TaskStatus,
)
from tests.db.rows import Rows
from tests.factories import CLASSES

CANDIDATES = 100


class Answers:
    """Rounds of one model, their queries and what annotators made of them."""

    def __init__(self, database: Database) -> None:
        self.rows = Rows(database)
        self.checkpoint = self.rows.checkpoint(decision=Decision.PROMOTED)
        self.config = self.rows.config(self.checkpoint)
        self.project = self.rows.project()

    def round(self, **columns: Any) -> int:
        return self.rows.round(**({"scoring_config_id": self.config} | columns))

    def ask(self, round_id: int, arm: Arm, status: QueryStatus, *, rank: int = 1, reason: str | None = None) -> int:
        image = self.rows.image()
        query = Query(round_id=round_id, image_id=image, arm=arm, shown_order=self.rows.next(), status=status, rank=rank)
        query.reason = reason or f"random control draw, entropy_sum 51234, rank {rank} of {CANDIDATES}"
        number = self.rows.add(query)
        if status == QueryStatus.ANNOTATED:
            self.image = image
        return number

    def annotate(self, query: int, changed: float | None, **columns: Any) -> int:
        outside = columns.pop("outside", (self.project, self.rows.next()))
        return self.rows.annotation(self.image, outside=outside, query_id=query, changed_share=changed, **columns)

    def answered(self, round_id: int, arm: Arm, changed: float | None, *, rank: int = 1, **columns: Any) -> int:
        query = self.ask(round_id, arm, QueryStatus.ANNOTATED, rank=rank)
        self.annotate(query, changed, **columns)
        return query

    def shown(self, query: int, expected: float, *, checkpoint: int | None = None, config: int | None = None) -> None:
        """The mask that was shown, and what its model expected to be wrong."""
        source = f"checkpoint:{self.rows.next()}"
        made = checkpoint or self.checkpoint
        prediction = Prediction(image_id=self.image, source=source, checkpoint_id=made, mask_location="m", mask_sha256="0" * 64)
        task = Task(labeling_project_id=self.project, query_id=query, key=f"k{self.rows.next()}", status=TaskStatus.PUSHED)
        task.prediction_id = self.rows.add(prediction)
        self.rows.add(task)
        self.scored(config or self.config, expected)

    def scored(self, config: int, expected: float) -> None:
        with self.rows.database.write() as session:
            session.add(self.rows.score_row(config, self.image, least_confidence_mean=expected))


@pytest.fixture
def answers(database: Database) -> Answers:
    return Answers(database)


def told(answers: Answers, **only: int) -> Findings:
    with answers.rows.database.read() as session:
        return findings(session, **only)


def test_an_empty_database_says_what_is_missing(database: Database) -> None:
    with database.read() as session:
        found = findings(session)
    assert (found.rounds, found.chosen.asked, found.chosen.completion, dict(found.left_out)) == (0, 0, None, {})
    assert f"0 of at least {ENOUGH} answered control images, {ENOUGH} more are needed" in found.ranking.sentence
    assert f"{ENOUGH} more are needed" in found.worth.sentence
    assert found.worth.estimate is None


def test_completion_counts_what_was_asked_by_arm(answers: Answers) -> None:
    row = answers.round()
    for status in (QueryStatus.SKIPPED, QueryStatus.PUSHED, QueryStatus.WITHDRAWN, QueryStatus.SELECTED):
        answers.ask(row, Arm.CHOSEN, status)
    answers.answered(row, Arm.CHOSEN, 0.1)
    answers.answered(row, Arm.CONTROL, 0.1)
    found = told(answers)
    assert (found.chosen.asked, found.chosen.annotated, found.chosen.skipped, found.chosen.open) == (3, 1, 1, 1)
    assert found.chosen.completion is not None
    assert found.chosen.completion.value == pytest.approx(1 / 3)
    assert (found.control.asked, found.control.annotated) == (1, 1)
    assert found.completion.sentence.startswith("both arms are answered alike")


def test_stamps_quarantine_and_answers_without_prediction_are_left_out_and_counted(answers: Answers) -> None:
    row = answers.round()
    answers.answered(row, Arm.CONTROL, 0.25)
    answers.answered(row, Arm.CONTROL, 0.0, rubber_stamp=True)
    answers.answered(row, Arm.CHOSEN, None)
    waiting = answers.ask(row, Arm.CHOSEN, QueryStatus.PUSHED)
    answers.annotate(waiting, None, status=AnnotationStatus.QUARANTINED)
    first = answers.rows.round()
    answers.answered(first, Arm.CONTROL, 0.9)
    found = told(answers)
    assert dict(found.left_out) == {STAMPED: 1, QUARANTINED: 1, NOT_SHOWN: 1, BOOTSTRAP: 1}
    assert (found.chosen.answers, found.control.answers) == (0, 1)
    assert found.rounds == 1


def test_of_several_versions_and_annotators_the_last_honest_one_counts_once(answers: Answers) -> None:
    row = answers.round()
    query = answers.answered(row, Arm.CONTROL, 0.5, outside=(answers.project, 700), at=1)
    answers.annotate(query, 0.3, outside=(answers.project, 700), at=5)  # edited
    answers.annotate(query, 0.2, outside=(answers.project, 701), at=3)  # somebody else, before the edit
    answers.annotate(query, 0.0, outside=(answers.project, 702), at=9, rubber_stamp=True)
    answers.rows.annotation(answers.image, outside=None, query_id=query, changed_share=None, consensus_of=[1, 2], at=10)
    for k in range(ENOUGH - 1):
        answers.answered(row, Arm.CONTROL, 0.3 + 0.01 * k)
        answers.answered(row, Arm.CHOSEN, 0.3 + 0.02 * k)
    answers.answered(row, Arm.CHOSEN, 0.3)
    found = told(answers)
    assert found.control.answers == ENOUGH
    assert dict(found.left_out) == {STAMPED: 1}
    assert found.corrected_control.estimate is not None
    expected = (0.3 + sum(0.3 + 0.01 * k for k in range(ENOUGH - 1))) / ENOUGH
    assert found.corrected_control.estimate.value == pytest.approx(expected)


def test_figures_follow_from_the_answers_and_the_sentences_from_the_figures(answers: Answers) -> None:
    rng = random.Random(4)
    for _ in range(8):
        row = answers.round()
        for rank in (1, 2, 3):
            answers.answered(row, Arm.CHOSEN, rng.uniform(0.2, 0.4), rank=rank)
        for rank in (15, 40, 90):
            query = answers.answered(row, Arm.CONTROL, 0.02 + (100 - rank) / 1000 + rng.uniform(0, 0.02), rank=rank)
            answers.shown(query, 0.2)
    found = told(answers)
    assert found.ranking.estimate is not None
    assert found.ranking.estimate.low > 0
    assert found.ranking.sentence.startswith("yes, on 24 control images")
    assert found.worth.estimate is not None
    assert found.worth.estimate.low > 1
    assert PROXY in found.worth.sentence
    assert found.corrected_chosen.estimate is not None
    assert 0.2 < found.corrected_chosen.estimate.low < found.corrected_chosen.estimate.value < 0.4
    assert found.calibration.estimate is not None
    assert found.calibration.estimate.is_below(1.0)
    assert "too unsure" in found.calibration.sentence


def test_a_range_of_rounds_is_all_that_is_read(answers: Answers) -> None:
    for _ in range(4):
        answers.answered(answers.round(), Arm.CONTROL, 0.1)
    with answers.rows.database.read() as session:
        numbers = sorted(session.scalars(sa.select(Round.number)))
    assert told(answers).rounds == 4
    assert told(answers, first=numbers[1], last=numbers[2]).rounds == 2
    assert told(answers, last=numbers[0]).rounds == 1
    assert told(answers, first=numbers[3] + 1).rounds == 0


def test_what_was_expected_is_what_the_shown_mask_s_model_expected(answers: Answers) -> None:
    """After a promotion an open task is shown the new champion's mask; its scores say what that one expected."""
    later = answers.rows.checkpoint(decision=Decision.PROMOTED)
    config = answers.rows.config(later)
    row = answers.round()
    for k in range(ENOUGH):
        query = answers.answered(row, Arm.CONTROL, 0.1 + 0.001 * k)
        answers.shown(query, 0.05, checkpoint=later, config=config)
        answers.scored(answers.config, 0.9)
    found = told(answers)
    assert found.calibration.estimate is not None
    assert found.calibration.estimate.value == pytest.approx(2.1, abs=0.02)
    assert "too sure" in found.calibration.sentence


def test_a_rank_given_by_one_model_is_not_held_against_corrections_of_another_s_mask(answers: Answers) -> None:
    later = answers.rows.checkpoint(decision=Decision.PROMOTED)
    config, row = answers.rows.config(later), answers.round()
    for rank in range(1, ENOUGH + 4):
        query = answers.answered(row, Arm.CONTROL, rank / 100, rank=rank)
        if rank > ENOUGH - 1:
            answers.shown(query, 0.05, checkpoint=later, config=config)
        else:
            answers.shown(query, 0.05)
    assert (told(answers).ranking.answers, told(answers).calibration.answers) == (ENOUGH - 1, ENOUGH + 3)


def test_partial_labels_and_overlapping_classes_say_nothing_of_calibration(answers: Answers) -> None:
    row = answers.round()
    for k in range(ENOUGH):
        query = answers.answered(row, Arm.CONTROL, 0.1 + 0.001 * k)
        answers.shown(query, 0.05)
        with answers.rows.database.write() as session:
            session.get_one(Query, query).cells = [0, 5]
    assert told(answers).calibration.answers == 0
    with answers.rows.database.write() as session:
        session.get_one(Checkpoint, answers.checkpoint).spec = {"label_set": CLASSES.as_dict() | {"overlap": True}}
    assert "overlap" in told(answers).calibration.sentence


def test_a_reason_of_a_round_that_ranked_nothing_has_no_percentile(answers: Answers) -> None:
    row = answers.round()
    for k in range(ENOUGH):
        query = answers.ask(row, Arm.CONTROL, QueryStatus.ANNOTATED, rank=k + 1, reason="random draw")
        answers.annotate(query, 0.01 * k)
    assert told(answers).ranking.answers == 0
    assert told(answers).control.answers == ENOUGH
