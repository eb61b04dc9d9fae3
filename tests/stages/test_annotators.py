"""Several annotators of one image: which mask counts, how far they agree, and who stamps without looking."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from activeseg.core.consensus import majority
from activeseg.core.labels import UNLABELED
from activeseg.db import truth, votes
from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    Image,
    LabelingProject,
    LabelSetRow,
    Query,
    QueryStatus,
    Round,
    Split,
    Task,
    TrainingRun,
    TrainingRunAnnotation,
    TrainingStatus,
)
from activeseg.db.models.columns import now
from activeseg.db.status import read_status
from activeseg.workspace import Workspace
from tests.db.rows import Rows
from tests.stages.pulling import Site, halves, plain

Make = Callable[..., Workspace]
VALID, DELETED = AnnotationStatus.VALID, AnnotationStatus.DELETED


@pytest.fixture
def site(make_workspace: Make) -> Site:
    return Site(make_workspace, {"labelstudio": {"consensus": "majority"}})


@pytest.fixture
def quick_site(make_sqlite_workspace: Make) -> Site:
    return Site(make_sqlite_workspace, {"labelstudio": {"consensus": "majority"}})


def outcomes(site: Site) -> list[Annotation]:
    """Rows of what was agreed on and still counts."""
    return [row for row in site.rows(VALID) if row.consensus_of is not None]


def the_counting_row(site: Site) -> Annotation:
    with site.workspace.database.read() as session:
        (item,) = truth.current(session)
        return session.get_one(Annotation, item.annotation_id)


def three_people(site: Site) -> list[dict[str, Any]]:
    """Left half: sky, sky, ball. Right half: ground, ball, nothing."""
    masks = (halves(0, 1), halves(0, 2), halves(2, UNLABELED))
    return [site.submit(site.tasks[0], site.result(mask), person) for person, mask in enumerate(masks, 1)]


def test_the_majority_counts_pixel_by_pixel_and_names_what_it_comes_of(site: Site) -> None:
    three_people(site)
    assert site.pull().details == {"valid": 3, "consensus": 1}
    drawn, (row,) = [row for row in site.rows() if row.consensus_of is None], outcomes(site)
    assert row.consensus_of == [row.id for row in drawn]
    assert (row.annotator, row.external_annotation_id, row.external_task_id) == (None, None, None)
    assert row.external_updated_at == drawn[-1].external_updated_at
    assert the_counting_row(site).id == row.id
    assert np.array_equal(site.counting()[0], halves(0, UNLABELED))
    # First and second differ in the right half, first and third everywhere, second and third everywhere.
    assert [row.agreement for row in drawn] == [0.25, 0.25, 0.0]
    again = site.pull(full=True)
    assert (again.written, again.details) == (0, {})


def test_where_the_majority_leaves_no_pixel_the_newest_mask_counts_and_it_is_told(quick_site: Site) -> None:
    quick_site.submit(quick_site.tasks[0], quick_site.result(plain(0)), person=1)
    quick_site.submit(quick_site.tasks[0], quick_site.result(plain(1)), person=2)
    (told,) = quick_site.pull().details["problems"].values()
    assert "no pixel has a class" in told
    assert np.array_equal(quick_site.counting()[0], plain(1))


def test_an_edit_a_deletion_and_a_skip_change_what_counts(site: Site) -> None:
    first, second, third = three_people(site)
    site.pull()
    site.edit(site.tasks[0], third, result=site.result(halves(0, 1)))
    assert site.pull().details == {"valid": 1, "consensus": 1}
    assert np.array_equal(site.counting()[0], halves(0, 1))
    assert len(outcomes(site)) == 1
    site.delete(site.tasks[0], first)
    assert site.pull().details == {"deleted": 1, "consensus": 1}
    assert np.array_equal(site.counting()[0], halves(0, UNLABELED))
    site.edit(site.tasks[0], second, was_cancelled=True)
    assert site.pull().details == {"skipped": 1}
    assert outcomes(site) == []
    assert np.array_equal(site.counting()[0], halves(0, 1))
    assert [row.agreement for row in site.rows(VALID) if row.external_annotation_id == third["id"]][-1] is None
    assert len([row for row in site.rows(DELETED) if row.consensus_of is not None]) == 3


def test_a_deleted_vote_ends_what_it_was_part_of_in_the_same_transaction(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed after the deletion was written leaves no outcome of it counting."""
    _, _, third = three_people(site)
    site.pull()
    site.delete(site.tasks[0], third)
    monkeypatch.setattr("activeseg.stages.pull.find_outcomes", killed)
    with pytest.raises(KeyboardInterrupt):
        site.pull()
    assert outcomes(site) == []
    assert np.array_equal(site.counting()[0], halves(0, 2))
    monkeypatch.undo()
    assert site.pull().details == {"consensus": 1}
    assert np.array_equal(site.counting()[0], halves(0, UNLABELED))


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_by_default_the_one_changed_last_counts_and_agreement_is_recorded_all_the_same(make_workspace: Make) -> None:
    site = Site(make_workspace)
    three_people(site)
    assert site.pull().details == {"valid": 3}
    assert np.array_equal(site.counting()[0], halves(2, UNLABELED))
    assert [row.agreement for row in site.rows()] == [0.25, 0.25, 0.0]


