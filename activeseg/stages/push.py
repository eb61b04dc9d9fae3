"""queries -> predictions and Label Studio tasks: every task once, whatever happens on the way.

    settle     calls whose end nobody knows (killed, answer lost): look their tasks up by key
    predict    masks and entropy maps by the champion, or a first round's pre-annotations; stored, so that a repeated push
               shows the same
    plan       a tasks row with its deterministic key for every query
    upload     image and entropy map; the addresses are committed, so that a killed push does not upload again
    send       journal row, one import request, journal row closed and task ids recorded

A request that creates tasks is never sent twice for the same key unless a look-up by key came back empty.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from activeseg.db import checkpoints, images, labeling, rounds, scores
from activeseg.db.models import (
    Checkpoint,
    JournalState,
    LabelingProject,
    Prediction,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    ScoringConfig,
    Task,
    TaskStatus,
)
from activeseg.errors import DataError, LabelStudioDoubt, NotReadyError
from activeseg.imaging.thumbnails import encode_png
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.labeling import MaskKind
from activeseg.labelstudio.regions import mask_to_result
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.tasks import batches, confidence_of_order, task_payload
from activeseg.preannotate import PreAnnotator, pre_annotate_and_store
from activeseg.predictions import predict_and_store, shown_version, source_of
from activeseg.reconciliation import settle, task_key
from activeseg.records import ImageRef, StageReport
from activeseg.workspace import Workspace

UPLOAD_GROUP = 16
TAB_TITLE = "activeseg: most useful first"

Progress = Callable[[int, int], None]
"""Called with (tasks sent, tasks planned)."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """What one task shows: its rows, its image and the classes in doubt."""

    task: Task
    query: Query
    image: ImageRef
    size: tuple[int, int]
    prediction: Prediction | None
    doubtful: tuple[str, ...]


def predict_round(workspace: Workspace, round_id: int, *, pre_annotator: PreAnnotator | None = None) -> StageReport:
    """Draw and store the masks and entropy maps of a round's waiting queries; those that exist are kept.

    A bootstrap round has none, or those of `pre_annotator`; the report counts and lists the images it leaves without.
    Images that cannot be read any more are quarantined and their queries withdrawn. Raises LabelSetMismatch where the
    round's checkpoint knows other classes than are configured, although its masks are stored already.
    """
    started = time.monotonic()
    with workspace.database.read() as session:
        checkpoint = _checkpoint_of(session.get_one(Round, round_id), session)
        waiting = [ref for _, ref in rounds.queries(session, round_id, QueryStatus.SELECTED)]
        source = source_of(checkpoint) if checkpoint else pre_annotator.source if pre_annotator else None
        known = labeling.predictions_of(session, source, [ref.image_id for ref in waiting]) if source else {}
    if checkpoint is not None:
        checkpoints.require_labels(checkpoint, workspace.label_set)
    work = [ref for ref in waiting if ref.image_id not in known] if source else []
    failures: dict[int, str] = {}
    without: dict[int, str] = {}
    if work and checkpoint is not None:
        failures = predict_and_store(workspace, checkpoint, work)
    elif work and pre_annotator is not None:
        failures, without = pre_annotate_and_store(workspace, pre_annotator, work)
    if failures:
        with workspace.database.write() as session:
            images.quarantine(session, failures)
    problems = {ref.uri: f"no mask: {without[ref.image_id]}" for ref in work if ref.image_id in without}
    details = {"without a mask": len(problems), "problems": problems} if problems else {}
    done = len(work) - len(failures) - len(problems)
    return StageReport("predict", done, len(failures), time.monotonic() - started, details)


def _checkpoint_of(row: Round, session: Any) -> Checkpoint | None:
    if row.scoring_config_id is None:
        return None
    config = session.get_one(ScoringConfig, row.scoring_config_id)
    found: Checkpoint = session.get_one(Checkpoint, config.checkpoint_id)
    return found


def push_round(
    workspace: Workspace,
    round_id: int,
    client: LabelStudioClient,
    *,
    pre_annotation: str | None = None,
    on_progress: Progress | None = None,
) -> StageReport:
    """Give every waiting query of a round its task. Run again after a kill or a doubt, it sends only what is missing.

    Call `predict_round` first. pre_annotation: the source whose predictions a round without a checkpoint shows; by default
    that of the youngest stored ones, if there are any. Raises LabelStudioDoubt where an answer was lost and the look-up
    could not settle it: the round stays as it is and the next run goes on.
    """
    started = time.monotonic()
    project = open_project(workspace, client)
    settled = settle(workspace, client, project)
    source = _shown_source(workspace, round_id, pre_annotation)
    shown = _plan(workspace, project, round_id, source)
    _upload(workspace, client, project, shown)
    sent = _send(workspace, client, project, shown, on_progress)
    # Before the round counts as pushed: whatever fails here is done again by the next run.
    if source is not None and _is_shown(workspace, project, source):
        client.set_model_version(project.external_project_id, shown_version(source))
    client.ensure_tab(project.external_project_id, TAB_TITLE, ["tasks:data.order"])
    with workspace.database.write() as session:
        rounds.finish_pushing(session, round_id)
    details = {"settled": settled, "project": project.external_project_id}
    return StageReport("push", sent + settled, 0, time.monotonic() - started, details)


def _shown_source(workspace: Workspace, round_id: int, pre_annotation: str | None) -> str | None:
    """Whose predictions a round's tasks show."""
    with workspace.database.read() as session:
        row = session.get_one(Round, round_id)
        if (checkpoint := _checkpoint_of(row, session)) is not None:
            return source_of(checkpoint)
        if checkpoints.champion(session) is not None:
            return None  # it came since; its own masks follow with the next refresh
        asked = [ref.image_id for _, ref in rounds.queries(session, round_id)]
        return pre_annotation or labeling.latest_pre_annotation(session, asked)


