"""A new champion -> new predictions, entropy maps, classes in doubt and a new order on open tasks nobody has started.

Label Studio shows the predictions of one model version per project: without this, tasks of earlier rounds would open
without a mask after every promotion. Tasks that somebody has started are left alone and keep their places.

    draw      the champion's masks, entropy maps and scores of the untouched tasks' images
    line up   by the champion's score, the control arm at random places; both follow from the rows, so that a run that was
              killed is repeated with the same outcome
    show      in groups: the task's data where they differ, then the prediction, then our row

A group's rows are written last: whatever a kill leaves behind, the next run finds tasks without the champion's prediction
and does the same again; data that are there already are not sent again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from activeseg.core.acquisition import rank_images
from activeseg.core.cells import asked_of
from activeseg.core.selection import interleave
from activeseg.core.temperature import serving
from activeseg.db import checkpoints, images, labeling
from activeseg.db.images import blocks
from activeseg.db.models import Arm, Checkpoint, LabelingProject, Prediction, Task
from activeseg.db.open_tasks import OpenTask, open_tasks, sources_shown
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.pictures import shown_entropy, shown_regions
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.tasks import confidence_of_order, prediction_payload, task_payload
from activeseg.nn.checkpoint import load_checkpoint
from activeseg.nn.device import pick_device
from activeseg.nn.infer import score_images
from activeseg.predictions import predict_and_store, shown_version, source_of
from activeseg.records import ImageScore, ScoreFailure, StageReport
from activeseg.workspace import Workspace

GROUP = 16
DOUBTFUL = 3
LONGEST_PLACE = 9


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a task is to show: its place (`data.order`), its confidence, and the champion's prediction and score."""

    item: OpenTask
    place: int
    confidence: float
    prediction: Prediction
    score: ImageScore

    @property
    def number(self) -> int:
        """The task's number on the server."""
        return self.item.task.external_task_id or 0


def refresh_open_tasks(workspace: Workspace, client: LabelStudioClient) -> StageReport:
    """Let untouched open tasks show what the champion says, in its order; does nothing where all of them do.

    The report counts the tasks. Left as they are, and counted: tasks whose image cannot be read any more (it is quarantined),
    whose stored mask is damaged, and those somebody has taken the image from. Where tasks show the champion, the project
    ends with its version as the one annotators see.
    """
    started = time.monotonic()
    with workspace.database.read() as session:
        champion = checkpoints.champion(session)
        sources = sources_shown(session)
    if champion is None or not sources:
        return StageReport("refresh", seconds=time.monotonic() - started)
    project = open_project(workspace, client)
    with workspace.database.read() as session:
        tasks = open_tasks(session, project.id)
    free = _untouched(client, project, tasks) if sources != {source_of(champion)} else []
    if all(item.source == source_of(champion) for item in free):
        details = _show_version(client, project, champion, tasks)
        return StageReport("refresh", 0, 0, time.monotonic() - started, details)
    predictions, scores = _draw(workspace, champion, free)
    data = client.task_data(project.external_project_id, [item.task.external_task_id or 0 for item in tasks])
    # Drawing takes minutes, in which people start tasks.
    free = [item for item in _untouched(client, project, tasks) if item.image.image_id in predictions.keys() & scores.keys()]
    edited = [item for item in free if not isinstance(data.get(item.task.external_task_id or 0, {}).get("image"), str)]
    free = _without(free, edited)
    kept = [data.get(item.task.external_task_id or 0, {}) for item in _without(tasks, free)]
    line = _line_up(free, scores, seed=workspace.settings.selection.seed * 1_000_003 + champion.id)
    places = _places(free, {str(one.get("order")) for one in kept})
    shown = [
        _Shown(item, next(places), confidence_of_order(at, len(line)), predictions[number], scores[number])
        for at, (number, item) in enumerate((item.image.image_id, item) for item in line)
    ]
    outcomes = [_show(workspace, client, project, champion, group, data) for group in blocks(shown, GROUP)]
    done, damaged = (sum(counts) for counts in zip(*outcomes, strict=True)) if outcomes else (0, 0)
    _show_version(client, project, champion, tasks)
    details = {"model_version": champion.model_version, "left alone": len(tasks) - done}
    details |= {name: n for name, n in (("damaged masks", damaged), ("tasks without image", len(edited))) if n}
    return StageReport("refresh", done, damaged + len(edited), time.monotonic() - started, details)


