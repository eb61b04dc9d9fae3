"""Label Studio -> annotations: everything people submitted, once, each mask on the image it was drawn on.

What is accepted is decided by `task.data.key` and the image's sha256, never by a task's number or position: a rebuilt
server starts again at task 1. Predictions, drafts and skipped tasks never become masks.

Tasks come in blocks. While one is decoded the server prepares the next; masks are stored before the one transaction that
writes the block's rows and moves the cursor, so a killed pull has lost nothing and repeats only what it had not written.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from activeseg.db import annotators, labeling, sent, truth
from activeseg.db.labeling import KnownTask
from activeseg.db.models import Annotation, AnnotationStatus, LabelingProject
from activeseg.db.quarantine import QuarantinedAnnotation, described
from activeseg.errors import LabelStudioError, LabelStudioUnauthorized, LabelStudioUnreachable
from activeseg.labelstudio.client import LabelStudioClient, TaskStamp
from activeseg.labelstudio.connection import TEST_KEY
from activeseg.labelstudio.drawings import Drawing, fill_for, uncovered_value
from activeseg.labelstudio.outcomes import find_outcomes
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.sending import one_ahead
from activeseg.labelstudio.submissions import ExportedTask, Submission, clean, read_task
from activeseg.reconciliation import give_up_missing, give_up_project, reconcile_project
from activeseg.records import StageReport
from activeseg.workspace import Workspace

# Commits on the server are not ordered by updated_at: a change may become visible a little after a later one.
OVERLAP = timedelta(seconds=10)
BLOCK = 50
# So many tasks that look untouched count as one: an export leaves them out, and its time is that of the request itself.
# Counters of Label Studio may lag, so they are asked for all the same; with more an address would get too long.
UNTOUCHED = 8
TOLD = 5
"""So many quarantined annotations are named in a report."""
# Masks of a block of larger pictures would take gigabytes: fewer of those at a time.
_BLOCK_PIXELS = BLOCK * 1280 * 1280
# Decoding leaves Python's lock, and a server on the same machine has nothing to do once the next block is exported. Each
# thread holds the masks of a task.
_THREADS = min(4, os.cpu_count() or 1)
_WRITTEN = ("valid", "skipped", "deleted", "there again", "tasks deleted", "stars moved", "consensus", "consensus ended")

Block = list[TaskStamp]
_Export = tuple[list[Any], dict[int, str]]


def pull_annotations(workspace: Workspace, client: LabelStudioClient, *, full: bool = False) -> StageReport:
    """Collect what changed since the last pull; with `full`, compare everything.

    New and edited annotations become rows, skipped ones say so, deleted ones are marked, tasks deleted on the server
    give their images back to the pool. Former projects (another title) are asked too: those with tasks that wait, and with
    `full` all that still exist. One made with another [labels] overlap stays as it is; tasks that wait there are counted and
    told in the report's problems, and are pulled once that is restored. An annotation that cannot be used is quarantined
    with the reason, which the problems tell for the first ones; a task that cannot be exported is told there, too, and met
    again by a full pull. At the end, what several annotators agreed on is found where they have new votes or [labelstudio]
    consensus changed.

    Commits block by block; the cursor moves with each block. Pulling twice writes nothing new. With `full` the tasks are
    reconciled first. Needs the lease. Raises ConfigError, before anything is done, where [labelstudio] uncovered is no class.
    """
    started, counts = time.monotonic(), Counter[str]()
    problems: dict[str, str] = {}
    set_aside: list[QuarantinedAnnotation] = []
    uncovered_value(workspace)
    project = open_project(workspace, client)
    with workspace.database.read() as session:
        waiting = labeling.others_with_open_tasks(session, project.id)
        former = [one for one in sent.projects(session) if one.id != project.id] if full else waiting
        open_there = {one.id for one in [project, *waiting]}
    born = client.project_births() if former else {}
    for one in [project, *former]:
        if one is not project and born.get(one.external_project_id) != one.instance_key:
            # Deleted, or a rebuilt server: what was open there will never be answered. Where nothing was, nothing is lost.
            counts["tasks deleted"] += give_up_project(workspace, one) if one.id in open_there else 0
            continue
        if (unlike := _drawn_otherwise(workspace, one)) is not None:
            if one.id not in open_there:
                continue
            counts["tasks left alone"] += _count_waiting(workspace, one)
            problems[f"Label Studio project {one.external_project_id} {one.title!r}"] = unlike
        else:
            if full:
                counts.update(_changes(asdict(reconcile_project(workspace, client, one))))
            _Pull(workspace, client, one, counts, problems, set_aside).run(full)
        mended = give_up_missing(workspace, client, one)
        counts.update(_changes(mended) | {"merged": mended["merged"]})
    agreed, unread = find_outcomes(workspace)
    counts.update(agreed)
    problems |= unread | _told(set_aside)
    details: dict[str, Any] = {name: count for name, count in counts.items() if count}
    details |= {"problems": problems} if problems else {}
    written = sum(counts[name] for name in _WRITTEN)
    return StageReport("pull", written, counts["quarantined"] + counts["not exported"], time.monotonic() - started, details)


@dataclass(frozen=True, slots=True)
class _Fresh:
    """Submissions on one of our tasks that were not pulled before."""

    ours: KnownTask
    task: ExportedTask
    submissions: list[Submission]


@dataclass(slots=True)
class _Answer:
    """What the export of a block told. checked: tasks whose other annotations are gone."""

    ours: list[tuple[ExportedTask, KnownTask]] = field(default_factory=list)
    foreign: int = 0
    checked: set[int] = field(default_factory=set)

    @property
    def numbers(self) -> set[int]:
        """Outside ids of all annotations of our tasks."""
        return {submission.number for task, _ in self.ours for submission in task.submissions}

    @property
    def stars(self) -> dict[tuple[int, datetime], bool]:
        """Whether each version is starred as ground truth."""
        ours = (submission for task, _ in self.ours for submission in task.submissions)
        return {(one.number, one.updated_at): one.ground_truth for one in ours}

    @property
    def pushed(self) -> dict[str, int]:
        """Key -> task: the answer to sending it may have been lost; that it has annotations proves that it is there."""
        return {task.key: task.number for task, _ in sorted(self.ours, key=lambda pair: -pair[0].number)}


@dataclass(frozen=True, slots=True)
class _Pull:
    """One project being pulled."""

    workspace: Workspace
    client: LabelStudioClient
    project: LabelingProject
    counts: Counter[str]
    problems: dict[str, str]
    set_aside: list[QuarantinedAnnotation]

    def run(self, full: bool) -> None:
        """Pull what changed since the cursor, or everything."""
        since = None if full or self.project.pulled_until is None else self.project.pulled_until - OVERLAP
        blocks = _blocks(self.client.changed_tasks(self.project.external_project_id, since), self._block_size())
        exported_blocks = ((block, _export(self.client, self.project, [stamp.id for stamp in block])) for block in blocks)
        drawing, passing = self._drawing(), True
        # While the caller works on a block, the next one is listed and exported.
        with ThreadPoolExecutor(_THREADS) as threads, closing(one_ahead(exported_blocks)) as exports:
            for block, (exported, unread) in exports:
                self._note(unread)
                # Where nothing at all could be read the server may be at fault: the next pull begins here again.
                passing = passing and len(unread) < len(block)
                left = [stamp for stamp in block if stamp.id not in unread]
                self._pull_block(self._read(left, exported), drawing, threads, block[-1].updated_at if passing else None)

    def _drawing(self) -> Drawing:
        with self.workspace.database.read() as session:
            label_set = labeling.label_set_of(session, self.project)
        return Drawing(self.workspace, self.project, label_set, fill_for(self.workspace, label_set))

    def _note(self, unread: Mapping[int, str]) -> None:
        self.counts["not exported"] += len(unread)
        for number, why in unread.items():
            self.problems[f"task {number} of Label Studio project {self.project.external_project_id}"] = why

    def _block_size(self) -> int:
        with self.workspace.database.read() as session:
            pixels = labeling.largest_picture(session, self.project.id)
        return max(1, min(BLOCK, _BLOCK_PIXELS // max(1, pixels)))

    def _read(self, block: Block, exported: Sequence[Any]) -> _Answer:
        """Which of the exported tasks are ours."""
        changed = {stamp.id: stamp.updated_at for stamp in block}
        tasks = [read_task(item, changed) for item in exported]
        tasks = [task for task in tasks if task is None or task.key != TEST_KEY]
        readable = [task for task in tasks if task is not None]
        with self.workspace.database.read() as session:
            known = labeling.known_tasks(session, self.project.id, {task.key for task in readable})
        found = _Answer(foreign=len(tasks) - len(readable))
        for task in readable:
            ours = known.get(task.key)
            if ours is None or task.sha256 != ours.image.sha256:
                found.foreign += 1
                continue
            found.ours.append((task, ours))
            found.checked |= {task.number} if task.complete else set()
        if len(readable) == len(tasks):  # else one of those left out may be the one that could not be read
            found.checked |= changed.keys() - {task.number for task in readable}
        return found

    def _pull_block(self, answer: _Answer, drawing: Drawing, threads: Executor, until: datetime | None) -> None:
        """Write what a block told. until: where the cursor moves to, if it does."""
        fresh = self._fresh(answer)
        # Decoded outside the transaction: large masks take seconds, and nobody else could write meanwhile.
        drawn = threads.map(lambda one: drawing.rows(one.ours, one.task.number, one.submissions), fresh)
        rows = list(chain.from_iterable(drawn))
        self._flag(rows)
        with self.workspace.database.write() as session:
            sent.mark_pushed(session, self.project.id, answer.pushed)
            starred = self.workspace.settings.labelstudio.consensus == "ground_truth"
            moved = truth.move_stars(session, self.project.id, answer.stars, decides=starred)
            back = truth.revive(session, self.project.id, answer.stars)
            truth.record_all(session, rows)
            gone = truth.mark_deleted(session, self.project.id, sorted(answer.checked), answer.numbers)
            if until is not None:
                labeling.move_cursor(session, self.project.id, until)
        self.counts.update(row.status.value for row in rows)
        uris = {ours.image.image_id: ours.image.uri for _, ours in answer.ours}
        unusable = (row for row in rows if row.status == AnnotationStatus.QUARANTINED)
        self.set_aside.extend(described(row, uris[row.image_id], self.project) for row in unusable)
        self.counts.update({"deleted": gone, "there again": back, "stars moved": moved, "foreign": answer.foreign})

    def _fresh(self, answer: _Answer) -> list[_Fresh]:
        with self.workspace.database.read() as session:
            known = truth.known_versions(session, self.project.id, answer.numbers)
        found: list[_Fresh] = []
        for task, ours in answer.ours:
            versions = {(one.number, one.updated_at): one for one in task.submissions}
            found.append(_Fresh(ours, task, [one for version, one in versions.items() if version not in known]))
            known |= versions.keys()
        return found

    def _flag(self, rows: Sequence[Annotation]) -> None:
        """Unchanged masks on uncertain images, submitted faster than anybody can look."""
        limit = self.workspace.settings.labelstudio.rubber_stamp_seconds
        fast = [row for row in rows if row.changed_share == 0 and row.lead_time is not None and row.lead_time < limit]
        if fast:
            with self.workspace.database.read() as session:
                for row in fast:
                    row.rubber_stamp = row.query_id is not None and annotators.is_uncertain(session, row.query_id)


def _told(set_aside: Sequence[QuarantinedAnnotation]) -> dict[str, str]:
    """The first annotations that were quarantined, by image and task, and how many more."""
    told = {one.name: one.reason for one in set_aside[:TOLD]}
    more = len(set_aside) - TOLD
    return told | ({f"{more} more quarantined": "`activeseg status` names the latest"} if more > 0 else {})


def _blocks(stamps: Iterable[TaskStamp], size: int) -> Iterator[Block]:
    """Tasks in their order, cut where `size` touched ones or UNTOUCHED as many others are together."""
    block: Block = []
    room = size * UNTOUCHED
    for stamp in stamps:
        cost = 1 if stamp.untouched else UNTOUCHED
        if block and room < cost:
            yield block
            block, room = [], size * UNTOUCHED
        block.append(stamp)
        room -= cost
    if block:
        yield block


def _export(client: LabelStudioClient, project: LabelingProject, numbers: Sequence[int]) -> _Export:
    """The exported tasks, and why, by number, for those that could not be: one of them must not stop all others."""
    try:
        return client.export_tasks(project.external_project_id, numbers), {}
    except (LabelStudioUnreachable, LabelStudioUnauthorized):
        raise
    except (LabelStudioError, RecursionError) as error:
        if len(numbers) == 1:
            return [], {numbers[0]: clean(str(error)) or type(error).__name__}
    step = BLOCK if len(numbers) > BLOCK else 1
    parts = [_export(client, project, numbers[start : start + step]) for start in range(0, len(numbers), step)]
    return list(chain.from_iterable(tasks for tasks, _ in parts)), dict(chain.from_iterable(why.items() for _, why in parts))


def _drawn_otherwise(workspace: Workspace, project: LabelingProject) -> str | None:
    """Why nothing of a project can be read: a region means something else where classes overlap and where they do not.

    Rows of such annotations would count as pulled, and their masks would be lost when [labels] overlap is restored.
    """
    with workspace.database.read() as session:
        drawn_for = labeling.label_set_of(session, project)
    if drawn_for.overlap == workspace.label_set.overlap:
        return None
    return (
        f"drawn for the classes {drawn_for.sentence()}; [labels] has {workspace.label_set.sentence()}: restore [labels] "
        "overlap, or delete the old project in Label Studio; its images then return to the pool"
    )


def _changes(mended: Mapping[str, int]) -> dict[str, int]:
    """What comparing tasks changed, by the names of the report."""
    return {"tasks deleted": mended["returned"], "removed": mended["removed"], "recorded": mended["recorded"]}


def _count_waiting(workspace: Workspace, project: LabelingProject) -> int:
    with workspace.database.read() as session:
        return labeling.count_open_tasks(session, project.id)