def test_the_one_starred_as_ground_truth_counts(site: Site) -> None:
    site.with_settings(consensus="ground_truth")
    first, second, _ = three_people(site)
    assert site.pull().details == {"valid": 3}
    assert np.array_equal(site.counting()[0], halves(2, UNLABELED))
    site.edit(site.tasks[0], first, ground_truth=True)
    # Changed last and starred: it counts by itself. Then somebody else changes theirs.
    assert site.pull().details == {"valid": 1}
    site.edit(site.tasks[0], second)
    assert site.pull().details == {"valid": 1, "consensus": 1}
    starred = [row for row in site.rows() if row.ground_truth and row.consensus_of is None]
    (row,) = outcomes(site)
    assert (row.consensus_of, row.mask_location) == ([starred[-1].id], starred[-1].mask_location)
    assert np.array_equal(site.counting()[0], halves(0, 1))
    site.edit(site.tasks[0], first, ground_truth=False)
    assert site.pull().details == {"valid": 1}
    assert outcomes(site) == []


def test_a_star_that_moved_or_went_is_noticed_although_its_annotation_was_not_marked_as_changed(site: Site) -> None:
    """Starring one annotation of a task, Label Studio takes the star from the others and leaves their times as they are."""
    site.with_settings(consensus="ground_truth")
    first, second, _ = three_people(site)
    site.edit(site.tasks[0], first, ground_truth=True)
    site.pull()
    first["ground_truth"] = False
    site.edit(site.tasks[0], second, ground_truth=True)
    assert site.pull().details == {"valid": 1, "stars moved": 1}
    third = site.server.tasks[site.tasks[0]]["annotations"][2]
    site.edit(site.tasks[0], third)
    assert site.pull().details == {"valid": 1, "consensus": 1}
    assert np.array_equal(site.counting()[0], halves(0, 2))
    second["ground_truth"] = False
    site.server.tasks[site.tasks[0]]["updated"] = site.tick()
    assert site.pull().details == {"stars moved": 1}
    assert np.array_equal(site.counting()[0], halves(2, UNLABELED))
    assert site.pull(full=True).written == 0


def test_a_star_counts_before_its_own_annotators_later_annotation(quick_site: Site) -> None:
    site = quick_site
    site.with_settings(consensus="ground_truth")
    site.submit(site.tasks[0], site.result(plain(0)), person=1, ground_truth=True)
    site.submit(site.tasks[0], site.result(plain(1)), person=1)
    site.pull()
    assert np.array_equal(site.counting()[0], plain(0))