def _without(tasks: Sequence[OpenTask], others: Sequence[OpenTask]) -> list[OpenTask]:
    left_out = {item.task.id for item in others}
    return [item for item in tasks if item.task.id not in left_out]


def _show_version(
    client: LabelStudioClient, project: LabelingProject, champion: Checkpoint, tasks: Sequence[OpenTask]
) -> dict[str, Any]:
    """Annotators see the champion where tasks show it: a round chosen under another was pushed, or somebody chose otherwise.

    Returns what is to be said of it: nothing where it was so.
    """
    if all(item.source != source_of(champion) for item in tasks):
        return {}
    if client.model_version(project.external_project_id) == champion.model_version:
        return {}
    client.set_model_version(project.external_project_id, champion.model_version)
    return {"model_version": champion.model_version}


def _untouched(client: LabelStudioClient, project: LabelingProject, tasks: Sequence[OpenTask]) -> list[OpenTask]:
    numbers = [item.task.external_task_id for item in tasks if item.task.external_task_id is not None]
    there = set(client.untouched_tasks(project.external_project_id, numbers)) if numbers else set()
    return [item for item in tasks if item.task.external_task_id in there]


# Draw


def _draw(
    workspace: Workspace, champion: Checkpoint, free: Sequence[OpenTask]
) -> tuple[dict[int, Prediction], dict[int, ImageScore]]:
    """The champion's predictions and scores of the tasks' images, by image id; images that cannot be read are absent."""
    ids = [item.image.image_id for item in free]
    with workspace.database.read() as session:
        known = labeling.drawn(session, source_of(champion), ids)
    failures = predict_and_store(workspace, champion, [item.image for item in free if item.image.image_id not in known])
    scores: dict[int, ImageScore] = {}
    with closing(_score(workspace, champion, free)) as stream:
        for result in stream:
            if isinstance(result, ScoreFailure):
                failures[result.image_id] = result.reason
            else:
                scores[result.image_id] = result
    with workspace.database.write() as session:
        images.quarantine(session, failures)
        return labeling.predictions_of(session, source_of(champion), ids), scores


def _score(
    workspace: Workspace, champion: Checkpoint, free: Sequence[OpenTask]
) -> Generator[ImageScore | ScoreFailure, None, None]:
    """Not stored: the pool is scored later, as a whole. One by one, because the last bits depend on a batch's size."""
    device = pick_device(workspace.settings.model.device)
    data = workspace.artifacts.read(champion.location, sha256=champion.sha256)
    segmenter = load_checkpoint(data, model_version=champion.model_version, device=device)
    refs, precision = [item.image for item in free], workspace.settings.model.precision
    read = partial(workspace.read_input, policy=segmenter.spec.input_policy)
    temperature = serving(champion.temperature, workspace.settings.scoring.temperature)
    return score_images(segmenter, refs, read, device=device, precision=precision, batch_size=1, temperature=temperature)


# Line up


def _line_up(free: Sequence[OpenTask], scores: Mapping[int, ImageScore], *, seed: int) -> list[OpenTask]:
    """The tasks in the order annotators should see them: most uncertain first, the control arm at random places."""
    by_image = {item.image.image_id: item for item in free}
    ranked = rank_images((number, scores[number].entropy_sum) for number in by_image)
    ordered = [by_image[one.image_id] for one in ranked]
    control = sorted((item for item in free if item.arm == Arm.CONTROL), key=lambda item: item.image.image_id)
    return interleave([item for item in ordered if item.arm != Arm.CONTROL], control, seed=seed)


