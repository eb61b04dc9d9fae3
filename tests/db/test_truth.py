from __future__ import annotations

import pytest

from activeseg.db import rounds, truth
from activeseg.db.database import Database
from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    Arm,
    ImageStatus,
    Prediction,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    Split,
    TrainingRun,
    TrainingRunAnnotation,
    TrainingStatus,
)
from tests.db.rows import Rows, minutes

SKIPPED, QUARANTINED, DELETED = AnnotationStatus.SKIPPED, AnnotationStatus.QUARANTINED, AnnotationStatus.DELETED


def counted(database: Database, split: Split | None = None) -> list[int]:
    """Ids of the annotations that count."""
    with database.read() as session:
        return [item.annotation_id for item in truth.current(session, split=split)]


def status_of(database: Database, query: int) -> QueryStatus:
    with database.write() as session:
        truth.refresh_queries(session, [query])
        return session.get_one(Query, query).status


def test_the_latest_version_counts(database: Database, rows: Rows) -> None:
    image, project = rows.image(), rows.project()
    rows.annotation(image, outside=(project, 5), at=1)
    edited = rows.annotation(image, outside=(project, 5), at=2)
    assert counted(database) == [edited]


def test_the_latest_version_counts_although_it_arrived_first(database: Database, rows: Rows) -> None:
    image, project = rows.image(), rows.project()
    edited = rows.annotation(image, outside=(project, 5), at=2)
    rows.annotation(image, outside=(project, 5), at=1)
    assert counted(database) == [edited]


def test_versions_a_microsecond_apart_are_told_apart(database: Database, rows: Rows) -> None:
    image, project = rows.image(), rows.project()
    later = rows.annotation(image, outside=(project, 5), at=1 + 1e-6 / 60)
    rows.annotation(image, outside=(project, 5), at=1)
    assert counted(database) == [later]


def test_of_several_annotators_the_one_who_changed_it_last_counts(database: Database, rows: Rows) -> None:
    image, project = rows.image(), rows.project()
    rows.annotation(image, outside=(project, 1), at=1)
    rows.annotation(image, outside=(project, 2), at=3)
    rows.annotation(image, outside=(project, 3), at=2)
    back_again = rows.annotation(image, outside=(project, 1), at=4)
    assert counted(database) == [back_again]


def test_a_deleted_annotation_counts_no_more_and_its_query_is_open_again(database: Database, rows: Rows) -> None:
    image, project = rows.image(), rows.project()
    query = rows.query(rows.round(), image)
    rows.annotation(image, outside=(project, 5), at=1, query_id=query, external_task_id=70)
    rows.annotation(image, outside=(project, 5), at=2, query_id=query, external_task_id=70)
    assert status_of(database, query) == QueryStatus.ANNOTATED
    with database.write() as session:
        assert truth.mark_deleted(session, project, [70], kept=set()) == 2
        assert truth.mark_deleted(session, project, [70], kept=set()) == 0
    assert counted(database) == []
    assert status_of(database, query) == QueryStatus.PUSHED


def test_a_closed_round_is_open_again_where_its_answer_was_deleted(database: Database, rows: Rows) -> None:
    image, project, number = rows.image(), rows.project(), rows.round()
    query = rows.query(number, image, QueryStatus.ANNOTATED)
    rows.annotation(image, outside=(project, 5), query_id=query, external_task_id=70)
    with database.write() as session:
        assert rounds.close_answered(session) == [session.get_one(Round, number).number]
        truth.mark_deleted(session, project, [70], kept=set())
        assert rounds.close_answered(session) == []
    with database.read() as session:
        row = session.get_one(Round, number)
        assert (row.status, row.closed_at) == (RoundStatus.PUSHED, None)


def test_deleting_one_annotation_lets_the_other_annotators_count(database: Database, rows: Rows) -> None:
    image, project = rows.image(), rows.project()
    query = rows.query(rows.round(), image)
    other = rows.annotation(image, outside=(project, 1), at=1, query_id=query, external_task_id=70)
    rows.annotation(image, outside=(project, 2), at=2, query_id=query, external_task_id=70)
    with database.write() as session:
        assert truth.mark_deleted(session, project, [70], kept={1}) == 1
    assert counted(database) == [other]
    assert status_of(database, query) == QueryStatus.ANNOTATED