def _is_shown(workspace: Workspace, project: LabelingProject, source: str) -> bool:
    """Label Studio refuses to show a model version that no task has."""
    with workspace.database.read() as session:
        versions = {shown_version(known) for known in labeling.shown_sources(session, project.id)}
    return shown_version(source) in versions


def _plan(workspace: Workspace, project: LabelingProject, round_id: int, source: str | None) -> list[_Shown]:
    """Tasks still to be sent, in shown order, each with what it shows; inserts the missing rows."""
    with workspace.database.write() as session:
        row = session.get_one(Round, round_id)
        if row.status != RoundStatus.SELECTED:
            return []
        waiting = rounds.queries(session, round_id, QueryStatus.SELECTED)
        asked = [ref.image_id for _, ref in waiting]
        predictions = labeling.predictions_of(session, source, asked) if source else {}
        sizes = labeling.image_sizes(session, asked)
        shown = []
        for query, ref in waiting:
            prediction = predictions.get(ref.image_id)
            task = Task(
                labeling_project_id=project.id,
                query_id=query.id,
                prediction_id=prediction.id if prediction else None,
                key=task_key(project, row.number, ref.sha256),
                status=TaskStatus.PLANNED,
            )
            doubtful = _doubtful(workspace, session, row, ref)
            planned = labeling.plan_task(session, task)
            shown.append(_Shown(planned, query, ref, sizes[ref.image_id], prediction, doubtful))
    return [item for item in shown if item.task.status == TaskStatus.PLANNED]


def _doubtful(workspace: Workspace, session: Any, row: Round, ref: ImageRef) -> tuple[str, ...]:
    if row.scoring_config_id is None:
        return ()
    indices = scores.doubtful_classes(session, row.scoring_config_id, ref.image_id)
    return tuple(workspace.label_set.names[index] for index in indices)


