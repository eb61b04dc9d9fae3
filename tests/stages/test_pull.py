"""What people submit becomes rows, each once, at the image's own size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Event
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from activeseg.core.labels import UNLABELED
from activeseg.core.scaling import shrink_mask
from activeseg.db.labeling import KnownTask
from activeseg.db.models import Annotation, AnnotationStatus, LabelingProject, Query, QueryStatus
from activeseg.db.status import read_status
from activeseg.errors import ConfigError, LabelStudioError
from activeseg.labelstudio.client import TaskStamp
from activeseg.labelstudio.connection import TEST_KEY
from activeseg.labelstudio.drawings import Drawing
from activeseg.labelstudio.submissions import Submission
from activeseg.workspace import Workspace
from tests.stages.pulling import HEIGHT, WIDTH, Site, halves, plain

Make = Callable[..., Workspace]
VALID, SKIPPED, DELETED = AnnotationStatus.VALID, AnnotationStatus.SKIPPED, AnnotationStatus.DELETED


@pytest.fixture
def site(make_sqlite_workspace: Make) -> Site:
    return Site(make_sqlite_workspace)


def test_who_when_and_how_long_is_recorded(site: Site) -> None:
    site.submit(site.tasks[0], site.result(halves(0, 1)), person=7, lead_time=12.5, ground_truth=True)
    site.submit(site.tasks[1], site.result(halves(0, 1)), person={"id": 8, "email": "eve@example.org"})
    assert site.pull().details == {"valid": 2}
    first, second = site.rows()
    assert (first.annotator, first.lead_time, first.ground_truth, first.overlap_share) == ("7", 12.5, True, 0.0)
    assert (second.annotator, second.lead_time, second.ground_truth) == ("eve@example.org", None, False)
    assert (first.changed_share, first.agreement, first.rubber_stamp) == (None, None, False)


@pytest.mark.parametrize("full", [False, True])
def test_pulling_twice_writes_nothing(site: Site, full: bool) -> None:
    for task in site.tasks:
        site.submit(task, site.result(plain(0)))
    assert site.pull(full=full).written == 3
    again = site.pull(full=full)
    assert (again.written, again.details) == (0, {})


def test_an_untouched_mask_comes_back_as_it_was_predicted_although_it_was_shown_smaller(site: Site) -> None:
    prediction = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
    site.show(site.tasks[0], prediction, shown=(12, 16))
    site.submit(site.tasks[0], site.result(shrink_mask(prediction, (12, 16)), origin="prediction"))
    site.pull()
    (row,) = site.rows()
    assert (row.status, row.changed_share) == (VALID, 0.0)
    assert np.array_equal(site.mask_of(row), prediction)


def test_a_stroke_on_the_shrunk_picture_changes_its_own_pixels_only(site: Site) -> None:
    prediction = np.random.default_rng(1).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8)
    site.show(site.tasks[0], prediction, shown=(12, 16))
    drawn = shrink_mask(prediction, (12, 16)).copy()
    drawn[3, 4:8] = 2
    site.submit(site.tasks[0], site.result(drawn))
    site.pull()
    (row,) = site.rows()
    expected = prediction.copy()
    expected[12:16, 16:32] = 2
    assert np.array_equal(site.mask_of(row), expected)
    assert row.changed_share == 4 / (12 * 16)


def test_without_a_prediction_a_mask_drawn_smaller_is_enlarged(site: Site) -> None:
    site.show(site.tasks[0], plain(0, HEIGHT // 2, WIDTH // 2), shown=(12, 16))  # a prediction of another image's size
    drawn = plain(1, 12, 16)
    drawn[:6] = 2
    site.submit(site.tasks[0], site.result(drawn))
    site.pull()
    (row,) = site.rows()
    assert row.changed_share is None
    assert np.array_equal(site.mask_of(row), np.repeat([2, 1], HEIGHT // 2)[:, None].repeat(WIDTH, 1))


def test_a_mask_drawn_on_another_size_than_was_shown_is_quarantined(site: Site) -> None:
    site.show(site.tasks[0], plain(0), shown=(12, 16))
    site.submit(site.tasks[0], site.result(plain(0)))
    assert site.pull().failed == 1
    assert site.rows()[0].reason is not None
    assert "64x48" in (site.rows()[0].reason or "")


@pytest.mark.parametrize(("uncovered", "value"), [("ignore", UNLABELED), ("ground", 1)])
def test_pixels_under_no_region_are_what_the_setting_says(site: Site, uncovered: str, value: int) -> None:
    mask = halves(0, UNLABELED)
    site.submit(site.tasks[0], site.result(mask))
    site.with_settings(uncovered=uncovered)
    site.pull()
    (row,) = site.rows()
    assert np.array_equal(site.mask_of(row), halves(0, value))


def test_a_task_submitted_without_a_region_is_quarantined_until_somebody_draws(site: Site) -> None:
    blank = site.submit(site.tasks[0], [])
    assert site.pull().details["quarantined"] == 1
    assert [row.reason for row in site.rows()] == ["no pixel has a class: label what is there, or skip the image"]
    assert site.counting() == []
    site.edit(site.tasks[0], blank, result=site.result(plain(1)))
    assert site.pull().details == {"valid": 1}
    assert [mask[0, 0] for mask in site.counting()] == [1]


def test_what_was_quarantined_is_told_by_image_task_and_reason_until_it_is_mended(site: Site) -> None:
    items = [site.submit(task, []) for task in site.tasks[:2]]
    problems = site.pull().details["problems"]
    links = [f"http://memory/projects/1/data?task={task}" for task in site.tasks]
    assert [link in " ".join(problems) for link in links] == [True, True, False]
    assert all("/pool/ball_" in name and "no pixel has a class" in why for name, why in problems.items())
    assert status_of(site)["quarantined"]["annotations"] == 2
    assert site.pull().details == {}
    site.edit(site.tasks[0], items[0], result=site.result(plain(1)))
    site.pull()
    status = status_of(site)
    assert [(one["task"], one["link"]) for one in status["quarantined"]["latest"]] == [(site.tasks[1], links[1])]
    assert [links[1] in line and "no pixel has a class" in line for line in status["problems"]] == [True]


def test_of_many_that_were_quarantined_the_first_are_told_and_how_many_more(make_sqlite_workspace: Make) -> None:
    site = Site(make_sqlite_workspace, images=7)
    for task in site.tasks:
        site.submit(task, [])
    report = site.pull()
    assert (report.failed, len(report.details["problems"])) == (7, 6)
    assert "2 more quarantined" in report.details["problems"]
    assert "2 more annotations quarantined" in status_of(site)["problems"]


def status_of(site: Site) -> dict[str, Any]:
    """What `activeseg status --json` prints."""
    with site.workspace.database.read() as session:
        return read_status(session, site.workspace.settings)


def test_a_task_submitted_without_a_region_is_a_mask_where_uncovered_pixels_have_a_class(site: Site) -> None:
    site.submit(site.tasks[0], [])
    site.with_settings(uncovered="ground")
    site.pull()
    assert np.array_equal(site.counting(), [plain(1)])


def test_where_classes_overlap_a_task_submitted_without_a_region_says_that_none_is_there(make_sqlite_workspace: Make) -> None:
    site = Site(make_sqlite_workspace, {"labels": {"overlap": True}})
    site.submit(site.tasks[0], [])
    assert site.pull().details == {"valid": 1}


@pytest.mark.parametrize("shown", [None, (12, 16)])
def test_an_untouched_guess_of_one_object_is_unchanged_whatever_uncovered_pixels_become(
    site: Site, shown: tuple[int, int] | None
) -> None:
    guess = halves(2, UNLABELED)
    site.show(site.tasks[0], guess, shown=shown)
    site.submit(site.tasks[0], site.result(shrink_mask(guess, shown or (HEIGHT, WIDTH)), origin="prediction"))
    site.with_settings(uncovered="sky")
    site.pull()
    (row,) = site.rows()
    assert row.changed_share == 0.0
    assert np.array_equal(site.mask_of(row), halves(2, 0))


@pytest.mark.parametrize(("overlap", "told"), [(False, "or the name of a class"), (True, "belongs to no class")])
def test_a_wrong_setting_for_uncovered_pixels_stops_the_pull_before_it_begins(
    make_sqlite_workspace: Make, overlap: bool, told: str
) -> None:
    site = Site(make_sqlite_workspace, {"labels": {"overlap": overlap}})
    site.with_settings(uncovered="ground" if overlap else "water")
    with pytest.raises(ConfigError, match=told) as caught:
        site.pull()
    assert "[labelstudio] uncovered = " in str(caught.value)
    assert "\n" not in str(caught.value)
    with site.workspace.database.read() as session:
        assert session.scalar(sa.select(LabelingProject.pulled_until)) is None


def test_skipped_then_submitted_and_submitted_then_skipped(site: Site) -> None:
    first = site.submit(site.tasks[0], [], was_cancelled=True)
    second = site.submit(site.tasks[1], site.result(plain(1)))
    site.pull()
    assert [row.status for row in site.rows()] == [SKIPPED, VALID]
    site.edit(site.tasks[0], first, was_cancelled=False, result=site.result(plain(0)))
    site.edit(site.tasks[1], second, was_cancelled=True)
    assert site.pull().details == {"valid": 1, "skipped": 1}
    assert [mask[0, 0] for mask in site.counting()] == [0]
    with site.workspace.database.read() as session:
        queries = session.scalars(sa.select(Query.status).order_by(Query.id)).all()
    assert sorted(queries) == sorted([QueryStatus.ANNOTATED, QueryStatus.SKIPPED, QueryStatus.PUSHED])


def test_deleted_annotations_and_tasks_are_marked(site: Site) -> None:
    items = [site.submit(task, site.result(plain(0))) for task in site.tasks]
    site.pull()
    site.delete(site.tasks[0], items[0])
    del site.server.tasks[site.tasks[1]]
    assert site.pull().details["deleted"] == 1
    assert [row.status for row in site.rows()] == [DELETED, DELETED, VALID]
    assert len(site.counting()) == 1
    with site.workspace.database.read() as session:
        statuses = Counter(session.scalars(sa.select(Query.status)))
    assert statuses == {QueryStatus.PUSHED: 1, QueryStatus.WITHDRAWN: 1, QueryStatus.ANNOTATED: 1}


def test_a_full_pull_collects_what_was_corrected_in_a_former_project_after_its_last_answer(site: Site) -> None:
    edited, deleted, _ = [site.submit(task, site.result(plain(0))) for task in site.tasks]
    site.pull()
    site.with_settings(project="another")
    site.edit(site.tasks[0], edited, result=site.result(plain(1)))
    site.delete(site.tasks[1], deleted)
    assert site.pull().details == {}
    assert site.pull(full=True).details == {"valid": 1, "deleted": 1}
    assert [int(mask[0, 0]) for mask in site.counting()] == [1, 0]
    assert site.pull(full=True).details == {}


@pytest.mark.parametrize(("answered", "told"), [(1, {"tasks deleted": 2}), (3, {})])
def test_a_former_project_that_is_gone_is_told_once_and_its_masks_count(
    site: Site, answered: int, told: dict[str, int]
) -> None:
    for task in site.tasks[:answered]:
        site.submit(task, site.result(plain(0)))
    site.pull()
    site.server.delete_project(1)
    site.with_settings(project="another")
    for expected in (told, {}):
        report = site.pull(full=True)
        assert (report.details, report.failed) == (expected, 0)
    assert len(site.counting()) == answered


def test_the_task_of_a_connection_test_is_nobodys(site: Site) -> None:
    task = site.server.tasks[site.tasks[0]]
    task["data"] = {"key": TEST_KEY}
    site.submit(site.tasks[0], [])
    assert "foreign" not in site.pull().details


def test_a_task_whose_data_somebody_edited_is_left_alone_and_its_annotations_stay(site: Site) -> None:
    site.submit(site.tasks[0], site.result(plain(0)))
    site.pull()
    site.server.tasks[site.tasks[0]]["data"]["sha256"] = "0" * 64
    site.submit(site.tasks[0], site.result(plain(1)))
    assert site.pull().details == {"foreign": 1}
    assert [row.status for row in site.rows()] == [VALID]


class Recorder:
    """The client's side of a pull: which blocks were asked for, and what was written when they were."""

    def __init__(self, site: Site) -> None:
        self.site, self.blocks, self.written = site, [], []
        self.export = site.server.export_tasks
        self.events = [Event() for _ in site.tasks]
        site.server.export_tasks = self.export_tasks

    def asked_for(self, place: int) -> Event:
        return self.events[place]

    def export_tasks(self, project_id: int, ids: Sequence[int]) -> list[dict[str, Any]]:
        self.blocks.append(list(ids))
        self.written.append(len(self.site.rows()))
        for number in ids:
            self.events[self.site.tasks.index(number)].set()
        return self.export(project_id, ids)


