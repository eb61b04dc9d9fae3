"""Tasks to Label Studio, each exactly once: journal row, request, task numbers and the journal row closed.

The row is committed before the request, so that whatever happens in between leaves a trace to settle by. While the server
works on one request the next is made in a thread, which writes nothing: what is to be recorded of a task comes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from activeseg.db import labeling, sent
from activeseg.db.models import JournalState, LabelingProject
from activeseg.errors import LabelStudioDoubt, LabelStudioRefused, LabelStudioUnauthorized, LabelStudioUnreachable
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.tasks import TaskBody, batches
from activeseg.nn.prefetch import Behind
from activeseg.workspace import Workspace

Item = TypeVar("Item")
# What `LabelStudioClient.import_tasks` raises where the server surely did nothing: nobody has to wait for such a call.
_UNDONE = (LabelStudioRefused, LabelStudioUnauthorized, LabelStudioUnreachable)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request that was answered: its journal row, and the tasks' numbers by key."""

    call: int
    numbers: dict[str, int]


def send_tasks(
    workspace: Workspace,
    client: LabelStudioClient,
    project: LabelingProject,
    tasks: Iterator[TaskBody],
    *,
    on_sent: Callable[[int], None] = lambda done: None,
) -> int:
    """Send tasks in their order, in requests of at most [labelstudio] batch_mb; returns how many were sent.

    tasks: advanced in a thread, one request ahead; an error it raises comes out here once the requests before it are sent.
    on_sent: called after each request with the tasks sent so far. Raises LabelStudioDoubt where an answer was lost: the
    journal row says so, and no later request is sent.
    """
    done = 0
    max_bytes = int(workspace.settings.labelstudio.batch_mb * 1e6)
    record = partial(_record, workspace, project)
    # Closed at once also when an error leaves the loop: its thread must not outlive this call. The answer to a request is
    # recorded while the next one travels; until then its open journal row has the tasks looked for.
    with closing(one_ahead(batches(tasks, max_bytes=max_bytes))) as ready, Behind(record, waiting=0) as recorder:
        for batch in ready:
            recorder.put(_send(workspace, client, project, batch))
            done += len(batch)
            on_sent(done)
    return done


def one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, none of them None; while the caller works on one, the next is made in a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="activeseg-send") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _send(workspace: Workspace, client: LabelStudioClient, project: LabelingProject, batch: list[TaskBody]) -> _Sent:
    keys = [task.key for task in batch]
    with workspace.database.write() as session:
        call = labeling.intend(session, project.id, keys)
        for task in batch:
            if task.left_out:
                labeling.leave_without_prediction(session, task.row_id)
    predictions = sum(task.predictions for task in batch)
    try:
        numbers = client.import_tasks(project.external_project_id, [task.body for task in batch], predictions=predictions)
    except LabelStudioDoubt as doubt:
        with workspace.database.write() as session:
            labeling.journal(session, call, JournalState.DOUBT, str(doubt))
        raise
    except _UNDONE as error:
        with workspace.database.write() as session:
            labeling.journal(session, call, JournalState.SETTLED, f"nothing was done: {error}")
        raise
    return _Sent(call, dict(zip(keys, numbers, strict=True)))


def _record(workspace: Workspace, project: LabelingProject, answered: _Sent) -> None:
    with workspace.database.write() as session:
        sent.mark_pushed(session, project.id, answered.numbers)
        labeling.journal(session, answered.call, JournalState.DONE)