def _places(free: Sequence[OpenTask], taken: Collection[str]) -> Iterator[int]:
    """Places from the first one these tasks were sent with; those of tasks that stay where they are (`taken`) are left out."""
    held = {int(place) for place in taken if place.isdecimal() and len(place) <= LONGEST_PLACE}
    return (place for place in count(min((item.place for item in free), default=0)) if place not in held)


# Show


def _show(
    workspace: Workspace,
    client: LabelStudioClient,
    project: LabelingProject,
    champion: Checkpoint,
    group: Sequence[_Shown],
    data: Mapping[int, Mapping[str, Any]],
) -> tuple[int, int]:
    """Bring a group of tasks up to date; those that were started meanwhile stay as they are.

    Returns how many it was, and how many were left because their stored mask is damaged.
    """
    there = set(client.untouched_tasks(project.external_project_id, [one.number for one in group]))
    group = [one for one in group if one.number in there]
    found = {one.number: _payload(workspace, project, champion, one) for one in group}
    payloads = [payload for payload in found.values() if payload is not None]
    group = [one for one in group if found[one.number] is not None]
    urls = _maps(workspace, client, project, group, data)
    for one in group:
        wanted = _data(workspace, one, urls[one.number], data[one.number])
        if wanted != data[one.number]:
            client.set_task_data(one.number, wanted)
    if payloads:
        client.replace_predictions(project.external_project_id, champion.model_version, payloads)
    with workspace.database.write() as session:
        for one in group:
            row = session.get_one(Task, one.item.task.id)
            row.prediction_id, row.entropy_url = one.prediction.id, urls[one.number]
    return len(group), len(found) - len(group)


def _data(workspace: Workspace, one: _Shown, entropy_url: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    """The task's data with what the champion says; all other fields as they are: Label Studio replaces data as a whole."""
    classes = sorted(one.score.classes, key=lambda part: (-part.channel_entropy_sum, part.class_index))[:DOUBTFUL]
    payload = task_payload(
        one.item.task.key,
        str(known["image"]),
        entropy_url,
        order=one.place,
        sha256=one.item.image.sha256,
        doubtful=[workspace.label_set.names[part.class_index] for part in classes],
        score=one.confidence,
        model_version=shown_version(one.prediction.source),
        overlap=workspace.label_set.overlap,
        cells=asked_of(one.item.cells, workspace.label_set),
    )
    return {**known, **{name: payload["data"][name] for name in ("entropy", "doubt", "order")}}


def _maps(
    workspace: Workspace,
    client: LabelStudioClient,
    project: LabelingProject,
    group: Sequence[_Shown],
    data: Mapping[int, Mapping[str, Any]],
) -> dict[int, str | None]:
    """Addresses of the entropy maps by task number. A map is uploaded unless the task shows one of its name."""
    urls: dict[int, str | None] = {}
    missing: list[tuple[int, str, bytes]] = []
    for one in group:
        cells = asked_of(one.item.cells, workspace.label_set)
        png = shown_entropy(workspace, one.prediction, size=one.item.size, shown=one.item.shown, cells=cells)
        name = f"entropy-{hashlib.sha256(png).hexdigest()[:16]}.png" if png else ""
        listed = data[one.number].get("entropy")
        known = str(listed[0]) if isinstance(listed, list) and listed else ""
        urls[one.number] = known if png and known.endswith(name) else None
        if png and urls[one.number] is None:
            missing.append((one.number, name, png))
    files = [(name, png) for _, name, png in missing]
    uploaded = client.upload_files(project.external_project_id, files) if files else []
    return urls | {number: url for (number, _, _), url in zip(missing, uploaded, strict=True)}


def _payload(workspace: Workspace, project: LabelingProject, champion: Checkpoint, one: _Shown) -> dict[str, Any] | None:
    """The prediction as it is sent; None where its stored mask is damaged."""
    cells = asked_of(one.item.cells, workspace.label_set)
    regions = shown_regions(workspace, project, one.prediction, size=one.item.size, shown=one.item.shown, cells=cells)
    if regions is None:
        return None
    return prediction_payload(regions, model_version=champion.model_version, score=one.confidence, task_id=one.number)
