"""A server that answers wrongly for a while, late, or not at all: nobody's work is lost, and nothing is there twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    Arm,
    Image,
    JournalState,
    PushJournal,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    Split,
    Task,
    TaskStatus,
)
from activeseg.errors import LabelStudioDoubt, LabelStudioError, LabelStudioRefused, LeaseError
from activeseg.labelstudio.client import KeyedTask
from activeseg.workspace import Workspace
from tests.loop.test_reconcile import SELECTION, SKY, Killed, Site, pushed
from tests.memory_label_studio import MemoryLabelStudio, push, section

VALID, DELETED = AnnotationStatus.VALID, AnnotationStatus.DELETED
GIVEN_UP = (TaskStatus.DELETED, QueryStatus.WITHDRAWN, Split.POOL)
WAITS = (TaskStatus.PUSHED, QueryStatus.PUSHED, Split.POOL)


@pytest.fixture
def site(make_workspace: Callable[..., Workspace]) -> Site:
    return pushed(make_workspace)


def annotated(site: Site, split: Split = Split.POOL) -> Task:
    """The first task, answered and pulled, its image in this split."""
    first, *_ = site.rows().values()
    site.server.submit(first.external_task_id or 0, SKY)
    site.pull()
    with site.workspace.database.write() as session:
        session.get_one(Image, session.get_one(Query, first.query_id).image_id).split = split
    return site.rows()[first.key]


def everything(site: Site) -> list[tuple[Any, ...]]:
    return [(row.key, row.external_task_id, *site.states(row)) for row in site.rows().values()]


def test_an_answered_task_that_is_deleted_takes_its_annotation_and_its_image_returns(site: Site) -> None:
    first = annotated(site, Split.TRAIN)
    site.server.delete_tasks(1, [first.external_task_id or 0])
    site.pull()
    assert site.states(first) == (*GIVEN_UP, [DELETED])
    assert site.rows()[first.key].external_task_id is None
    before = everything(site)
    site.pull(full=True)
    assert everything(site) == before


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_a_query_that_waits_although_its_task_was_given_up_is_put_right(site: Site, there: bool, full: bool) -> None:
    first = annotated(site, Split.TRAIN)
    with site.workspace.database.write() as session:
        session.get_one(Task, first.id).status = TaskStatus.DELETED
        session.get_one(Query, first.query_id).status = QueryStatus.PUSHED
        session.scalars(sa.select(Annotation)).one().status = DELETED
    if not there:
        site.server.delete_tasks(1, [first.external_task_id or 0])
    site.pull(full=full)
    if there:
        assert site.states(first) == (TaskStatus.PUSHED, QueryStatus.ANNOTATED, Split.TRAIN, [VALID])
    else:
        assert site.states(first) == (*GIVEN_UP, [DELETED])


class EmptyOnce(MemoryLabelStudio):
    """Answers the first question of what tasks there are with none."""

    empty = False

    def task_ids(self, project_id: int, expected: Collection[int] = ()) -> list[int]:
        return [] if self._once() else super().task_ids(project_id)

    def keyed_tasks(self, project_id: int, keys: Sequence[str] | None = None) -> Iterator[KeyedTask]:
        if keys is None and self._once():
            return iter(())
        numbers = MemoryLabelStudio.task_ids(self, project_id)
        tasks = ((number, self.tasks[number]["data"]) for number in numbers)
        return iter([KeyedTask(n, d["key"], d["sha256"]) for n, d in tasks if keys is None or d["key"] in keys])

    def untouched_tasks(self, project_id: int, among: Sequence[int] | None = None) -> list[int]:
        return [number for number in among or () if not self.tasks[number]["annotations"]]

    def _once(self) -> bool:
        empty, self.empty = self.empty, False
        return empty


ASK = {"pull": Site.pull, "full": lambda site: site.pull(full=True), "reconcile": Site.reconcile}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_a_listing_that_is_empty_once_costs_nothing(
    make_sqlite_workspace: Callable[..., Workspace], ask: Callable[[Site], Any]
) -> None:
    server = EmptyOnce()
    site = pushed(make_sqlite_workspace, server)
    annotated(site)
    before = everything(site)
    server.empty = True
    ask(site)
    assert not server.empty, "the question was never asked"
    assert everything(site) == before
    site.one_each()


def test_tasks_that_were_not_there_for_a_while_are_what_they_were(site: Site) -> None:
    annotated(site)
    before, held = everything(site), dict(site.server.tasks)
    site.server.tasks.clear()
    site.pull()
    assert {row[2:5] for row in everything(site)} == {GIVEN_UP}
    site.server.tasks.update(held)
    details = site.pull(full=True)
    assert site.server.tasks.keys() == held.keys()
    assert everything(site) == before
    assert (details["recorded"], details["there again"]) == (4, 1)
    assert site.pull() == {}


def test_a_pull_from_a_wrong_server_costs_nothing_at_the_right_one(site: Site) -> None:
    before, right = everything(site), site.server
    site.server = MemoryLabelStudio()
    site.pull()
    assert {row[2:5] for row in everything(site)} == {GIVEN_UP}
    site.server = right
    site.pull(full=True)
    assert everything(site) == before
    site.one_each()


def test_a_round_whose_task_is_back_waits_again(site: Site) -> None:
    held = dict(site.server.tasks)
    site.server.tasks.clear()
    site.pull()
    with site.workspace.database.write() as session:
        session.scalars(sa.select(Round)).one().status = RoundStatus.CLOSED
    site.server.tasks.update(held)
    assert site.pull()["recorded"] == 4
    with site.workspace.database.read() as session:
        assert session.scalars(sa.select(Round)).one().status == RoundStatus.PUSHED


@pytest.mark.parametrize("status", [QueryStatus.SELECTED, QueryStatus.PUSHED, QueryStatus.ANNOTATED])
@pytest.mark.parametrize("full", [True, False])
def test_a_task_that_is_back_is_removed_where_its_image_was_asked_for_again(
    site: Site, status: QueryStatus, full: bool
) -> None:
    first, *_ = site.rows().values()
    number = first.external_task_id or 0
    held = site.server.tasks.pop(number)
    site.pull()
    with site.workspace.database.write() as session:
        image = session.get_one(Query, first.query_id).image_id
        later = Round(number=2, status=RoundStatus.PUSHED, acquisition="random", seed=1, query_size=1, control_share=0.0)
        session.add(later)
        session.flush()
        again = Query(round_id=later.id, image_id=image, status=status, arm=Arm.CHOSEN, rank=1, shown_order=0, reason="")
        session.add(again)
    site.server.tasks[number] = held
    details = site.pull(full=full)
    assert (details["removed"], "recorded" in details) == (1, False)
    assert number not in site.server.tasks
    assert site.states(first)[:2] == GIVEN_UP[:2]


class Late(MemoryLabelStudio):
    """Its gateway answers 504 to the first request for tasks, which is carried out when `finish` is called."""

    held: Any = None

    def import_tasks(self, project_id: int, tasks: Any, **options: Any) -> list[int]:
        if self.held is None:
            self.held = (project_id, list(tasks))
            self.promised()
            raise LabelStudioDoubt("may or may not: HTTP 504")
        return super().import_tasks(project_id, tasks, **options)

    def promised(self) -> None:
        """Called when the first request is in."""

    def finish(self) -> None:
        super().import_tasks(*self.held)


class Soon(Late):
    def promised(self) -> None:
        threading.Timer(1.0, self.finish).start()


def test_tasks_of_a_request_that_is_still_under_way_are_waited_for(make_sqlite_workspace: Callable[..., Workspace]) -> None:
    server = Soon()
    workspace = make_sqlite_workspace(pool=8, selection=SELECTION, labelstudio=section("ours") | {"doubt_seconds": 60})
    push(workspace, server)
    assert len(server.tasks) == 4
    with workspace.database.read() as session:
        assert [row.state for row in session.scalars(sa.select(PushJournal))] == [JournalState.SETTLED]


@pytest.mark.parametrize("started", [True, False])
def test_second_tasks_that_came_later_still_are_found_by_the_next_ordinary_pull(
    make_sqlite_workspace: Callable[..., Workspace], started: bool
) -> None:
    server = Late()
    site = pushed(make_sqlite_workspace, server)
    server.finish()
    assert len(server.tasks) == 8
    late = max(server.tasks)
    if started:
        server.submit(late, SKY)
    details = site.pull()
    assert (details.get("removed"), details.get("merged")) == (4, None)
    assert len(server.tasks) == 4
    assert (late in server.tasks) == started
    site.one_each()


def test_a_request_that_was_refused_is_waited_for_by_nobody(make_sqlite_workspace: Callable[..., Workspace]) -> None:
    class Refuses(MemoryLabelStudio):
        def import_tasks(self, *_: Any, **__: Any) -> list[int]:
            raise LabelStudioRefused("HTTP 400: bad")

    with pytest.raises(LabelStudioRefused):
        pushed(make_sqlite_workspace, Refuses())
    workspace = make_sqlite_workspace(pool=8, labelstudio=section("ours"))
    with workspace.database.read() as session:
        (row,) = session.scalars(sa.select(PushJournal))
    assert (row.state, row.note) == (JournalState.SETTLED, "nothing was done: HTTP 400: bad")


def test_a_server_set_back_to_a_backup_gives_numbers_again_and_the_push_goes_on(site: Site) -> None:
    rows = list(site.rows().values())
    numbers = [row.external_task_id or 0 for row in rows]
    site.server.delete_tasks(1, numbers[2:])
    site.server._numbers = iter(range(numbers[2], 10_000))
    with site.workspace.database.write() as session:
        # Two queries wait for their push, while rows still name the numbers that are given out again.
        for row in rows[:2]:
            session.get_one(Task, row.id).status = TaskStatus.PLANNED
            session.get_one(Task, row.id).external_task_id = None
            session.get_one(Query, row.query_id).status = QueryStatus.SELECTED
        session.scalars(sa.select(Round)).one().status = RoundStatus.SELECTED
    site.server.delete_tasks(1, numbers[:2])
    push(site.workspace, site.server)
    site.pull()
    assert [site.states(row)[0] for row in rows] == [TaskStatus.PUSHED] * 2 + [TaskStatus.DELETED] * 2
    assert [site.rows()[row.key].external_task_id for row in rows] == [*numbers[2:], None, None]
    site.one_each()


def test_a_process_whose_lease_is_gone_removes_nothing(make_sqlite_workspace: Callable[..., Workspace]) -> None:
    class Fence:
        def check(self, session: Any) -> None:
            raise LeaseError("the lease went to another process")

    site = pushed(make_sqlite_workspace)
    (first, *_) = site.rows().values()
    site.copy(first.external_task_id or 0)
    site.workspace.database.fence = Fence()  # type: ignore[assignment]
    with pytest.raises(LeaseError):
        site.give_up_missing()
    assert len(site.server.tasks) == 5


class LosesRemovals(MemoryLabelStudio):
    """The answer to the first removal is lost; what happens with the request is up to `does`."""

    does: Callable[[int], None]
    requests: int = 0

    def delete_tasks(self, project_id: int, ids: Sequence[int]) -> None:
        self.requests += 1
        if self.requests > 1:
            super().delete_tasks(project_id, ids)
        else:
            self.does(ids[0])
            raise LabelStudioDoubt("may or may not: ReadTimeout")


@pytest.mark.parametrize("fate", ["done", "not done", "a person starts"])
def test_a_removal_without_an_answer_is_not_repeated_blindly(
    make_sqlite_workspace: Callable[..., Workspace], fate: str
) -> None:
    server = LosesRemovals()
    site = pushed(make_sqlite_workspace, server)
    (first, *_) = site.rows().values()
    late = site.copy(first.external_task_id or 0)
    server.does = {
        "done": lambda number: MemoryLabelStudio.delete_tasks(server, 1, [number]),
        "not done": lambda number: None,
        "a person starts": lambda number: server.submit(number, SKY),
    }[fate]
    found = site.reconcile()
    person = fate == "a person starts"
    # The one a person has started stays; the other, which nobody has, is the one to go.
    assert (late in server.tasks, len(server.tasks)) == (person, 4)
    assert server.requests == (1 if fate == "done" else 2)
    assert (found.lost, found.twice) == (0, 0)
    site.one_each()


def test_a_removal_that_never_gets_an_answer_is_told(make_sqlite_workspace: Callable[..., Workspace]) -> None:
    class Never(MemoryLabelStudio):
        requests = 0

        def delete_tasks(self, project_id: int, ids: Sequence[int]) -> None:
            self.requests += 1
            raise LabelStudioDoubt("may or may not: ReadTimeout")

    server = Never()
    site = pushed(make_sqlite_workspace, server)
    (first, *_) = site.rows().values()
    site.copy(first.external_task_id or 0)
    with pytest.raises(LabelStudioError, match="ReadTimeout"):
        site.reconcile()
    assert server.requests == 2


def test_second_tasks_that_stay_do_not_make_every_night_list_the_project_twice(
    make_sqlite_workspace: Callable[..., Workspace],
) -> None:
    class Counts(MemoryLabelStudio):
        listings = 0

        def keyed_tasks(self, project_id: int, keys: Sequence[str] | None = None) -> Iterator[KeyedTask]:
            self.listings += keys is None
            return super().keyed_tasks(project_id, keys)

    class Dies(Late):
        def promised(self) -> None:
            raise Killed

    server = Dies()
    with pytest.raises(Killed):
        pushed(make_sqlite_workspace, server)
    server.__class__ = Counts
    site = pushed(make_sqlite_workspace, server, "another")
    (stray,) = MemoryLabelStudio.import_tasks(server, server.held[0], server.held[1][:1])
    (first, *_) = site.rows().values()
    for number in (first.external_task_id or 0, site.copy(first.external_task_id or 0), stray):
        server.submit(number, SKY)
    site.reconcile()
    server.listings = 0
    found = site.reconcile()
    assert (server.listings, found.merged, found.foreign) == (1, 1, 0)
    former = Site(site.workspace, server, _project(site, 1))
    server.listings = 0
    assert (former.reconcile().foreign, server.listings) == (1, 1)
    assert stray in server.tasks


def _project(site: Site, number: int) -> Any:
    from activeseg.db.models import LabelingProject

    with site.workspace.database.read() as session:
        return session.get_one(LabelingProject, number)
