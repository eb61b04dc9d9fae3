"""A new champion -> new predictions on open tasks that nobody has started.

Label Studio shows the predictions of one model version per project: without this, tasks of earlier rounds would open
without a mask after every promotion. Tasks that somebody has started are left alone.
"""

from __future__ import annotations

import time
from typing import Any

from activeseg.db import checkpoints, images, labeling
from activeseg.db.labeling import OpenTask
from activeseg.db.models import Checkpoint, LabelingProject, Prediction, Task
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.labeling import MaskKind
from activeseg.labelstudio.regions import mask_to_result
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.tasks import confidence_of_order, prediction_payload
from activeseg.predictions import predict_and_store, source_of
from activeseg.records import StageReport
from activeseg.workspace import Workspace


def refresh_open_tasks(workspace: Workspace, client: LabelStudioClient) -> StageReport:
    """Give untouched open tasks the champion's prediction; those that have it are left alone.

    A kill between the server and the tables does no harm: the next run replaces the same predictions again.
    """
    started = time.monotonic()
    with workspace.database.read() as session:
        champion = checkpoints.champion(session)
        waiting = labeling.open_tasks_without(session, source_of(champion)) if champion else []
    if champion is None or not waiting:
        return StageReport("refresh", seconds=time.monotonic() - started)
    project = open_project(workspace, client)
    untouched = set(client.untouched_tasks(project.external_project_id))
    work = [item for item in waiting if item.task.labeling_project_id == project.id and item.task.external_task_id in untouched]
    predictions = _predictions(workspace, champion, work)
    work = [item for item in work if item.image.image_id in predictions]
    payloads = [_payload(workspace, project, champion, item, predictions[item.image.image_id]) for item in work]
    if payloads:
        client.replace_predictions(project.external_project_id, champion.model_version, payloads)
    with workspace.database.write() as session:
        for item in work:
            session.get_one(Task, item.task.id).prediction_id = predictions[item.image.image_id].id
    return StageReport("refresh", len(work), 0, time.monotonic() - started, {"model_version": champion.model_version})


def _predictions(workspace: Workspace, champion: Checkpoint, work: list[OpenTask]) -> dict[int, Prediction]:
    """image id -> the champion's prediction; images that cannot be read any more keep the one they show."""
    ids = [item.image.image_id for item in work]
    with workspace.database.read() as session:
        known = labeling.predictions_of(session, source_of(champion), ids)
    failures = predict_and_store(workspace, champion, [item.image for item in work if item.image.image_id not in known])
    with workspace.database.write() as session:
        images.quarantine(session, failures)
        return labeling.predictions_of(session, source_of(champion), ids)


def _payload(
    workspace: Workspace, project: LabelingProject, champion: Checkpoint, item: OpenTask, prediction: Prediction
) -> dict[str, Any]:
    mask = workspace.read_mask(prediction.mask_location, prediction.mask_sha256)
    kind: MaskKind = "bitmask" if project.mask_kind == "bitmask" else "brush"
    return prediction_payload(
        mask_to_result(mask, workspace.label_set, kind=kind),
        model_version=champion.model_version,
        score=confidence_of_order(item.shown_order, item.query_size),
        task_id=item.task.external_task_id,
    )
