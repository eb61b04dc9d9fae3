"""Whatever happens between this program and a real Label Studio: every query has one task, and no work is lost."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from activeseg.db import labeling, lease, truth
from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    JournalState,
    LabelingProject,
    PushJournal,
    Query,
    QueryStatus,
    Task,
)
from activeseg.demo.annotator import Browser
from activeseg.errors import LabelStudioError, LeaseError
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.regions import mask_to_result
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.labelstudio.server import RunningServer, start_server
from activeseg.loop import advance_round
from activeseg.reconciliation import reconcile
from activeseg.stages.pull import pull_annotations
from activeseg.workspace import Workspace
from tests.factories import CLASSES
from tests.forked import CONTEXT
from tests.loop.proxy import Fault, creates_tasks, proxy
from tests.loop.worker import push_and_stop

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

SKY = mask_to_result(np.zeros((48, 64), np.uint8), CLASSES, kind="brush")
SELECTION = {"bootstrap_size": 6, "query_size": 4, "refill_below": 1}


@pytest.fixture
def person(labelstudio_server: RunningServer) -> Browser:
    """Somebody with an account of their own, who does what the page would do."""
    return Browser(labelstudio_server.url, labelstudio_server.add_user("somebody@example.com")[1])


def tasks_of(workspace: Workspace) -> list[Task]:
    with workspace.database.read() as session:
        return list(session.scalars(sa.select(Task).order_by(Task.id)))


def check_once(workspace: Workspace, client: LabelStudioClient, count: int) -> dict[str, Any]:
    """Reconcile; then each of `count` queries has the one task its row names, and the project has no other."""
    with lease.holding(workspace.database):
        found = reconcile(workspace, client)
        again = reconcile(workspace, client)
    assert (found.failed, found.details["lost"], found.details["twice"]) == (0, 0, 0)
    assert again.written == 0
    project, rows = open_project(workspace, client), tasks_of(workspace)
    there = client.find_tasks(project.external_project_id, [row.key for row in rows])
    assert there == {row.key: [row.external_task_id] for row in rows}
    assert len(client.task_ids(project.external_project_id)) == len(rows) == count
    with workspace.database.read() as session:
        assert labeling.unsettled(session, project.id) == []
    return found.details


FAULTS: list[tuple[Fault, set[JournalState]]] = [
    ("drops the answer", {JournalState.SETTLED, JournalState.DONE}),
    ("answers 504 after the commit", {JournalState.SETTLED, JournalState.DONE}),
    ("answers 500 before it", {JournalState.SETTLED, JournalState.DONE}),
    ("cuts the request in half", {JournalState.SETTLED, JournalState.DONE}),
]


@pytest.mark.parametrize(("fault", "states"), FAULTS, ids=[name for name, _ in FAULTS])
def test_a_line_that_fails_at_every_second_request_sends_every_task_once(
    make_sqlite_workspace: Callable[..., Workspace],
    with_label_studio: dict[str, Any],
    labelstudio_server: RunningServer,
    fault: Fault,
    states: set[JournalState],
) -> None:
    requests = 0

    def every_second(head: bytes) -> Fault | None:
        nonlocal requests
        requests += creates_tasks(head)
        return fault if creates_tasks(head) and requests % 2 else None

    with proxy(labelstudio_server.url, every_second) as url:
        # So small that every task is a request of its own.
        workspace = make_sqlite_workspace(
            pool=8, selection=SELECTION, labelstudio=with_label_studio | {"url": url, "batch_mb": 1e-4}
        )
        with open_client(workspace.settings) as client:
            for _ in range(10):
                try:
                    advance_round(workspace, client)
                    break
                except LabelStudioError:
                    continue
            assert check_once(workspace, client, 6)["removed"] == 0
    with workspace.database.read() as session:
        assert set(session.scalars(sa.select(PushJournal.state))) == states
    committed = fault in ("drops the answer", "answers 504 after the commit")
    assert requests >= (6 if committed else 11), "a task that is there is not sent again, one that is not is"


def test_a_gateway_that_gives_up_while_the_server_works_on_makes_no_task_twice(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], labelstudio_server: RunningServer
) -> None:
    requests = 0

    def first(head: bytes) -> Fault | None:
        nonlocal requests
        requests += creates_tasks(head)
        return "answers 504 and forwards it 2 s later" if creates_tasks(head) and requests == 1 else None

    with proxy(labelstudio_server.url, first) as url:
        section = with_label_studio | {"url": url, "doubt_seconds": 60}
        workspace = make_sqlite_workspace(pool=8, selection=SELECTION, labelstudio=section)
        with open_client(workspace.settings) as client:
            advance_round(workspace, client)
            assert requests == 1, "what was on its way is not sent again"
            assert check_once(workspace, client, 6)["removed"] == 0


@dataclass
class Stopped:
    """A process stopped with a request unsent, another that did its work meanwhile, and the first one gone on."""

    workspace: Workspace
    project: LabelingProject
    doubles: dict[str, list[int]]
    outcome: str


@pytest.fixture
def stopped(
    make_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], tmp_path: Path, database_url: str
) -> Stopped:
    sections = {"selection": SELECTION, "labelstudio": with_label_studio}
    workspace = make_workspace(pool=8, **sections)
    first = CONTEXT.Process(target=push_and_stop, args=(tmp_path, database_url, sections, 8, tmp_path / "outcome"), daemon=True)
    first.start()
    try:
        _wait(lambda: _state(first.pid) == "T", "the first process never got to its request")
        with workspace.database.read() as session:
            assert session.scalars(sa.select(PushJournal.state)).all() == [JournalState.INTENDED]
        with open_client(workspace.settings) as client:
            with _takeover(workspace):
                advance_round(workspace, client)
            project = open_project(workspace, client)
            rows = tasks_of(workspace)
            assert len(client.task_ids(project.external_project_id)) == len(rows) == 6
            _signal(first.pid, "CONT")
            first.join(300)
            doubles = client.find_tasks(project.external_project_id, [row.key for row in rows])
    finally:
        first.kill()
    return Stopped(workspace, project, doubles, (tmp_path / "outcome").read_text(encoding="utf-8"))


def test_a_process_stopped_across_a_takeover_makes_tasks_twice_and_nobodys_work_is_lost(
    stopped: Stopped, person: Browser
) -> None:
    workspace, project = stopped.workspace, stopped.project.external_project_id
    assert "went to another process" in stopped.outcome, "its next write must be refused"
    assert {len(numbers) for numbers in stopped.doubles.values()} == {2}
    on_ours, on_other, on_both, skipped, drafted, untouched = (
        (row, *_ours_and_other(row, stopped.doubles[row.key])) for row in tasks_of(workspace)
    )

    def submit(task: int, **extra: Any) -> None:
        person.call("POST", f"/api/tasks/{task}/annotations/", {"result": SKY, "lead_time": 30.0, **extra}, project=project)

    submit(on_ours[1])
    submit(on_other[2])
    submit(on_both[1])
    submit(on_both[2])
    submit(skipped[2], was_cancelled=True)
    person.call("POST", f"/api/tasks/{drafted[2]}/drafts", {"result": [], "lead_time": 1.0}, project=project)

    with open_client(workspace.settings) as client, lease.holding(workspace.database):
        found = reconcile(workspace, client)
        details = {name: found.details[name] for name in ("tasks", "lost", "twice", "removed", "merged")}
        assert details == {"tasks": 6, "lost": 0, "twice": 0, "removed": 5, "merged": 1}
        pull_annotations(workspace, client)
        there = client.find_tasks(project, [row.key for row in tasks_of(workspace)])
    assert there == {
        on_ours[0].key: [on_ours[1]],
        on_other[0].key: [on_other[2]],
        on_both[0].key: sorted(on_both[1:]),
        skipped[0].key: [skipped[2]],
        drafted[0].key: [drafted[2]],
        untouched[0].key: [untouched[1]],
    }
    rows = {row.key: row.external_task_id for row in tasks_of(workspace)}
    assert all(rows[key] in numbers for key, numbers in there.items())
    with workspace.database.read() as session:
        drawn = session.scalars(sa.select(Annotation).where(Annotation.consensus_of.is_(None))).all()
        linked = sorted((row.query_id, row.external_task_id, row.status) for row in drawn)
        statuses = {row.id: row.status for row in session.scalars(sa.select(Query))}
    valid, cancelled = AnnotationStatus.VALID, AnnotationStatus.SKIPPED
    assert linked == sorted(
        [
            (on_ours[0].query_id, on_ours[1], valid),
            (on_other[0].query_id, on_other[2], valid),
            (on_both[0].query_id, on_both[1], valid),
            (on_both[0].query_id, on_both[2], valid),
            (skipped[0].query_id, skipped[2], cancelled),
        ]
    )
    assert Counter(statuses.values()) == {QueryStatus.ANNOTATED: 3, QueryStatus.SKIPPED: 1, QueryStatus.PUSHED: 2}


def _ours_and_other(row: Task, numbers: list[int]) -> tuple[int, int]:
    (other,) = [number for number in numbers if number != row.external_task_id]
    return row.external_task_id or 0, other


def _takeover(workspace: Workspace) -> Any:
    """The lease, as soon as it has run out: its holder is alive, so it is not taken before."""
    deadline = datetime.now(UTC) + timedelta(seconds=60)
    while True:
        holding = lease.holding(workspace.database)
        try:
            holding.__enter__()
        except LeaseError:
            assert datetime.now(UTC) < deadline, "the lease never ran out"
            time.sleep(0.1)
        else:
            holding.__exit__(None, None, None)
            return lease.holding(workspace.database)


def _wait(condition: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.05)


def _state(pid: int | None) -> str:
    """Linux' letter for what a process does: T is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]


