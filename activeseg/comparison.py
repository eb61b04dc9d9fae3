"""Our rows of a Label Studio project beside its tasks, key by key, and second tasks removed.

Removing a task has a gap that Label Studio gives no means to close: between the question whether anybody has started it and
its removal, a moment later, a person may submit an annotation, which goes with it; so it does where the removal itself lingers
on the way. Small groups keep the moment short. Such a task is a second copy of another that the person will meet again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from activeseg.db import sent
from activeseg.db.models import LabelingProject, TaskStatus
from activeseg.db.sent import SentTask
from activeseg.errors import LabelStudioError
from activeseg.labelstudio.client import KeyedTask, LabelStudioClient
from activeseg.labelstudio.connection import TEST_KEY
from activeseg.workspace import Workspace

_GROUP = 20
_LOOK = 1000
_ATTEMPTS = 2


@dataclass(slots=True)
class Comparison:
    """Rows beside the tasks that were looked at.

    numbers: key -> tasks that are ours, ascending. strays: tasks that carry a key of ours which no row has any more, or are
    left of a connection test. foreign: how many are others'. there: numbers of all. keys: of all, whoever they belong to.
    """

    ours: dict[str, SentTask]
    numbers: dict[str, list[int]] = field(default_factory=dict)
    foreign: int = 0
    strays: list[int] = field(default_factory=list)
    there: set[int] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)

    @property
    def differs(self) -> bool:
        """Whether a row is to be mended."""
        return bool(self.unrecorded or self.missing or self.forgotten)

    @property
    def unrecorded(self) -> list[str]:
        """Keys of tasks that are there and whose rows name none of them."""
        live = ((key, self.ours[key]) for key in self.numbers if self.allowed(key))
        return [key for key, row in live if row.status != TaskStatus.PUSHED or row.number not in self.numbers[key]]

    @property
    def missing(self) -> list[str]:
        """Keys of tasks we believe pushed, or wait for, that are not there."""
        waiting = (key for key, row in self.ours.items() if row.status == TaskStatus.PUSHED or row.stranded)
        return [key for key in waiting if key not in self.numbers]

    @property
    def forgotten(self) -> list[str]:
        """Keys of tasks that were never sent and that no push is going to send."""
        return [key for key, row in self.ours.items() if row.forgotten and key not in self.numbers]

    @property
    def surplus(self) -> dict[str, list[int]]:
        """Keys with more tasks than they should have: two, or any where the row was given up for good."""
        return {key: numbers for key, numbers in self.numbers.items() if len(numbers) > self.allowed(key)}

    def allowed(self, key: str) -> int:
        """How many tasks a key should have."""
        return 1 if self.ours[key].wanted else 0

    def keeper(self, key: str, untouched: frozenset[int]) -> int:
        """The task of a key that our row is to name: one somebody has started, the one it names now, the oldest."""
        numbers = self.numbers[key]
        started = [number for number in numbers if number not in untouched] or numbers
        named = self.ours[key].number
        return named if named in started else started[0]


def compare(workspace: Workspace, client: LabelStudioClient, project: LabelingProject) -> Comparison:
    """All of both sides. The server's tasks are read a page at a time; what stays in memory are their numbers and keys."""
    with workspace.database.read() as session:
        ours, known = sent.tasks_of(session, project.id), sent.journal_keys(session, project.id)
    return _sorted(ours, known, client.keyed_tasks(project.external_project_id))


def find(
    client: LabelStudioClient, project: LabelingProject, ours: Mapping[str, SentTask], keys: Sequence[str] | None = None
) -> Comparison:
    """The tasks of some keys, by default those of `ours`."""
    wanted = list(ours if keys is None else keys)
    return _sorted(dict(ours), set(wanted), client.keyed_tasks(project.external_project_id, wanted))


def look(
    client: LabelStudioClient,
    project: LabelingProject,
    ours: dict[str, SentTask],
    numbers: Sequence[int],
    known: Container[str] = (),
) -> Comparison:
    """The tasks of some numbers, asked for one by one. known: every key we ever sent."""
    parts = (numbers[start : start + _LOOK] for start in range(0, len(numbers), _LOOK))
    found = chain.from_iterable(client.task_data(project.external_project_id, part).items() for part in parts)
    tasks = (KeyedTask(number, str(data.get("key") or ""), str(data.get("sha256") or "")) for number, data in found)
    return _sorted(ours, known, tasks)


