"""After `reconcile` every query has one task on the server, whatever had happened before, and nobody's work is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activeseg.db import labeling
from activeseg.db.models import (
    Annotation,
    AnnotationSource,
    AnnotationStatus,
    Image,
    JournalState,
    LabelingProject,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    Split,
    Task,
    TaskStatus,
)
from activeseg.labelstudio.connection import TEST_KEY
from activeseg.labelstudio.regions import mask_to_result
from activeseg.labelstudio.registration import open_project
from activeseg.reconciliation import (
    Reconciled,
    give_up_missing,
    give_up_project,
    reconcile,
    reconcile_project,
    settle,
)
from activeseg.stages.pull import pull_annotations
from activeseg.workspace import Workspace
from tests.factories import CLASSES
from tests.memory_label_studio import MemoryLabelStudio, push, section

SKY = mask_to_result(np.zeros((48, 64), np.uint8), CLASSES, kind="brush")
SELECTION = {"bootstrap_size": 4, "query_size": 4, "refill_below": 1}


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Site:
    """A workspace, a server in memory and the tasks of one pushed round."""

    workspace: Workspace
    server: MemoryLabelStudio
    project: LabelingProject

    def reconcile(self) -> Reconciled:
        return reconcile_project(self.workspace, self.server, self.project)  # type: ignore[arg-type]

    def give_up_missing(self) -> Counter[str]:
        return give_up_missing(self.workspace, self.server, self.project)  # type: ignore[arg-type]

    def pull(self, *, full: bool = False) -> dict[str, Any]:
        return pull_annotations(self.workspace, self.server, full=full).details  # type: ignore[arg-type]

    def rows(self) -> dict[str, Task]:
        with self.workspace.database.read() as session:
            return {task.key: task for task in session.scalars(sa.select(Task).order_by(Task.id))}

    def copy(self, number: int) -> int:
        """The duplicate that a request sent late makes."""
        task = {name: self.server.tasks[number][name] for name in ("data", "predictions")}
        return self.server.import_tasks(self.project.external_project_id, [task])[0]

    def one_each(self) -> None:
        """Every live row names the only task of its key."""
        live = {key: [row.external_task_id] for key, row in self.rows().items() if row.status == TaskStatus.PUSHED}
        assert self.server.find_tasks(self.project.external_project_id, list(self.rows())) == live

    def states(self, row: Task) -> tuple[TaskStatus, QueryStatus, Split, list[AnnotationStatus]]:
        """Of a task, its query, its image and the annotations of that."""
        with self.workspace.database.read() as session:
            query = session.get_one(Query, row.query_id)
            image = session.get_one(Image, query.image_id)
            drawn = [one.status for one in self.annotations() if one.image_id == image.id]
            return session.get_one(Task, row.id).status, query.status, image.split, drawn

    def annotations(self) -> list[Annotation]:
        with self.workspace.database.read() as session:
            return list(session.scalars(sa.select(Annotation).order_by(Annotation.id)))


@pytest.fixture
def site(make_workspace: Callable[..., Workspace]) -> Site:
    return pushed(make_workspace)


@pytest.fixture
def sqlite_site(make_sqlite_workspace: Callable[..., Workspace]) -> Site:
    return pushed(make_sqlite_workspace)


def pushed(make: Callable[..., Workspace], server: MemoryLabelStudio | None = None, title: str = "ours") -> Site:
    workspace, server = make(pool=8, selection=SELECTION, labelstudio=section(title)), server or MemoryLabelStudio()
    push(workspace, server)
    return Site(workspace, server, open_project(workspace, server))  # type: ignore[arg-type]


def test_what_agrees_is_left_as_it_is(site: Site) -> None:
    assert site.reconcile() == Reconciled(tasks=4, lost=0, twice=0, removed=0, merged=0, foreign=0)
    site.one_each()


@pytest.mark.parametrize("named", [True, False], ids=["our row's", "the late one"])
def test_of_two_tasks_the_one_somebody_started_stays_whichever_it_is(site: Site, named: bool) -> None:
    (first, *_) = site.rows().values()
    late = site.copy(first.external_task_id or 0)
    kept, gone = (first.external_task_id or 0, late) if named else (late, first.external_task_id or 0)
    site.server.submit(kept, SKY)
    found = site.reconcile()
    assert (found.removed, found.merged, found.twice, found.lost, found.tasks) == (1, 0, 0, 0, 4)
    assert gone not in site.server.tasks
    assert site.rows()[first.key].external_task_id == kept
    site.pull()
    assert [(row.query_id, row.external_task_id, row.status) for row in site.annotations()] == [
        (first.query_id, kept, AnnotationStatus.VALID)
    ]
    site.one_each()


@pytest.mark.parametrize("started", [True, False])
def test_of_two_tasks_alike_the_one_our_row_names_stays(site: Site, started: bool) -> None:
    (*_, last) = site.rows().values()
    early = site.copy(last.external_task_id or 0)
    # The row names the later one.
    with site.workspace.database.write() as session:
        session.get_one(Task, last.id).external_task_id = 10**6
    site.server.tasks[10**6] = site.server.tasks.pop(last.external_task_id or 0)
    for number in (early, 10**6) if started else ():
        site.server.submit(number, SKY)
    found = site.reconcile()
    assert (found.removed, found.merged) == ((0, 1) if started else (1, 0))
    assert site.rows()[last.key].external_task_id == 10**6
    assert 10**6 in site.server.tasks


def test_annotations_on_both_of_two_tasks_belong_to_the_one_query(site: Site) -> None:
    (first, *_) = site.rows().values()
    site.server.submit(first.external_task_id or 0, SKY)
    site.pull()
    late = site.copy(first.external_task_id or 0)
    site.server.submit(late, SKY)
    found = site.reconcile()
    assert (found.removed, found.merged, found.twice, found.lost) == (0, 1, 0, 0)
    site.pull()
    assert {(row.query_id, row.external_task_id, row.status) for row in site.annotations()} == {
        (first.query_id, first.external_task_id, AnnotationStatus.VALID),
        (first.query_id, late, AnnotationStatus.VALID),
    }


def test_an_annotation_goes_with_the_task_it_was_made_on_and_the_other_takes_its_place(site: Site) -> None:
    (first, *_) = site.rows().values()
    late = site.copy(first.external_task_id or 0)
    for number in (first.external_task_id or 0, late):
        site.server.submit(number, SKY)
    site.pull()
    site.server.delete_tasks(1, [first.external_task_id or 0])
    assert site.give_up_missing()["returned"] == 0
    assert site.rows()[first.key].external_task_id == late
    assert [row.status for row in site.annotations()] == [AnnotationStatus.DELETED, AnnotationStatus.VALID]
    with site.workspace.database.read() as session:
        assert session.get_one(Query, first.query_id).status == QueryStatus.ANNOTATED


def test_a_second_task_that_is_deleted_takes_its_annotation_along(site: Site) -> None:
    (first, *_) = site.rows().values()
    late = site.copy(first.external_task_id or 0)
    site.server.submit(late, SKY)
    site.server.submit(first.external_task_id or 0, SKY)
    site.pull()
    site.server.delete_tasks(1, [late])
    site.reconcile()
    assert [row.status for row in site.annotations() if row.external_task_id == late] == [AnnotationStatus.DELETED]
    site.one_each()


def test_a_deleted_task_gives_its_image_back_and_a_planned_one_that_is_there_is_recorded(site: Site) -> None:
    gone, unheard, *_ = site.rows().values()
    site.server.delete_tasks(1, [gone.external_task_id or 0])
    with site.workspace.database.write() as session:
        row = session.get_one(Task, unheard.id)
        row.status, row.external_task_id = TaskStatus.PLANNED, None
        session.get_one(Query, row.query_id).status = QueryStatus.SELECTED
        session.scalars(sa.select(Round)).one().status = RoundStatus.SELECTED
    found = site.reconcile()
    assert (found.recorded, found.returned, found.lost, found.tasks) == (1, 1, 0, 3)
    with site.workspace.database.read() as session:
        query = session.get_one(Query, gone.query_id)
        assert (query.status, session.get_one(Image, query.image_id).split) == (QueryStatus.WITHDRAWN, Split.POOL)
    assert site.rows()[unheard.key].external_task_id == unheard.external_task_id
    site.one_each()


def test_a_task_no_push_would_send_is_sent_again(site: Site) -> None:
    (forgotten, *_) = site.rows().values()
    site.server.delete_tasks(1, [forgotten.external_task_id or 0])
    with site.workspace.database.write() as session:
        row = session.get_one(Task, forgotten.id)
        row.status, row.external_task_id = TaskStatus.PLANNED, None
    found = site.reconcile()
    assert (found.returned, found.lost) == (1, 0)
    push(site.workspace, site.server)
    assert site.reconcile().tasks == 4
    site.one_each()


def test_the_same_key_with_another_checksum_is_a_strangers_and_stays(site: Site) -> None:
    (first, *_) = site.rows().values()
    stranger = site.copy(first.external_task_id or 0)
    site.server.tasks[stranger]["data"] = site.server.tasks[stranger]["data"] | {"sha256": "0" * 64}
    test = site.copy(first.external_task_id or 0)
    site.server.tasks[test]["data"] = {"key": TEST_KEY}
    found = site.reconcile()
    assert (found.foreign, found.removed, found.twice, found.lost) == (1, 0, 0, 0)
    assert stranger in site.server.tasks
    assert test not in site.server.tasks


def test_numbers_that_a_restored_backup_gave_to_other_tasks_are_put_right(site: Site) -> None:
    first, second, third, fourth = site.rows().values()
    tasks, numbers = site.server.tasks, [row.external_task_id or 0 for row in (first, second, third, fourth)]
    # The first two swapped, the fourth gone, its number given to the third.
    tasks[numbers[0]], tasks[numbers[1]] = tasks[numbers[1]], tasks[numbers[0]]
    tasks[numbers[3]] = tasks.pop(numbers[2])
    found = site.reconcile()
    assert (found.tasks, found.lost, found.twice, found.returned) == (3, 0, 0, 1)
    assert [site.rows()[row.key].external_task_id for row in (first, second, third)] == [numbers[1], numbers[0], numbers[3]]
    site.one_each()


def test_a_project_that_is_gone_gives_up_what_is_open_and_keeps_what_people_did(site: Site) -> None:
    first, *others = site.rows().values()
    site.server.submit(first.external_task_id or 0, SKY)
    site.pull()
    assert give_up_project(site.workspace, site.project) == 3
    assert [row.status for row in site.annotations()] == [AnnotationStatus.VALID]
    with site.workspace.database.read() as session:
        statuses = [session.get_one(Query, row.query_id).status for row in (first, *others)]
    assert statuses == [QueryStatus.ANNOTATED] + [QueryStatus.WITHDRAWN] * 3


def test_every_project_is_reconciled_that_still_exists(make_workspace: Callable[..., Workspace]) -> None:
    former = pushed(make_workspace)
    (first, *_) = former.rows().values()
    former.copy(first.external_task_id or 0)
    now = pushed(make_workspace, former.server, "another")
    report = reconcile(now.workspace, now.server)  # type: ignore[arg-type]
    assert {name: report.details[name] for name in ("tasks", "lost", "twice", "removed")} == {
        "tasks": 8, "lost": 0, "twice": 0, "removed": 1
    }  # fmt: skip
    former.server.delete_project(1)
    report = reconcile(now.workspace, now.server)  # type: ignore[arg-type]
    assert (report.details["tasks"], report.details["returned"], report.failed) == (4, 4, 0)
    assert reconcile(now.workspace, now.server).written == 0  # type: ignore[arg-type]


def test_a_call_to_a_former_project_is_looked_up_before_its_images_are_planned_anew(
    make_workspace: Callable[..., Workspace],
) -> None:
    class HearsNothing(MemoryLabelStudio):
        """Makes the tasks and dies before anybody learns of it."""

        def import_tasks(self, project_id: int, tasks: Any, **options: Any) -> list[int]:
            super().import_tasks(project_id, tasks, **options)
            raise Killed

    server = HearsNothing()
    with pytest.raises(Killed):
        pushed(make_workspace, server)
    server.__class__ = MemoryLabelStudio
    now = pushed(make_workspace, server, "another")
    assert len(server.tasks) == 4
    with now.workspace.database.read() as session:
        assert labeling.unsettled(session, 1) == []
        assert set(session.scalars(sa.select(Task.labeling_project_id))) == {1}
    assert reconcile(now.workspace, server).details["tasks"] == 4  # type: ignore[arg-type]


def test_a_request_to_a_former_project_that_arrives_after_all_leaves_nothing_behind(
    make_workspace: Callable[..., Workspace],
) -> None:
    """Its images were planned anew: the old keys stand in the journal only."""

    class Holds(MemoryLabelStudio):
        held: Any = None

        def import_tasks(self, project_id: int, tasks: Any, **options: Any) -> list[int]:
            self.held = (project_id, tasks)
            raise Killed

    server = Holds()
    with pytest.raises(Killed):
        pushed(make_workspace, server)
    server.__class__ = MemoryLabelStudio
    now = pushed(make_workspace, server, "another")
    MemoryLabelStudio.import_tasks(server, *server.held)
    assert len(server.tasks) == 8
    report = reconcile(now.workspace, server)  # type: ignore[arg-type]
    assert (report.failed, report.details["tasks"], report.details["foreign"]) == (0, 4, 0)
    assert len(server.tasks) == 4


COPIES = st.lists(st.sampled_from(["untouched", "started"]), max_size=3)
STATES = ["planned", "pushed", "wrong", "deleted", "stranded", "answered"]
ROW = st.tuples(st.sampled_from(STATES), COPIES)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    states=st.lists(ROW, min_size=4, max_size=4), doubt=st.booleans(), run=st.sampled_from(["reconcile", "pull", "full pull"])
)
def test_from_any_state_one_run_leads_to_nothing_lost_and_nothing_twice(
    sqlite_site: Site, states: list[tuple[str, list[str]]], doubt: bool, run: str
) -> None:
    site, server = sqlite_site, sqlite_site.server
    rows = list(site.rows().values())
    server.tasks.clear()
    started, numbers = set(), {}
    with site.workspace.database.write() as session:
        session.execute(sa.delete(Annotation))
        session.execute(sa.update(Task).values(external_task_id=None))
        session.execute(sa.update(Image).values(split=Split.POOL))
        images = {row.id: session.get_one(Image, session.get_one(Query, row.query_id).image_id) for row in rows}
        for row, (status, copies) in zip(rows, states, strict=True):
            payload = {"data": {"key": row.key, "sha256": images[row.id].sha256, "image": "x"}}
            numbers[row.key] = server.import_tasks(1, [payload] * len(copies))
            for number, kind in zip(numbers[row.key], copies, strict=True):
                if kind == "started":
                    server.submit(number, SKY)
                    started.add(number)
            _put(session, row, status, numbers[row.key])
            if status in ("stranded", "answered"):
                # Its annotation is one of the server's, or was made on a task that is not there any more.
                images[row.id].split = Split.TRAIN
                session.add(_drawn(site, server, row, images[row.id], numbers[row.key], status))
        if doubt:
            labeling.intend(session, site.project.id, [row.key for row in rows])
    before = set(server.tasks)
    if run == "reconcile":
        found = site.reconcile()
        assert (found.lost, found.twice) == (0, 0)
    else:
        site.pull(full=run == "full pull")

    assert started <= set(server.tasks) <= before, "nobody's work is removed, and nothing is sent"
    if run == "reconcile":
        site.pull(full=True)
    _check_rows(site, numbers)
    if run == "pull":
        return
    after = site.rows()
    for there in server.find_tasks(1, list(after)).values():
        assert len(there) == max(1, len(started & set(there)))
    with site.workspace.database.read() as session:
        assert labeling.unsettled(session, site.project.id) == []
    merged = site.reconcile().merged
    again = site.reconcile()
    assert (again.removed, again.recorded, again.returned, again.merged) == (0, 0, 0, merged)


def _check_rows(site: Site, numbers: dict[str, list[int]]) -> None:
    """What must hold after any run, whatever was before it."""
    there = set(site.server.tasks)
    for row in site.rows().values():
        task, query, split, _ = site.states(row)
        if query in (QueryStatus.SELECTED, QueryStatus.PUSHED):
            assert task in (TaskStatus.PLANNED, TaskStatus.PUSHED)
        if task == TaskStatus.PUSHED:
            assert row.external_task_id in there & set(numbers[row.key])
        if task == TaskStatus.DELETED:
            assert (query, split) == (QueryStatus.WITHDRAWN, Split.POOL)
            assert not there & set(numbers[row.key])
    for one in site.annotations():
        if one.consensus_of is None:
            assert (one.status == AnnotationStatus.DELETED) == (one.external_task_id not in there), one.external_task_id


def _put(session: Any, row: Task, status: str, numbers: list[int]) -> None:
    held, query = session.get_one(Task, row.id), session.get_one(Query, row.query_id)
    deleted = status in ("deleted", "stranded")
    held.status = TaskStatus.PLANNED if status == "planned" else TaskStatus.DELETED if deleted else TaskStatus.PUSHED
    held.external_task_id = None if status == "planned" else 10**6 + row.id
    if status in ("pushed", "answered") and numbers:
        held.external_task_id = numbers[-1]
    states = {"planned": QueryStatus.SELECTED, "deleted": QueryStatus.WITHDRAWN, "answered": QueryStatus.ANNOTATED}
    query.status = states.get(status, QueryStatus.PUSHED)


def _drawn(site: Site, server: MemoryLabelStudio, row: Task, image: Image, numbers: list[int], status: str) -> Annotation:
    made = [(number, item) for number in numbers for item in server.tasks[number]["annotations"]]
    number, item = made[0] if made else (10**6 + row.id, {"id": 10**6 + row.id, "updated_at": "2026-01-01T00:00:00+00:00"})
    return Annotation(
        image_id=image.id,
        query_id=row.query_id,
        source=AnnotationSource.LABELSTUDIO,
        status=AnnotationStatus.VALID if status == "answered" else AnnotationStatus.DELETED,
        label_set_id=site.project.label_set_id,
        mask_location="mask/x.png",
        mask_sha256="0" * 64,
        labeling_project_id=site.project.id,
        external_task_id=number,
        external_annotation_id=item["id"],
        external_updated_at=datetime.fromisoformat(item["updated_at"]),
    )


def test_a_doubt_is_settled_by_what_is_there_and_a_stranger_is_not_touched(site: Site) -> None:
    rows = list(site.rows().values())
    stranger = site.copy(rows[0].external_task_id or 0)
    site.server.tasks[stranger]["data"] = site.server.tasks[stranger]["data"] | {"sha256": "0" * 64}
    late = site.copy(rows[1].external_task_id or 0)
    with site.workspace.database.write() as session:
        call = labeling.intend(session, site.project.id, [row.key for row in rows])
    assert settle(site.workspace, site.server, site.project) == 0  # type: ignore[arg-type]
    assert stranger in site.server.tasks
    assert late not in site.server.tasks
    with site.workspace.database.read() as session:
        (row,) = session.scalars(sa.select(labeling.PushJournal).where(labeling.PushJournal.id == call))
    assert (row.state, row.note) == (JournalState.SETTLED, "4 of 4 tasks were there, 1 second ones removed")