def test_another_setting_holds_for_what_was_pulled_before(site: Site) -> None:
    first, *_ = three_people(site)
    site.edit(site.tasks[0], first, ground_truth=True)
    site.submit(site.tasks[0], site.result(halves(1, UNLABELED)), person=4)
    site.pull()
    for rule, expected in (
        ("latest", halves(1, UNLABELED)),
        ("ground_truth", halves(0, 1)),
        ("majority", halves(0, UNLABELED)),
        ("latest", halves(1, UNLABELED)),
    ):
        site.with_settings(consensus=rule)
        assert site.pull().written == 1
        assert np.array_equal(site.counting()[0], expected), rule
        assert site.pull(full=True).written == 0


def test_everybody_has_one_vote_their_newest_annotation(quick_site: Site) -> None:
    site = quick_site
    for person, value in ((1, 0), (2, 1), (2, 1), (2, 1), (3, 0), (1, 0)):
        site.submit(site.tasks[0], site.result(plain(value)), person=person)
    site.pull()
    assert len(outcomes(site)[0].consensus_of or []) == 3
    assert np.array_equal(site.counting()[0], plain(0))


@pytest.mark.parametrize(("address", "expected"), [("http://memory", 1), ("http://elsewhere", 2)])
def test_whoever_worked_in_two_projects_of_a_server_has_one_vote(quick_site: Site, address: str, expected: int) -> None:
    """Their second annotation may even have the number of the first."""
    site = quick_site
    item = site.submit(site.tasks[0], site.result(plain(0)), person=1)
    site.pull()
    with site.workspace.database.write() as session:
        drawn = session.scalars(sa.select(Annotation)).one()
        former = Rows(site.workspace.database).project
        held = {"image_id": drawn.image_id, "label_set_id": drawn.label_set_id, "mask_location": drawn.mask_location}
        held |= {"mask_sha256": drawn.mask_sha256, "query_id": drawn.query_id, "source": drawn.source, "status": VALID}
        moment = (drawn.external_updated_at or now()) - timedelta(hours=1)
    number = former(external_id=9, instance="former")
    with site.workspace.database.write() as session:
        session.get_one(LabelingProject, number).server_url = address
        before = {"external_annotation_id": item["id"], "external_updated_at": moment, "annotator": "1"}
        truth.record(session, Annotation(labeling_project_id=number, **before, **held))
    with site.workspace.database.read() as session:
        assert votes.contested(session) == [held["image_id"]]
        (ballot,) = votes.ballots(session, [held["image_id"]])
    assert (len(ballot.masks), len(ballot.votes)) == (2, expected)


def test_a_star_that_decides_nothing_makes_no_new_outcome(site: Site) -> None:
    first, *_ = three_people(site)
    site.pull()
    (before,) = outcomes(site)
    first["ground_truth"] = True
    site.server.tasks[site.tasks[0]]["updated"] = site.tick()
    assert site.pull().details == {"stars moved": 1}
    assert [row.id for row in outcomes(site)] == [before.id]


def test_votes_counted_again_to_the_same_mask_are_nothing_new_to_train_on(site: Site) -> None:
    *_, third = three_people(site)
    site.pull()
    (before,) = outcomes(site)
    with site.workspace.database.write() as session:
        session.get_one(Image, before.image_id).split = Split.TRAIN
        configuration = {"status": TrainingStatus.DONE, "reason": "test", "configuration": {}, "code_version": "0"}
        run = TrainingRun(label_set_id=before.label_set_id, num_images=1, **configuration)
        session.add(run)
        session.flush()
        session.add(TrainingRunAnnotation(training_run_id=run.id, annotation_id=before.id))
    site.edit(site.tasks[0], third)
    assert site.pull().details == {"valid": 1, "consensus": 1}
    (again,) = outcomes(site)
    assert (again.id != before.id, again.mask_sha256) == (True, before.mask_sha256)
    with site.workspace.database.read() as session:
        assert truth.untrained(session) == 0
    site.edit(site.tasks[0], third, result=site.result(halves(0, 1)))
    site.pull()
    with site.workspace.database.read() as session:
        assert truth.untrained(session) == 1