def test_the_next_block_is_asked_for_while_this_one_is_decoded_and_never_more(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activeseg.stages.pull.BLOCK", 1)
    for task in site.tasks:
        site.submit(task, site.result(plain(0)))
    asked, decode = Recorder(site), Drawing.rows
    ahead = []

    def rows(drawing: Drawing, ours: KnownTask, number: int, submissions: Sequence[Submission]) -> list[Annotation]:
        following = site.tasks.index(number) + 1
        ahead.append(asked.asked_for(following).wait(60) if following < len(site.tasks) else True)
        return decode(drawing, ours, number, submissions)

    monkeypatch.setattr(Drawing, "rows", rows)
    site.pull()
    assert ahead == [True] * 3
    assert asked.blocks == [[task] for task in site.tasks]
    assert asked.written[2] >= 1  # the third was asked for once the first was written


def test_masks_of_large_pictures_come_in_small_blocks(site: Site) -> None:
    for task in site.tasks:
        site.submit(task, site.result(plain(0)))
    site.resize(site.tasks[0], 8000, 5000)
    asked = Recorder(site)
    site.pull()
    assert [len(block) for block in asked.blocks] == [2, 1]


def test_tasks_that_look_untouched_come_in_larger_blocks_in_the_order_of_their_changes(
    make_sqlite_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activeseg.stages.pull.BLOCK", 1)
    monkeypatch.setattr("activeseg.stages.pull.UNTOUCHED", 3)
    site = Site(make_sqlite_workspace, images=7)
    one, two, three, four, five, six, seven = site.tasks
    site.submit(one, site.result(plain(0)))
    site.submit(five, site.result(plain(0)))
    site.server.tasks[six]["updated"] = site.tick()
    asked = Recorder(site)
    assert site.pull().details == {"valid": 2}
    assert asked.blocks == [[two, three, four], [seven], [one], [five], [six]]


def test_what_looks_untouched_is_read_all_the_same_and_one_that_cannot_be_keeps_no_other_back(
    make_sqlite_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activeseg.stages.pull.BLOCK", 2)
    monkeypatch.setattr("activeseg.stages.pull.UNTOUCHED", 2)
    site = Site(make_sqlite_workspace, images=4)
    for task in site.tasks:
        site.submit(task, site.result(plain(0)))
    changed = site.server.changed_tasks

    def lagging(project_id: int, since: datetime | None) -> list[TaskStamp]:
        return [replace(stamp, untouched=True) for stamp in changed(project_id, since)]

    monkeypatch.setattr(site.server, "changed_tasks", lagging)
    asked = Recorder(site)
    export, broken = site.server.export_tasks, site.tasks[2]

    def fails(project_id: int, ids: Sequence[int]) -> list[dict[str, Any]]:
        found = export(project_id, ids)
        if broken in ids:
            raise LabelStudioError("HTTP 500")
        return found

    site.server.export_tasks = fails
    details = site.pull().details
    assert (details["valid"], details["not exported"]) == (3, 1)
    assert [len(block) for block in asked.blocks] == [4, 2, 2, 1, 1]


def test_a_pull_cut_off_between_two_blocks_goes_on_and_repeats_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activeseg.stages.pull.BLOCK", 1)
    for task in site.tasks:
        site.submit(task, site.result(plain(0)))
    export = site.server.export_tasks

    def cut_off(project_id: int, ids: Sequence[int]) -> list[dict[str, Any]]:
        if list(ids) == [site.tasks[2]]:
            raise ConnectionError("cut off")
        return export(project_id, ids)

    site.server.export_tasks = cut_off
    with pytest.raises(ConnectionError):
        site.pull()
    assert len(site.rows()) == 2
    assert cursor(site) == site.server.tasks[site.tasks[1]]["updated"]
    site.server.export_tasks = export
    asked = Recorder(site)
    assert site.pull().details == {"valid": 1}
    assert asked.blocks == [[site.tasks[1]], [site.tasks[2]]] or asked.blocks == [[site.tasks[2]]]


def cursor(site: Site) -> datetime | None:
    with site.workspace.database.read() as session:
        return session.scalar(sa.select(LabelingProject.pulled_until))


def test_a_change_that_becomes_visible_late_is_seen(site: Site) -> None:
    site.submit(site.tasks[0], site.result(plain(0)))
    late = site.submit(site.tasks[1], site.result(plain(0)))
    site.server.tasks[site.tasks[1]]["annotations"].clear()
    site.pull()
    # Its commit was under way: five seconds older than what was pulled already.
    site.server.tasks[site.tasks[1]]["annotations"].append(late)
    site.server.tasks[site.tasks[1]]["updated"] = (cursor(site) or site.clock) - timedelta(seconds=5)
    assert site.pull().details == {"valid": 1}
