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

Removing a task has a gap that Label Studio gives no means to close: between the question whether anybody has started it and
its removal, a moment later, a person may submit an annotation, which goes with it. Small groups keep the moment short, and
such a task is a second copy of another that the person will meet again.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from activeseg.db import labeling, sent
from activeseg.db.models import JournalState, LabelingProject, TaskStatus
from activeseg.db.sent import SentTask
from activeseg.labelstudio.client import KeyedTask, LabelStudioClient
from activeseg.labelstudio.connection import TEST_KEY
from activeseg.records import ImageRef, StageReport
from activeseg.workspace import Workspace

_GROUP = 20


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


@dataclass(slots=True)
class _Comparison:
    """Our rows beside the server's tasks."""

    ours: dict[str, SentTask]
    numbers: dict[str, list[int]] = field(default_factory=dict)
    foreign: int = 0
    strays: list[int] = field(default_factory=list)
    there: set[int] = field(default_factory=set)

    @property
    def differs(self) -> bool:
        """Whether anything is to be mended."""
        return bool(self.unrecorded or self.missing or self.forgotten or self.surplus or self.strays)

    @property
    def unrecorded(self) -> list[str]:
        """Keys of tasks that are there and whose rows name none of them."""
        live = ((key, self.ours[key]) for key in self.numbers if self.ours[key].status != TaskStatus.DELETED)
        return [key for key, row in live if row.status == TaskStatus.PLANNED or row.number not in self.numbers[key]]

    @property
    def missing(self) -> list[str]:
        """Keys of tasks we believe pushed that are not there."""
        return [key for key, row in self.ours.items() if row.status == TaskStatus.PUSHED and key not in self.numbers]

    @property
    def forgotten(self) -> list[str]:
        """Keys of tasks that were never sent and that no push is going to send."""
        return [key for key, row in self.ours.items() if row.forgotten and key not in self.numbers]

    @property
    def surplus(self) -> dict[str, list[int]]:
        """Keys with more tasks than they should have: two, or any where the row was given up."""
        return {key: numbers for key, numbers in self.numbers.items() if len(numbers) > self.allowed(key)}

    def allowed(self, key: str) -> int:
        """How many tasks a key should have."""
        return 0 if self.ours[key].status == TaskStatus.DELETED else 1

    def keeper(self, key: str, untouched: frozenset[int]) -> int:
        """The task of a key that our row is to name: one somebody has started, the one it names now, the oldest."""
        numbers = self.numbers[key]
        started = [number for number in numbers if number not in untouched] or numbers
        named = self.ours[key].number
        return named if named in started else started[0]


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


