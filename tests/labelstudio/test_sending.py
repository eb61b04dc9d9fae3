"""One request ahead, and what becomes of errors on either side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from activeseg.db.models import JournalState, PushJournal
from activeseg.errors import LabelStudioDoubt
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.sending import one_ahead, send_tasks
from activeseg.labelstudio.tasks import TaskBody, task_body
from activeseg.workspace import Workspace
from tests.memory_label_studio import MemoryLabelStudio, section

Make = Callable[..., Workspace]


def bodies(count: int, made: list[str] | None = None) -> Iterator[TaskBody]:
    """Tasks of 1 kB; `made` hears of each that is made."""
    for number in range(count):
        if made is not None:
            made.append(f"k{number}")
        yield task_body({"data": {"key": f"k{number}", "sha256": "", "text": "x" * 900}}, number)


class Listens(MemoryLabelStudio):
    """Notes what is sent. fail: raised in answer to the request of this number (from 0)."""

    def __init__(self, fail: tuple[int, Exception] | None = None, wait: Callable[[], Any] = lambda: None) -> None:
        super().__init__()
        self.requests: list[list[str]] = []
        self.fail, self.wait = fail, wait

    def import_tasks(self, project_id: int, tasks: Any, *, predictions: int | None = None) -> list[int]:
        self.wait()
        if self.fail and len(self.requests) == self.fail[0]:
            raise self.fail[1]
        numbers = super().import_tasks(project_id, tasks, predictions=predictions)
        self.requests.append([self.tasks[number]["data"]["key"] for number in numbers])
        return numbers


@pytest.fixture
def workspace(make_sqlite_workspace: Make) -> Workspace:
    return make_sqlite_workspace(pool=1, labelstudio=section("sending") | {"batch_mb": 0.003})


def journal(workspace: Workspace) -> list[tuple[JournalState, list[str]]]:
    with workspace.database.read() as session:
        return [(row.state, row.keys) for row in session.scalars(sa.select(PushJournal).order_by(PushJournal.id))]


def test_tasks_go_out_in_order_and_each_request_has_its_closed_row(workspace: Workspace) -> None:
    client, told = Listens(), []
    assert send_tasks(workspace, client, open_project(workspace, client), bodies(8), on_sent=told.append) == 8
    assert [key for request in client.requests for key in request] == [f"k{number}" for number in range(8)]
    assert told == [3, 6, 8]
    assert journal(workspace) == [(JournalState.DONE, request) for request in client.requests]


def test_the_next_request_is_made_while_one_is_under_way_and_no_more(workspace: Workspace) -> None:
    made: list[str] = []
    first_two = threading.Event()

    def watched() -> Iterator[TaskBody]:
        for body in bodies(12, made):
            if len(made) >= 7:  # the second group is whole once a task of the third is asked for
                first_two.set()
            yield body

    in_time: list[bool] = []
    client = Listens(wait=lambda: None if client.requests else in_time.append(first_two.wait(60)))
    project = open_project(workspace, client)
    seen: list[int] = []
    assert send_tasks(workspace, client, project, watched(), on_sent=lambda sent: seen.append(len(made))) == 12
    assert in_time == [True], "nothing was made while the first request was under way"
    # Sent are 3, 6, 9, 12; made are at most those, the next group and the one task that showed where it ends.
    assert all(count <= sent + 4 for sent, count in zip((3, 6, 9, 12), seen, strict=True))


def test_a_doubt_stays_in_the_journal_and_nothing_is_sent_after_it(workspace: Workspace) -> None:
    client = Listens(fail=(1, LabelStudioDoubt("the answer was lost")))
    project, threads = open_project(workspace, client), threading.active_count()
    with pytest.raises(LabelStudioDoubt):
        send_tasks(workspace, client, project, bodies(9))
    assert client.requests == [["k0", "k1", "k2"]]
    assert journal(workspace) == [(JournalState.DONE, ["k0", "k1", "k2"]), (JournalState.DOUBT, ["k3", "k4", "k5"])]
    assert threading.active_count() == threads, "the thread that makes requests is gone"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), RuntimeError("a bug")])
def test_whatever_ends_the_sender_leaves_an_open_row_and_no_thread(workspace: Workspace, error: BaseException) -> None:
    client = Listens(fail=(1, error))  # type: ignore[arg-type]
    project, threads = open_project(workspace, client), threading.active_count()
    with pytest.raises(type(error)):
        send_tasks(workspace, client, project, bodies(9))
    assert [state for state, _ in journal(workspace)] == [JournalState.DONE, JournalState.INTENDED]
    assert threading.active_count() == threads


def test_an_error_while_a_task_is_made_comes_out_after_the_requests_before_it(workspace: Workspace) -> None:
    def broken() -> Iterator[TaskBody]:
        yield from bodies(7)
        raise OSError("the disk is gone")

    client = Listens()
    with pytest.raises(OSError, match="the disk is gone"):
        send_tasks(workspace, client, open_project(workspace, client), broken())
    assert client.requests == [["k0", "k1", "k2"], ["k3", "k4", "k5"]]
    assert [state for state, _ in journal(workspace)] == [JournalState.DONE, JournalState.DONE]


def test_nothing_to_send_asks_nothing(workspace: Workspace) -> None:
    client = Listens()
    assert send_tasks(workspace, client, open_project(workspace, client), iter(())) == 0
    assert (client.requests, journal(workspace)) == ([], [])


def test_only_one_thread_ever_advances_the_items() -> None:
    names = set()

    def items() -> Iterator[int]:
        for number in range(20):
            names.add(threading.current_thread().name)
            yield number

    assert list(one_ahead(items())) == list(range(20))
    assert len(names) == 1
    assert threading.current_thread().name not in names
    assert names.isdisjoint(thread.name for thread in threading.enumerate()), "and it is gone with the last of them"