def _signal(pid: int | None, name: str) -> None:
    os.kill(pid or 0, getattr(signal, f"SIG{name}"))


def test_a_rebuilt_server_that_starts_again_at_task_one_is_taken_for_nothing_it_was(
    make_sqlite_workspace: Callable[..., Workspace],
    with_label_studio: dict[str, Any],
    person: Browser,
    tmp_path: Path,
) -> None:
    workspace = make_sqlite_workspace(pool=12, selection=SELECTION, labelstudio=with_label_studio)
    with open_client(workspace.settings) as client:
        advance_round(workspace, client)
        project = open_project(workspace, client)
        first, *_ = old = tasks_of(workspace)
        person.call(
            "POST", f"/api/tasks/{first.external_task_id}/annotations/", {"result": SKY}, project=project.external_project_id
        )
        pull_annotations(workspace, client)

    with start_server(tmp_path / "rebuilt", log=tmp_path / "rebuilt.log") as rebuilt:
        with LabelStudioClient(rebuilt.url, rebuilt.token()) as stranger:
            same = stranger.ensure_project(project.title, workspace.label_set, "brush")
            filler = [{"data": {"image": "x", "entropy": ["x"], "doubt": "", "key": f"other {n}"}} for n in range(2)]
            numbers = stranger.import_tasks(same.id, filler)
            visitor = Browser(rebuilt.url, rebuilt.token())
            visitor.call("POST", f"/api/tasks/{numbers[0]}/annotations/", {"result": SKY}, project=same.id)
            # The very numbers, the very keys: a copy of the old tasks by hand, with work on it.
            copies = [{"data": filler[0]["data"] | {"key": row.key, "sha256": "0" * 64}} for row in old]
            for number in stranger.import_tasks(same.id, copies):
                visitor.call("POST", f"/api/tasks/{number}/annotations/", {"result": SKY}, project=same.id)
        section = with_label_studio | {"url": rebuilt.url, "token_file": str(tmp_path / "rebuilt-token")}
        (tmp_path / "rebuilt-token").write_text(rebuilt.token(), encoding="utf-8")
        (tmp_path / "rebuilt-token").chmod(0o600)
        moved = make_sqlite_workspace(pool=12, selection=SELECTION, labelstudio=section)
        with open_client(moved.settings) as client:
            report = pull_annotations(moved, client, full=True)
            assert (report.details["foreign"], report.details["tasks deleted"]) == (7, 5)
            with moved.database.read() as session:
                (kept,) = session.scalars(sa.select(Annotation)).all()
                assert (kept.query_id, kept.status) == (first.query_id, AnnotationStatus.VALID)
                assert len(truth.current(session)) == 1
            advance_round(moved, client)
            new = [row for row in tasks_of(moved) if row.id not in {known.id for known in old}]
            now = open_project(moved, client)
            assert now.instance_key != project.instance_key
            there = client.find_tasks(now.external_project_id, [row.key for row in new])
            assert there == {row.key: [row.external_task_id] for row in new}
            assert new
            with lease.holding(moved.database):
                found = reconcile(moved, client)
    assert (found.failed, found.details["tasks"], found.details["foreign"]) == (0, len(new), 8)