def test_annotations_without_a_name_are_different_peoples(quick_site: Site) -> None:
    for value in (0, 0, 1):
        quick_site.submit(quick_site.tasks[0], quick_site.result(plain(value)), person=None)
    quick_site.pull()
    assert np.array_equal(quick_site.counting()[0], plain(0))


def test_one_annotator_of_many_images_is_nobodys_majority(quick_site: Site) -> None:
    for task in quick_site.tasks:
        quick_site.submit(task, quick_site.result(plain(0)))
    quick_site.pull()
    assert [row.consensus_of for row in quick_site.rows()] == [None] * 3
    assert [row.agreement for row in quick_site.rows()] == [None] * 3


def test_masks_that_overlap_are_counted_class_by_class(make_sqlite_workspace: Make) -> None:
    site = Site(make_sqlite_workspace, {"labels": {"overlap": True}, "labelstudio": {"consensus": "majority"}})
    masks = [np.random.default_rng(seed).random((4, 48, 64)) > 0.5 for seed in range(3)]
    for person, mask in enumerate(masks):
        site.submit(site.tasks[0], site.result(mask), person=person)
    site.pull()
    assert np.array_equal(site.counting()[0], majority(masks))


def test_masks_for_other_classes_have_no_vote(quick_site: Site) -> None:
    site = quick_site
    three_people(site)
    site.pull()
    with site.workspace.database.write() as session:
        other = LabelSetRow(fingerprint="other", definition=site.workspace.label_set.as_dict())
        session.add(other)
        session.flush()
        session.get_one(Annotation, 1).label_set_id = other.id
        truth._reopen_votes(session, {session.get_one(Annotation, 1).image_id})
    site.pull()
    assert outcomes(site)[0].consensus_of == [2, 3]


def test_a_damaged_mask_leaves_the_newest_one_counting_and_is_told(quick_site: Site) -> None:
    site = quick_site
    three_people(site)
    site.with_settings(consensus="latest")
    site.pull()
    site.with_settings(consensus="majority")
    location = site.rows()[0].mask_location or ""
    kept = site.workspace.artifacts.path(location).read_bytes()
    site.workspace.artifacts.path(location).write_bytes(b"damaged")
    ((name, problem),) = site.pull().details["problems"].items()
    assert name.startswith("annotators of image ")
    assert problem.endswith("; the newest mask counts")
    assert np.array_equal(site.counting()[0], halves(2, UNLABELED))
    site.workspace.artifacts.path(location).write_bytes(kept)
    assert site.pull().details == {"consensus": 1}


def test_an_outcome_can_be_trained_on_and_stays_readable_when_it_was_replaced(site: Site) -> None:
    *_, third = three_people(site)
    site.pull()
    first = the_counting_row(site)
    with site.workspace.database.read() as session:
        assert [item.annotation_id for item in truth.current(session, annotation_ids=[first.id])] == [first.id]
    site.edit(site.tasks[0], third, result=site.result(plain(1)))
    site.pull()
    with site.workspace.database.read() as session:
        (item,) = truth.current(session, annotation_ids=[first.id])
        assert np.array_equal(site.workspace.read_mask(item.mask_location, item.mask_sha256), halves(0, UNLABELED))
        assert session.scalar(sa.select(Query.status).where(Query.id == first.query_id)) == QueryStatus.ANNOTATED


# Rubber stamps


def ranked(site: Site) -> list[int]:
    """Say that the round was ranked by a model; the tasks, least sure first."""
    rows = Rows(site.workspace.database)
    config = rows.config(rows.checkpoint())
    with site.workspace.database.write() as session:
        session.scalars(sa.select(Round)).one().scoring_config_id = config
        pairs = session.execute(
            sa.select(Task.external_task_id, Query.image_id).join(Query, Query.id == Task.query_id).order_by(Query.id)
        ).all()
    for place, (_, image) in enumerate(pairs):
        rows.score(config, image, 10.0 - place)
    with site.workspace.database.write() as session:
        session.scalars(sa.select(Round)).one().opened_at = now()
    return [task for task, _ in pairs]


