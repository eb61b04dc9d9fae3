"""What became of our tasks in Label Studio: calls nobody knows the end of, tasks that are there twice or not at all.

Label Studio has no unique key, so ours stands in `task.data.key`: a task is looked up by it before it is sent again, and
one with our key is ours only if its `data.sha256` is that of the image we sent it for.

    our row says   the server has   becomes
    planned        the task         pushed; it names the task
    planned        nothing          stays planned: the push sends it
    pushed         another number   it names the task that is there
    pushed         nothing          deleted: unless a mask of the image counts, it returns to the pool
    planned, and   nothing          planned, and its round is pushed again
    none sends it
    deleted        the task         nobody's: removed, unless somebody has started it
    any            several          one is kept; others are removed, unless somebody has started them

A row becomes pushed only when the server has said that it has the task. So a pushed task that is not there was deleted by
somebody, or the server went back to an older backup; it never is one we forgot to send.

    deleted, its    the task         pushed again, unless the image is asked for by another query or counts already
    image waits

One limit: a request to a former project may come to its end after its images were planned anew in another one. Its tasks are
known by the journal alone: they are removed unless somebody has started them; work on those counts as a stranger's, and is not
collected.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from activeseg.comparison import Comparison, compare, find, look, remove_surplus, untouched_of
from activeseg.db import labeling, sent
from activeseg.db.models import JournalState, LabelingProject, PushJournal, TaskStatus
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.records import ImageRef, StageReport
from activeseg.workspace import Workspace

_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How our tables and a project compare, after what could be mended was.

    tasks: of ours on the server, a key counted once. lost: rows whose task neither is there nor will be sent. twice: second
    tasks of a key that nobody has started and that are still there. removed: second tasks deleted by this run. merged: second
    tasks somebody has started; they stay, and their annotations belong to the same query. foreign: tasks of others.
    recorded: tasks found that our rows did not know of. returned: tasks that are not there, given up or to be sent again.
    """

    tasks: int
    lost: int
    twice: int
    removed: int
    merged: int
    foreign: int
    recorded: int = 0
    returned: int = 0


def task_key(project: LabelingProject, round_number: int, image: ImageRef) -> str:
    """The key of an image's task in a round: the same whenever it is computed, and telling nothing.

    Two files of the same bytes are two images, and a round may ask for both.
    """
    text = f"{project.instance_key}/{project.external_project_id}/{round_number}/{image.sha256}/{image.uri}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def settle(workspace: Workspace, client: LabelStudioClient, project: LabelingProject) -> int:
    """Look up what became of calls nobody knows the end of; returns how many tasks were found and recorded.

    Calls to former projects are looked up too, before their images are planned anew for `project`.
    """
    with workspace.database.read() as session:
        waiting = sent.projects(session, unsettled=True)
    elsewhere = [one for one in waiting if one.id != project.id]
    born = client.project_births() if elsewhere else {}
    found = 0
    for one in waiting:
        if one.id == project.id or born.get(one.external_project_id) == one.instance_key:
            found += _settle_calls(workspace, client, one)
        else:
            _close_calls(workspace, one)
    return found


def give_up_missing(workspace: Workspace, client: LabelStudioClient, project: LabelingProject) -> Counter[str]:
    """Mark tasks deleted that we believe pushed and that are not there any more, with the annotations made on them.

    Only numbers are listed. What is not among them is asked for once more, by number and by key: another task of the same
    key takes the place of one that is gone. Numbers our rows do not name are looked at too: they may be second tasks of a
    request that came to its end late. Returns `returned` (how many were given up), `removed`, `merged` and `recorded`, as in
    `Reconciled`.
    """
    with workspace.database.read() as session:
        ours, known = sent.tasks_of(session, project.id), sent.journal_keys(session, project.id)
        annotated = sent.annotated_numbers(session, project.id)
    pushed = {row.number: row.key for row in ours.values() if row.status == TaskStatus.PUSHED and row.number is not None}
    listed = set(client.task_ids(project.external_project_id, expected=pushed))
    absent = (pushed.keys() | annotated) - listed
    seen = look(client, project, ours, sorted(absent | (listed - pushed.keys())), known)
    gone = {row.key for row in ours.values() if row.stranded or (row.status == TaskStatus.PUSHED and row.number not in listed)}
    found = find(client, project, {key: ours[key] for key in gone | seen.numbers.keys()})
    found.there |= listed | seen.there
    found.strays = seen.strays
    return _mend(workspace, client, project, found)


def give_up_project(workspace: Workspace, project: LabelingProject) -> int:
    """A project that is gone: what is open there will never be answered; returns how many tasks that were.

    What people had submitted there stays: that a server was rebuilt takes nothing back.
    """
    _close_calls(workspace, project)
    with workspace.database.write() as session:
        return sent.give_up(session, project.id, sent.open_keys(session, project.id))