def test_deletions_in_one_project_leave_the_same_numbers_of_another(database: Database, rows: Rows) -> None:
    first, second = rows.project(1), rows.project(1, instance="rebuilt server")
    kept = rows.annotation(rows.image(), outside=(first, 5), external_task_id=70)
    rows.annotation(rows.image(), outside=(second, 5), external_task_id=70)
    with database.write() as session:
        truth.mark_deleted(session, second, [70], kept=set())
    assert counted(database) == [kept]


def test_skipped_after_it_was_valid_counts_no_more(database: Database, rows: Rows) -> None:
    image, project = rows.image(), rows.project()
    query = rows.query(rows.round(), image)
    rows.annotation(image, outside=(project, 5), at=1, query_id=query)
    rows.annotation(image, outside=(project, 5), at=2, query_id=query, status=SKIPPED)
    assert counted(database) == []
    assert status_of(database, query) == QueryStatus.SKIPPED


def test_what_one_annotator_skips_another_may_have_done(database: Database, rows: Rows) -> None:
    image, project = rows.image(), rows.project()
    query = rows.query(rows.round(), image)
    done = rows.annotation(image, outside=(project, 1), at=1, query_id=query)
    rows.annotation(image, outside=(project, 2), at=2, query_id=query, status=SKIPPED)
    assert counted(database) == [done]
    assert status_of(database, query) == QueryStatus.ANNOTATED


def test_quarantined_never_counts_not_even_its_older_valid_version(database: Database, rows: Rows) -> None:
    image, project = rows.image(), rows.project()
    query = rows.query(rows.round(), image)
    rows.annotation(image, outside=(project, 5), at=1, query_id=query)
    rows.annotation(image, outside=(project, 5), at=2, query_id=query, status=QUARANTINED, reason="odd size")
    assert counted(database) == []
    assert status_of(database, query) == QueryStatus.PUSHED


@pytest.mark.parametrize(("pulled_at", "wins"), [(1, "import"), (3, "pulled")])
def test_of_an_import_and_a_pulled_annotation_the_later_counts(
    database: Database, rows: Rows, pulled_at: int, wins: str
) -> None:
    image = rows.image()
    found = {
        "import": rows.annotation(image, at=2),
        "pulled": rows.annotation(image, outside=(rows.project(), 5), at=pulled_at),
    }
    assert counted(database) == [found[wins]]


def test_a_mask_imported_again_in_another_form_replaces_the_first(database: Database, rows: Rows) -> None:
    image = rows.image()
    rows.annotation(image, at=1)
    again = rows.annotation(image, at=2)
    assert counted(database) == [again]


def test_predictions_never_count(database: Database, rows: Rows) -> None:
    image = rows.image()
    rows.add(Prediction(image_id=image, source="checkpoint:a", mask_location="mask/p.png", mask_sha256="0" * 64))
    assert counted(database) == []


def test_masks_of_images_that_are_not_active_do_not_count(database: Database, rows: Rows) -> None:
    for status in (ImageStatus.QUARANTINED, ImageStatus.SUPERSEDED, ImageStatus.MISSING):
        rows.annotation(rows.image(status=status))
    assert counted(database) == []


def test_a_split_is_asked_for_by_name(database: Database, rows: Rows) -> None:
    found = {split: rows.annotation(rows.image(split=split)) for split in Split}
    assert counted(database) == sorted(found.values())
    assert {split: counted(database, split) for split in Split} == {split: [row] for split, row in found.items()}


def test_exactly_these_annotations_count_for_a_repeated_training(database: Database, rows: Rows) -> None:
    image, project = rows.image(), rows.project()
    old = rows.annotation(image, outside=(project, 5), at=1)
    rows.annotation(image, outside=(project, 5), at=2)
    with database.read() as session:
        assert [item.annotation_id for item in truth.current(session, annotation_ids=[old])] == [old]
        assert truth.current(session, annotation_ids=[]) == []


def test_a_withdrawn_query_stays_withdrawn(database: Database, rows: Rows) -> None:
    image = rows.image()
    query = rows.query(rows.round(), image, QueryStatus.WITHDRAWN)
    rows.annotation(image, query_id=query)
    assert status_of(database, query) == QueryStatus.WITHDRAWN