def give_up_missing(workspace: Workspace, client: LabelStudioClient, project: LabelingProject) -> int:
    """Mark tasks deleted that we believe pushed and that are not there any more; returns how many.

    They are looked up by key first: another task of the same key takes the place of one that is gone. Annotations are
    marked deleted with the task they were made on.
    """
    there = set(client.task_ids(project.external_project_id))
    with workspace.database.read() as session:
        ours = sent.tasks_of(session, project.id)
    gone = [row for row in ours.values() if row.status == TaskStatus.PUSHED and row.number not in there]
    found = _find(client, project, {row.key: row for row in gone}).numbers
    with workspace.database.write() as session:
        sent.point(session, project.id, {key: numbers[0] for key, numbers in found.items()})
        there.update(number for numbers in found.values() for number in numbers)
        # First: an image whose mask went with its task returns to the pool.
        sent.mark_annotations_deleted(session, project.id, there)
        return sent.give_up(session, project.id, [row.key for row in gone if row.key not in found])


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
    found = _compare(workspace, client, project)
    counts = Counter[str]()
    if found.differs:
        _mend(workspace, client, project, found, counts)
        found = _compare(workspace, client, project)
    with workspace.database.write() as session:
        sent.mark_annotations_deleted(session, project.id, found.there)
    surplus = sum(len(numbers) - found.allowed(key) for key, numbers in found.surplus.items())
    among = [number for numbers in found.surplus.values() for number in numbers]
    twice = _still_twice(found, set(client.untouched_tasks(project.external_project_id, among)))
    return Reconciled(
        tasks=len(found.numbers),
        lost=len(found.missing) + len(found.forgotten),
        twice=twice,
        merged=surplus - twice,
        foreign=found.foreign,
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


def _compare(workspace: Workspace, client: LabelStudioClient, project: LabelingProject) -> _Comparison:
    """All of both sides. The server's tasks are read a page at a time; what stays in memory are their numbers."""
    with workspace.database.read() as session:
        ours, known = sent.tasks_of(session, project.id), sent.journal_keys(session, project.id)
    return _sorted(ours, known, client.keyed_tasks(project.external_project_id))


def _find(
    client: LabelStudioClient, project: LabelingProject, ours: Mapping[str, SentTask], keys: Sequence[str] | None = None
) -> _Comparison:
    """The same for some keys, by default those of `ours`."""
    wanted = list(ours if keys is None else keys)
    return _sorted(dict(ours), set(wanted), client.keyed_tasks(project.external_project_id, wanted))


def _sorted(ours: dict[str, SentTask], known: set[str], tasks: Iterable[KeyedTask]) -> _Comparison:
    found = _Comparison(ours)
    for task in tasks:
        found.there.add(task.id)
        row = ours.get(task.key)
        if row is not None and row.sha256 == task.sha256:
            found.numbers.setdefault(task.key, []).append(task.id)
        elif task.key == TEST_KEY or (row is None and task.key in known):
            found.strays.append(task.id)
        else:
            found.foreign += 1
    return found


def _settle_calls(workspace: Workspace, client: LabelStudioClient, project: LabelingProject) -> int:
    with workspace.database.read() as session:
        open_calls = labeling.unsettled(session, project.id)
    recorded = 0
    for call in open_calls:
        with workspace.database.read() as session:
            ours = sent.tasks_of(session, project.id, call.keys)
        found, counts = _find(client, project, ours, call.keys), Counter[str]()
        kept = _remove_surplus(client, project, found, counts)
        with workspace.database.write() as session:
            recorded += sent.point(session, project.id, kept)
            note = f"{len(found.numbers)} of {len(call.keys)} tasks were there, {counts['removed']} second ones removed"
            labeling.journal(session, call.id, JournalState.SETTLED, note)
    return recorded


def _close_calls(workspace: Workspace, project: LabelingProject) -> None:
    with workspace.database.write() as session:
        for call in labeling.unsettled(session, project.id):
            labeling.journal(session, call.id, JournalState.SETTLED, "the project is gone")


def _mend(
    workspace: Workspace, client: LabelStudioClient, project: LabelingProject, found: _Comparison, counts: Counter[str]
) -> None:
    kept = _remove_surplus(client, project, found, counts)
    with workspace.database.write() as session:
        counts["recorded"] += sent.point(session, project.id, kept)
    # Asked for once more by key: an answer that was short of a task must not cost its annotations.
    missing = found.missing
    again = _find(client, project, {key: found.ours[key] for key in missing}).numbers
    with workspace.database.write() as session:
        counts["recorded"] += sent.point(session, project.id, {key: numbers[0] for key, numbers in again.items()})
        there = found.there.union(*again.values())
        # First: an image whose mask went with its task returns to the pool.
        sent.mark_annotations_deleted(session, project.id, there)
        counts["returned"] += sent.give_up(session, project.id, [key for key in missing if key not in again])
        counts["returned"] += sent.reopen(session, project.id, found.forgotten)


def _remove_surplus(
    client: LabelStudioClient, project: LabelingProject, found: _Comparison, counts: Counter[str]
) -> dict[str, int]:
    """Delete second tasks nobody has started, in small groups; key -> the task that our row is to name."""
    kept = {key: found.keeper(key, frozenset(numbers)) for key, numbers in found.numbers.items() if found.allowed(key)}
    surplus = list(found.surplus.items())
    for start in range(0, len(surplus), _GROUP):
        group = surplus[start : start + _GROUP]
        untouched = _untouched(client, project, [number for _, numbers in group for number in numbers])
        kept |= {key: found.keeper(key, untouched) for key, _ in group if found.allowed(key)}
        remove = [number for key, numbers in group for number in numbers if number in untouched and number != kept.get(key)]
        client.delete_tasks(project.external_project_id, remove)
        counts["removed"] += len(remove)
    for start in range(0, len(found.strays), _GROUP):
        untouched = _untouched(client, project, found.strays[start : start + _GROUP])
        client.delete_tasks(project.external_project_id, sorted(untouched))
    return kept


def _untouched(client: LabelStudioClient, project: LabelingProject, among: Sequence[int]) -> frozenset[int]:
    return frozenset(client.untouched_tasks(project.external_project_id, among))


def _still_twice(found: _Comparison, untouched: set[int]) -> int:
    """Second tasks nobody has started: of each key as many as there are beyond the one that may be there."""
    twice = 0
    for key, numbers in found.surplus.items():
        waiting = sum(number in untouched for number in numbers)
        twice += min(waiting, len(numbers) - found.allowed(key))
    return twice