def reconcile_project(workspace: Workspace, client: LabelStudioClient, project: LabelingProject) -> Reconciled:
    """Compare all tasks of a project with our rows, mend what differs, and compare again.

    Needs the lease. Pull afterwards: annotations of merged tasks are collected by key, under the one query.
    """
    settle(workspace, client, project)
    found = compare(workspace, client, project)
    counts = _mend(workspace, client, project, found)
    if found.differs or counts["removed"] or counts["strays removed"]:
        found = compare(workspace, client, project)
    surplus = sum(len(numbers) - found.allowed(key) for key, numbers in found.surplus.items())
    twice = _still_twice(client, project, found)
    return Reconciled(
        tasks=len(found.numbers),
        lost=len(found.missing) + len(found.forgotten),
        twice=twice,
        merged=surplus - twice,
        foreign=found.foreign + len(found.strays),
        removed=counts["removed"],
        recorded=counts["recorded"],
        returned=counts["returned"],
    )


def reconcile(workspace: Workspace, client: LabelStudioClient) -> StageReport:
    """Reconcile every project tasks were sent to and that still exists. Needs the lease.

    The report's details sum up `Reconciled`; its failures are what is lost or there twice. Open tasks of projects that
    are gone are given up.
    """
    started, sums = time.monotonic(), Counter[str]()
    with workspace.database.read() as session:
        ours = sent.projects(session)
    born = client.project_births() if ours else {}
    for project in ours:
        if born.get(project.external_project_id) == project.instance_key:
            sums.update(asdict(reconcile_project(workspace, client, project)))
        else:
            sums["returned"] += give_up_project(workspace, project)
    details = {name: sums[name] for name in Reconciled.__dataclass_fields__}
    written = sums["removed"] + sums["recorded"] + sums["returned"]
    return StageReport("reconcile", written, sums["lost"] + sums["twice"], time.monotonic() - started, details)


def _settle_calls(workspace: Workspace, client: LabelStudioClient, project: LabelingProject) -> int:
    with workspace.database.read() as session:
        open_calls = labeling.unsettled(session, project.id)
    recorded = 0
    for call in open_calls:
        found, counts = _wait_for(workspace, client, project, call), Counter[str]()
        kept = remove_surplus(workspace, client, project, found, counts)
        with workspace.database.write() as session:
            recorded += sent.point(session, project.id, kept)
            note = f"{len(found.numbers)} of {len(call.keys)} tasks were there, {counts['removed']} second ones removed"
            labeling.journal(session, call.id, JournalState.SETTLED, note)
    return recorded


def _wait_for(workspace: Workspace, client: LabelStudioClient, project: LabelingProject, call: PushJournal) -> Comparison:
    """What there is of a call's tasks. The server may still be at work on it: no task is taken for not sent too early."""
    doubt = workspace.settings.labelstudio.doubt_seconds
    age = (datetime.now(UTC) - (call.ended_at or call.intended_at)).total_seconds()
    # Not longer than that either where our clock was set back meanwhile.
    until = time.monotonic() + min(doubt - age, doubt)
    while True:
        with workspace.database.read() as session:
            ours = sent.tasks_of(session, project.id, call.keys)
        found = find(client, project, ours, call.keys)
        left = until - time.monotonic()
        if left <= 0 or found.keys >= set(call.keys):
            return found
        time.sleep(min(_PAUSE, left))


def _close_calls(workspace: Workspace, project: LabelingProject) -> None:
    with workspace.database.write() as session:
        for call in labeling.unsettled(session, project.id):
            labeling.journal(session, call.id, JournalState.SETTLED, "the project is gone")


def _mend(workspace: Workspace, client: LabelStudioClient, project: LabelingProject, found: Comparison) -> Counter[str]:
    """Put right what differs; counts `removed`, `merged`, `recorded` and `returned`."""
    counts = Counter[str]()
    kept = remove_surplus(workspace, client, project, found, counts)
    wanting = [*found.missing, *found.forgotten]
    again = _ask_again(workspace, client, project, found, wanting)
    with workspace.database.write() as session:
        counts["recorded"] = sent.point(session, project.id, kept | again)
        # First: an image whose mask went with its task returns to the pool.
        sent.mark_annotations_deleted(session, project.id, found.there)
        counts["returned"] = sent.give_up(session, project.id, [key for key in found.missing if key not in again])
        counts["returned"] += sent.reopen(session, project.id, [key for key in found.forgotten if key not in again])
    return counts


def _ask_again(
    workspace: Workspace, client: LabelStudioClient, project: LabelingProject, found: Comparison, wanting: Sequence[str]
) -> dict[str, int]:
    """Tasks of keys that no listing had, asked for by key and by number; what is there goes to `found.there`.

    An answer that was short of a task must not cost its annotations.
    """
    ours = {key: found.ours[key] for key in wanting}
    with workspace.database.read() as session:
        numbers = sent.annotated_numbers(session, project.id)
    numbers |= {row.number for row in ours.values() if row.number is not None}
    answers = [look(client, project, ours, sorted(numbers - found.there)), find(client, project, ours)]
    found.there.update(*(answer.there for answer in answers))
    return {key: numbers[0] for answer in answers for key, numbers in answer.numbers.items()}


def _still_twice(client: LabelStudioClient, project: LabelingProject, found: Comparison) -> int:
    """Second tasks nobody has started: of each key as many as there are beyond the one that may be there."""
    surplus = found.surplus
    untouched = untouched_of(client, project, [number for numbers in surplus.values() for number in numbers])
    waiting = {key: sum(number in untouched for number in numbers) for key, numbers in surplus.items()}
    return sum(min(waiting[key], len(numbers) - found.allowed(key)) for key, numbers in surplus.items())