def stamp(site: Site, task: int, *, lead_time: float | None, mask: Any = None, person: int = 3) -> None:
    site.show(task, plain(0))
    site.submit(task, site.result(plain(0) if mask is None else mask), person, lead_time=lead_time)


@pytest.fixture
def four(make_workspace: Make) -> Site:
    return Site(make_workspace, images=4)


def test_unchanged_masks_on_uncertain_images_submitted_at_once_are_flagged_and_told(four: Site) -> None:
    first, second, third, _ = ranked(four)
    stamp(four, first, lead_time=1.5)
    stamp(four, second, lead_time=9.0)
    stamp(four, third, lead_time=1.5)
    four.pull()
    assert [row.rubber_stamp for row in four.rows()] == [True, False, False]
    with four.workspace.database.read() as session:
        status = read_status(session, four.workspace.settings)
        assert len(truth.current(session)) == 3
    assert "annotator 3: 1 of 3 masks unchanged within 5 s on uncertain images" in status["problems"]
    (person,) = status["annotators"]
    assert (person["annotator"], person["annotations"], person["unchanged"], person["rubber_stamps"]) == ("3", 3, 3, 1)


@pytest.mark.parametrize(
    ("settings", "options", "flagged"),
    [
        ({}, {"lead_time": 4.9}, True),
        ({}, {"lead_time": 5.0}, False),
        ({}, {"lead_time": None}, False),
        ({}, {"lead_time": 1.0, "mask": halves(0, 1)}, False),
        ({"rubber_stamp_seconds": 0}, {"lead_time": 0.0}, False),
        ({"rubber_stamp_seconds": 20}, {"lead_time": 19.0}, True),
    ],
)
def test_what_is_a_rubber_stamp(four: Site, settings: dict[str, Any], options: dict[str, Any], flagged: bool) -> None:
    four.with_settings(**settings)
    stamp(four, ranked(four)[1], **options)
    four.pull()
    assert [row.rubber_stamp for row in four.rows()] == [flagged]


def test_nothing_is_uncertain_without_a_model(four: Site) -> None:
    stamp(four, four.tasks[0], lead_time=0.5)
    four.pull()
    assert [row.rubber_stamp for row in four.rows()] == [False]


def test_images_scored_after_the_round_was_opened_do_not_make_its_own_more_or_less_uncertain(four: Site) -> None:
    first, second, third, _ = ranked(four)
    rows = Rows(four.workspace.database)
    with four.workspace.database.read() as session:
        config = session.scalars(sa.select(Round)).one().scoring_config_id or 0
    rows.run(config)
    for value in (100.0, 100.0, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0):
        rows.score(config, rows.image(), value)
    for task in (first, second, third):
        stamp(four, task, lead_time=1.0)
    four.pull()
    assert [row.rubber_stamp for row in four.rows()] == [True, True, False]


@pytest.mark.parametrize("acquisition", ["entropy_sum", "margin", "power_margin"])
def test_uncertain_is_the_upper_half_by_the_rounds_own_ranking(four: Site, acquisition: str) -> None:
    tasks = ranked(four)
    with four.workspace.database.write() as session:
        session.scalars(sa.select(Round)).one().acquisition = acquisition
        session.execute(sa.text("UPDATE scores SET margin_mean = 10 - entropy_sum"))
    for task in tasks:
        stamp(four, task, lead_time=1.0)
    four.pull()
    flags = {row.external_task_id: row.rubber_stamp for row in four.rows()}
    expected = [True, True, False, False]
    assert [flags[task] for task in tasks] == (expected if acquisition == "entropy_sum" else expected[::-1])