def remove_surplus(
    workspace: Workspace, client: LabelStudioClient, project: LabelingProject, found: Comparison, counts: Counter[str]
) -> dict[str, int]:
    """Delete second tasks nobody has started, in small groups; key -> the task that our row is to name.

    counts: `removed` and, of those somebody has started, `merged`. Strays that stay are left in `found.strays`.
    """
    kept = {key: found.keeper(key, frozenset(numbers)) for key, numbers in found.numbers.items() if found.allowed(key)}
    surplus = list(found.surplus)
    for start in range(0, len(surplus), _GROUP):
        group = surplus[start : start + _GROUP]
        kept |= _remove_group(workspace, client, project, {key: found.ours[key] for key in group}, counts)
    strays, found.strays = found.strays, []
    for start in range(0, len(strays), _GROUP):
        found.strays += _remove_strays(workspace, client, project, strays[start : start + _GROUP], counts)
    return kept


def untouched_of(client: LabelStudioClient, project: LabelingProject, among: Sequence[int]) -> frozenset[int]:
    """Those tasks nobody has started."""
    return frozenset(client.untouched_tasks(project.external_project_id, among) if among else ())


def _remove_group(
    workspace: Workspace,
    client: LabelStudioClient,
    project: LabelingProject,
    ours: dict[str, SentTask],
    counts: Counter[str],
) -> dict[str, int]:
    """Looked up afresh for each attempt: what is gone meanwhile must not be taken for started, and so be kept."""
    kept: dict[str, int] = {}
    merged = 0

    def choose() -> list[int]:
        nonlocal merged
        now = find(client, project, ours)
        untouched = untouched_of(client, project, [number for numbers in now.numbers.values() for number in numbers])
        kept.clear()
        kept.update({key: now.keeper(key, untouched) for key in now.numbers if now.allowed(key)})
        among = [(key, number) for key, numbers in now.numbers.items() for number in numbers if number != kept.get(key)]
        merged = sum(number not in untouched for _, number in among)
        return [number for _, number in among if number in untouched]

    counts["removed"] += _delete(workspace, client, project, choose)
    counts["merged"] += merged
    return kept


def _remove_strays(
    workspace: Workspace, client: LabelStudioClient, project: LabelingProject, strays: Sequence[int], counts: Counter[str]
) -> list[int]:
    """Returns those somebody has started."""
    chosen: set[int] = set()

    def choose() -> list[int]:
        untouched = sorted(untouched_of(client, project, strays))
        chosen.update(untouched)
        return untouched

    counts["strays removed"] += _delete(workspace, client, project, choose)
    return [number for number in strays if number not in chosen]


def _delete(
    workspace: Workspace, client: LabelStudioClient, project: LabelingProject, choose: Callable[[], Sequence[int]]
) -> int:
    """Delete what `choose` says, asked again before each attempt: a removal that got no answer is never repeated blindly."""
    removed: set[int] = set()
    for attempt in range(1, _ATTEMPTS + 1):
        chosen = choose()
        removed.update(chosen)
        if not chosen:
            break
        # The fence, right before: a process whose lease went to another must not delete by what it knew.
        with workspace.database.write():
            pass
        try:
            client.delete_tasks(project.external_project_id, chosen)
        except LabelStudioError:
            if attempt == _ATTEMPTS:
                raise
        else:
            break
    return len(removed)


def _sorted(ours: dict[str, SentTask], known: Container[str], tasks: Iterable[KeyedTask]) -> Comparison:
    found = Comparison(ours)
    for task in tasks:
        found.there.add(task.id)
        found.keys.add(task.key)
        row = ours.get(task.key)
        if row is not None and row.sha256 == task.sha256:
            found.numbers.setdefault(task.key, []).append(task.id)
        elif task.key == TEST_KEY or (row is None and task.key in known):
            found.strays.append(task.id)
        else:
            found.foreign += 1
    for numbers in found.numbers.values():
        numbers.sort()
    return found
