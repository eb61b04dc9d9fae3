"""Label Studio -> annotations: everything people submitted, once, each mask on the image it was drawn on.

What is accepted is decided by `task.data.key` and the image's sha256, never by a task's number or position: a rebuilt
server starts again at task 1. Predictions, drafts and skipped tasks never become masks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from activeseg.core.labels import Mask
from activeseg.core.masks import changed_share
from activeseg.db import labeling, truth
from activeseg.db.labeling import KnownTask
from activeseg.db.models import Annotation, AnnotationSource, AnnotationStatus, LabelingProject
from activeseg.errors import DataError
from activeseg.labelstudio.client import LabelStudioClient, TaskStamp
from activeseg.labelstudio.regions import result_to_mask
from activeseg.labelstudio.registration import open_project
from activeseg.records import StageReport
from activeseg.workspace import Workspace

# Commits on the server are not ordered by updated_at: a change may become visible a little after a later one.
OVERLAP = timedelta(seconds=10)
BLOCK = 50


def pull_annotations(workspace: Workspace, client: LabelStudioClient, *, full: bool = False) -> StageReport:
    """Collect what changed since the last pull; with `full`, compare everything.

    New and edited annotations become rows, skipped ones say so, deleted ones are marked, tasks deleted on the server
    give their images back to the pool. Tasks left in a former project (another title) are collected too, unless it was
    made with another [labels] overlap: there they stay as they are, counted and told in the report's problems, and are
    pulled once that is restored. An annotation that does not fit its image is quarantined with the reason. Commits task
    by task; the cursor moves after each block. Pulling twice writes nothing new.
    """
    started, counts = time.monotonic(), Counter[str]()
    problems: dict[str, str] = {}
    project = open_project(workspace, client)
    with workspace.database.read() as session:
        former = labeling.others_with_open_tasks(session, project.id)
    born = client.project_births() if former else {}
    for one in [project, *former]:
        if one is not project and born.get(one.external_project_id) != one.instance_key:
            # Deleted, or a rebuilt server: what was open there will never be answered.
            counts["tasks deleted"] += _give_up_tasks(workspace, one, set())
            continue
        if (unlike := _drawn_otherwise(workspace, one)) is not None:
            counts["tasks left alone"] += _count_waiting(workspace, one)
            problems[f"Label Studio project {one.external_project_id} {one.title!r}"] = unlike
        else:
            _pull_project(workspace, client, one, full, counts)
        counts["tasks deleted"] += _give_up_tasks(workspace, one, set(client.task_ids(one.external_project_id)))
    written = sum(counts[name] for name in ("valid", "skipped", "deleted", "tasks deleted"))
    details: dict[str, Any] = {name: count for name, count in counts.items() if count}
    details |= {"problems": problems} if problems else {}
    return StageReport("pull", written, counts["quarantined"], time.monotonic() - started, details)


def _pull_project(
    workspace: Workspace, client: LabelStudioClient, project: LabelingProject, full: bool, counts: Counter[str]
) -> None:
    since = None if full or project.pulled_until is None else project.pulled_until - OVERLAP
    stamps = client.changed_tasks(project.external_project_id, since)
    for start in range(0, len(stamps), BLOCK):
        _pull_block(workspace, client, project, stamps[start : start + BLOCK], counts)


def _pull_block(
    workspace: Workspace, client: LabelStudioClient, project: LabelingProject, block: list[TaskStamp], counts: Counter[str]
) -> None:
    exported = client.export_tasks(project.external_project_id, [stamp.id for stamp in block])
    with workspace.database.read() as session:
        keys = [str(task["data"].get("key", "")) for task in exported]
        known = labeling.known_tasks(session, project.id, keys)
    kept: set[int] = set()
    for task in exported:
        ours = known.get(str(task["data"].get("key", "")))
        if ours is None or task["data"].get("sha256") != ours.image.sha256:
            counts["foreign"] += 1
            continue
        kept.update(int(item["id"]) for item in task["annotations"])
        _pull_task(workspace, project, ours, task, counts)
    with workspace.database.write() as session:
        counts["deleted"] += truth.mark_deleted(session, project.id, [stamp.id for stamp in block], kept)
        labeling.move_cursor(session, project.id, block[-1].updated_at)


def _pull_task(
    workspace: Workspace, project: LabelingProject, ours: KnownTask, task: Mapping[str, Any], counts: Counter[str]
) -> None:
    versions = sorted(task["annotations"], key=lambda item: str(item["updated_at"]))
    with workspace.database.read() as session:
        fresh = [item for item in versions if not truth.known_version(session, project.id, int(item["id"]), _moment(item))]
    # Decoded outside the transaction: large masks take seconds, and nobody else could write meanwhile.
    rows = [_row(workspace, project, ours, int(task["id"]), item) for item in fresh]
    with workspace.database.write() as session:
        # The answer to sending it may have been lost: that it has annotations proves that it is there.
        labeling.mark_pushed(session, project.id, {ours.task.key: int(task["id"])})
        for row in rows:
            truth.record(session, row)
            counts[row.status.value] += 1


def _moment(item: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(item["updated_at"]).astimezone(UTC)


def _row(workspace: Workspace, project: LabelingProject, ours: KnownTask, task_id: int, item: Mapping[str, Any]) -> Annotation:
    """One version of an annotation, not yet written."""
    row = Annotation(
        image_id=ours.image.image_id,
        query_id=ours.task.query_id,
        source=AnnotationSource.LABELSTUDIO,
        status=AnnotationStatus.SKIPPED,
        label_set_id=project.label_set_id,
        labeling_project_id=project.id,
        external_task_id=task_id,
        external_annotation_id=int(item["id"]),
        external_updated_at=_moment(item),
        annotator=_annotator(item.get("completed_by")),
        lead_time=item.get("lead_time"),
    )
    if not item.get("was_cancelled"):
        _attach_mask(workspace, project, ours, item, row)
    return row


def _attach_mask(
    workspace: Workspace, project: LabelingProject, ours: KnownTask, item: Mapping[str, Any], row: Annotation
) -> None:
    try:
        drawn = result_to_mask(item["result"], workspace.label_set, width=ours.width, height=ours.height)
        stored = workspace.store_mask(drawn.mask)
    except DataError as error:
        row.status, row.reason = AnnotationStatus.QUARANTINED, str(error)[:500]
        return
    row.status, row.mask_location, row.mask_sha256 = AnnotationStatus.VALID, stored.location, stored.sha256
    row.changed_share = _changed_share(workspace, ours, drawn.mask)


def _changed_share(workspace: Workspace, ours: KnownTask, mask: Mask) -> float | None:
    """How much differs from the mask that was shown; None where there was none, or none of today's classes."""
    if ours.prediction_location is None:
        return None
    try:
        shown = workspace.read_mask(ours.prediction_location)
    except DataError:
        return None
    return changed_share(shown, mask) if shown.shape == mask.shape else None


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


def _annotator(completed_by: Any) -> str | None:
    """Who submitted it: Label Studio gives a number or, with some exports, an object."""
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return None if completed_by is None else str(completed_by)[:255]


def _give_up_tasks(workspace: Workspace, project: LabelingProject, there: set[int]) -> int:
    """Mark tasks we believe pushed and that are not `there` as deleted; returns how many."""
    with workspace.database.write() as session:
        ours = labeling.pushed_task_ids(session, project.id)
        gone = {number: task for number, task in ours.items() if number not in there}
        truth.mark_deleted(session, project.id, list(gone), set())
        for task in gone.values():
            labeling.mark_task_deleted(session, task)
    return len(gone)