def _upload(workspace: Workspace, client: LabelStudioClient, project: LabelingProject, shown: list[_Shown]) -> None:
    missing = [item for item in shown if item.task.image_url is None]
    for start in range(0, len(missing), UPLOAD_GROUP):
        group = missing[start : start + UPLOAD_GROUP]
        files = [(f"{PurePosixPath(item.image.uri).stem}.png", _browser_png(workspace, item.image)) for item in group]
        with_map = [item for item in group if item.prediction and item.prediction.entropy_location]
        files += [("entropy.png", _entropy_png(workspace, item)) for item in with_map]
        urls = client.upload_files(project.external_project_id, files)
        with workspace.database.write() as session:
            for item, url in zip(group, urls, strict=False):
                item.task.image_url = url
                session.merge(item.task)
            for item, url in zip(with_map, urls[len(group) :], strict=True):
                item.task.entropy_url = url
                session.merge(item.task)


def _browser_png(workspace: Workspace, ref: ImageRef) -> bytes:
    """The image as the network saw it (upright, 8 bit RGB), so that masks fit whatever the browser would have done."""
    return encode_png(workspace.read_image(ref))


def _entropy_png(workspace: Workspace, item: _Shown) -> bytes:
    if item.prediction is None or item.prediction.entropy_location is None:
        raise NotReadyError(f"image {item.image.image_id} has no entropy map")
    return workspace.artifacts.read(item.prediction.entropy_location)


def _send(
    workspace: Workspace,
    client: LabelStudioClient,
    project: LabelingProject,
    shown: list[_Shown],
    on_progress: Progress | None,
) -> int:
    if not shown:
        return 0
    with workspace.database.read() as session:
        row = session.get_one(Round, shown[0].query.round_id)
        before = labeling.count_tasks_before(session, project.id, row.number)
    payloads = (_payload(workspace, project, item, before, row.query_size) for item in shown)
    sent = 0
    for batch in batches(payloads, max_bytes=int(workspace.settings.labelstudio.batch_mb * 1e6)):
        keys = [task["data"]["key"] for task in batch]
        with workspace.database.write() as session:
            call = labeling.intend(session, project.id, keys)
        try:
            numbers = client.import_tasks(project.external_project_id, batch)
        except LabelStudioDoubt as doubt:
            with workspace.database.write() as session:
                labeling.journal(session, call, JournalState.DOUBT, str(doubt))
            raise
        with workspace.database.write() as session:
            labeling.mark_pushed(session, project.id, dict(zip(keys, numbers, strict=True)))
            labeling.journal(session, call, JournalState.DONE)
        sent += len(batch)
        if on_progress:
            on_progress(sent, len(shown))
    return sent


def _payload(workspace: Workspace, project: LabelingProject, item: _Shown, before: int, size: int) -> dict[str, Any]:
    if item.task.image_url is None:
        raise NotReadyError(f"image {item.image.image_id} was not uploaded")
    prediction, result = item.prediction, _result(workspace, project, item)
    if prediction is not None and result is None:
        prediction = None
        with workspace.database.write() as session:
            labeling.leave_without_prediction(session, item.task.id)
    return task_payload(
        item.task.key,
        item.task.image_url,
        item.task.entropy_url,
        order=before + item.query.shown_order,
        sha256=item.image.sha256,
        doubtful=item.doubtful,
        result=result or (),
        score=confidence_of_order(item.query.shown_order, size),
        model_version=shown_version(prediction.source) if prediction else None,
        rough=prediction is not None and prediction.checkpoint_id is None,
        overlap=workspace.label_set.overlap,
    )


def _result(workspace: Workspace, project: LabelingProject, item: _Shown) -> list[dict[str, Any]] | None:
    """The regions a task shows; None without a prediction and for a stored mask that is none of this image (any more).

    It was stored before [labels] changed, or its file is damaged: the person draws, and the push goes on.
    """
    if item.prediction is None:
        return None
    kind: MaskKind = "bitmask" if project.mask_kind == "bitmask" else "brush"
    try:
        mask = workspace.read_mask(item.prediction.mask_location, item.prediction.mask_sha256)
        return mask_to_result(mask, workspace.label_set, kind=kind) if mask.shape[-2:] == item.size else None
    except DataError:
        return None
