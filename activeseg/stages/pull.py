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
from collections.abc import Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from activeseg.db import annotators, labeling, truth
from activeseg.db.labeling import KnownTask
from activeseg.db.models import Annotation, LabelingProject
from activeseg.labelstudio.client import LabelStudioClient, TaskStamp
from activeseg.labelstudio.connection import TEST_KEY
from activeseg.labelstudio.drawings import Drawing, uncovered_value
from activeseg.labelstudio.outcomes import find_outcomes
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.submissions import ExportedTask, Submission, read_task
from activeseg.reconciliation import give_up_missing, give_up_project, reconcile_project
from activeseg.records import StageReport
from activeseg.workspace import Workspace

# Commits on the server are not ordered by updated_at: a change may become visible a little after a later one.
OVERLAP = timedelta(seconds=10)
BLOCK = 50
# Masks of a block of larger pictures would take gigabytes: fewer of those at a time.
_BLOCK_PIXELS = BLOCK * 1280 * 1280
# One core is left to the server, which is often the same machine's; each thread holds the masks of a task.
_THREADS = max(1, min(4, (os.cpu_count() or 1) - 1))
_WRITTEN = ("valid", "skipped", "deleted", "tasks deleted", "stars moved", "consensus", "consensus ended")

Block = list[TaskStamp]


def pull_annotations(workspace: Workspace, client: LabelStudioClient, *, full: bool = False) -> StageReport:
    """Collect what changed since the last pull; with `full`, compare everything.

    New and edited annotations become rows, skipped ones say so, deleted ones are marked, tasks deleted on the server
    give their images back to the pool. Tasks left in a former project (another title) are collected too, unless it was
    made with another [labels] overlap: there they stay as they are, counted and told in the report's problems, and are
    pulled once that is restored. An annotation that cannot be used is quarantined with the reason. At the end, what
    several annotators agreed on is found where they have new votes or [labelstudio] consensus changed.

    Commits block by block; the cursor moves with each block. Pulling twice writes nothing new. With `full` the tasks are
    reconciled first. Needs the lease. Raises ConfigError, before anything is done, where [labelstudio] uncovered is no class.
    """
    started, counts = time.monotonic(), Counter[str]()
    problems: dict[str, str] = {}
    fill = uncovered_value(workspace)
    project = open_project(workspace, client)
    with workspace.database.read() as session:
        former = labeling.others_with_open_tasks(session, project.id)
    born = client.project_births() if former else {}
    for one in [project, *former]:
        if one is not project and born.get(one.external_project_id) != one.instance_key:
            # Deleted, or a rebuilt server: what was open there will never be answered.
            counts["tasks deleted"] += give_up_project(workspace, one)
            continue
        if (unlike := _drawn_otherwise(workspace, one)) is not None:
            counts["tasks left alone"] += _count_waiting(workspace, one)
            problems[f"Label Studio project {one.external_project_id} {one.title!r}"] = unlike
        else:
            if full:
                counts["tasks deleted"] += reconcile_project(workspace, client, one).returned
            _Pull(workspace, client, one, fill, counts).run(full)
        counts["tasks deleted"] += give_up_missing(workspace, client, one)
    agreed, unread = find_outcomes(workspace)
    counts.update(agreed)
    problems |= unread
    details: dict[str, Any] = {name: count for name, count in counts.items() if count}
    details |= {"problems": problems} if problems else {}
    written = sum(counts[name] for name in _WRITTEN)
    return StageReport("pull", written, counts["quarantined"], time.monotonic() - started, details)


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
    fill: int
    counts: Counter[str]

    def run(self, full: bool) -> None:
        """Pull what changed since the cursor, or everything."""
        since = None if full or self.project.pulled_until is None else self.project.pulled_until - OVERLAP
        stamps = self.client.changed_tasks(self.project.external_project_id, since)
        size = self._block_size()
        blocks = [stamps[start : start + size] for start in range(0, len(stamps), size)]
        drawing = Drawing(self.workspace, self.project, self.fill)
        with ThreadPoolExecutor(_THREADS) as threads, closing(self._exports(blocks)) as exports:
            for block, exported in exports:
                self._pull_block(block, self._read(block, exported), drawing, threads)

    def _block_size(self) -> int:
        with self.workspace.database.read() as session:
            pixels = labeling.largest_picture(session, self.project.id)
        return max(1, min(BLOCK, _BLOCK_PIXELS // max(1, pixels)))

    def _exports(self, blocks: Sequence[Block]) -> Generator[tuple[Block, list[Any]], None, None]:
        """Each block with its exported tasks; the next one is asked for while the caller works on this one."""
        with ThreadPoolExecutor(1) as fetching:

            def ask(place: int) -> Future[list[Any]]:
                numbers = [stamp.id for stamp in blocks[place]]
                return fetching.submit(self.client.export_tasks, self.project.external_project_id, numbers)

            waiting = [ask(0)] if blocks else []
            for place, block in enumerate(blocks):
                exported = waiting.pop().result()
                waiting = [ask(place + 1)] if place + 1 < len(blocks) else []
                yield block, exported

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

    def _pull_block(self, block: Block, answer: _Answer, drawing: Drawing, threads: Executor) -> None:
        fresh = self._fresh(answer)
        # Decoded outside the transaction: large masks take seconds, and nobody else could write meanwhile.
        drawn = threads.map(lambda one: drawing.rows(one.ours, one.task.number, one.submissions), fresh)
        rows = list(chain.from_iterable(drawn))
        self._flag(rows)
        with self.workspace.database.write() as session:
            labeling.mark_pushed(session, self.project.id, answer.pushed)
            moved = truth.move_stars(session, self.project.id, answer.stars)
            truth.record_all(session, rows)
            gone = truth.mark_deleted(session, self.project.id, sorted(answer.checked), answer.numbers)
            labeling.move_cursor(session, self.project.id, block[-1].updated_at)
        self.counts.update(row.status.value for row in rows)
        self.counts.update({"deleted": gone, "stars moved": moved, "foreign": answer.foreign})

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


def _count_waiting(workspace: Workspace, project: LabelingProject) -> int:
    with workspace.database.read() as session:
        return labeling.count_open_tasks(session, project.id)