def test_recording_an_annotation_answers_its_query(database: Database, rows: Rows) -> None:
    image = rows.image()
    query, label_set = rows.query(rows.round(), image), rows.label_set()
    with database.write() as session:
        row = truth.from_import(
            image_id=image, label_set_id=label_set, location="mask/a.png", sha256="0" * 64, import_sha256="1" * 64,
            query_id=query, annotator="ann",
        )  # fmt: skip
        truth.record(session, row)
        assert session.get_one(Query, query).status == QueryStatus.ANNOTATED
        assert truth.known_import(session, image, "1" * 64)
        assert not truth.known_import(session, image, "2" * 64)


def test_a_pulled_version_is_known_by_project_number_and_moment(database: Database, rows: Rows) -> None:
    project = rows.project()
    rows.annotation(rows.image(), outside=(project, 5), at=1)
    with database.read() as session:
        assert truth.known_versions(session, project, [5, 6]) == {(5, minutes(1))}
        assert truth.known_versions(session, project, [6]) == set()
        assert truth.known_versions(session, project + 1, [5]) == set()


def test_an_annotation_that_is_there_again_is_what_it_was(database: Database, rows: Rows) -> None:
    project, image = rows.project(), rows.image()
    query = rows.query(rows.round(), image)
    numbers = {
        rows.annotation(image, query_id=query, outside=(project, 5), at=1): AnnotationStatus.VALID,
        rows.annotation(image, query_id=query, outside=(project, 6), at=1, status=SKIPPED): SKIPPED,
        rows.annotation(
            image, query_id=query, outside=(project, 7), at=1, status=QUARANTINED, reason="another size"
        ): QUARANTINED,
        rows.annotation(image, query_id=query, outside=(project, 8), at=1, status=DELETED): DELETED,
    }
    versions = [(number, minutes(1)) for number in (5, 6, 7)] + [(8, minutes(2))]
    with database.write() as session:
        for number in numbers:
            session.get_one(Annotation, number).status = DELETED
        truth.refresh_queries(session, [query])
        assert session.get_one(Query, query).status == QueryStatus.PUSHED
        assert truth.revive(session, project, versions) == 3
        assert {number: session.get_one(Annotation, number).status for number in numbers} == numbers
        assert session.get_one(Query, query).status == QueryStatus.ANNOTATED
        assert truth.revive(session, project, versions) == 0


@pytest.mark.parametrize(
    ("status", "expected"), [(TrainingStatus.DONE, 1), (TrainingStatus.RUNNING, 1), (TrainingStatus.FAILED, 2)]
)
def test_a_failed_training_has_seen_nothing(database: Database, rows: Rows, status: TrainingStatus, expected: int) -> None:
    first, _ = (rows.annotation(rows.image(split=Split.TRAIN)) for _ in range(2))
    rows.annotation(rows.image(split=Split.VAL))
    run = TrainingRun(
        status=status, reason="test", configuration={}, code_version="0", label_set_id=rows.label_set(), num_images=1
    )
    run_id = rows.add(run)
    with database.write() as session:
        session.add(TrainingRunAnnotation(training_run_id=run_id, annotation_id=first))
    with database.read() as session:
        assert truth.untrained(session) == expected


def test_images_without_a_split_say_whether_they_were_drawn_at_random(database: Database, rows: Rows) -> None:
    drawn, chosen, waiting = (rows.image(group_name=name) for name in ("a", "b", None))
    round_id = rows.round()
    for image, arm in ((drawn, Arm.CONTROL), (chosen, Arm.CHOSEN)):
        rows.annotation(image, query_id=rows.query(round_id, image, QueryStatus.ANNOTATED, arm))
    rows.query(round_id, waiting, QueryStatus.PUSHED, Arm.CONTROL)
    with database.read() as session:
        assert truth.without_split(session) == {drawn: ("a", True), chosen: ("b", False)}


def test_annotations_are_append_only_but_for_the_mark(database: Database, rows: Rows) -> None:
    image, project = rows.image(), rows.project()
    row = rows.annotation(image, outside=(project, 5), external_task_id=70)
    with database.write() as session:
        truth.mark_deleted(session, project, [70], kept=set())
    with database.read() as session:
        held = session.get_one(Annotation, row)
        assert (held.status, held.mask_location is None, held.deleted_at is None) == (DELETED, False, False)
