"""A new champion -> new predictions, entropy maps, classes in doubt and a new order on open tasks nobody has started.

Label Studio shows the predictions of one model version per project: without this, tasks of earlier rounds would open
without a mask after every promotion. Tasks that somebody has started are left alone and keep their places.

    draw      the champion's masks and entropy maps of the tasks that do not show it, its scores of all untouched ones
    line up   by the champion's score, the control arm at random places; both follow from the rows, so that a run that was
              killed is repeated with the same outcome
    show      in groups: the task's data where they differ, then the prediction where it is another one, then our row

A group's rows are written last, and tasks that lack the champion's prediction are in the last groups: whatever a kill leaves
behind, the next run finds such a task and does the same again; data that are there already are not sent again.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
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
from activeseg.errors import DataError
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.pictures import shown_entropy, shown_regions
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.tasks import confidence_of_order, prediction_payload, task_payload
from activeseg.nn.checkpoint import load_checkpoint
from activeseg.nn.device import pick_device
from activeseg.nn.infer import score_images
from activeseg.predictions import predict_and_store, source_of
from activeseg.records import ImageScore, ScoreFailure, StageReport
from activeseg.workspace import Workspace

GROUP = 16
DOUBTFUL = 3
LONGEST_PLACE = 9


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a task is to show: its place (`data.order`), its confidence, and the champion's score and prediction.

    prediction: None where the task shows the champion's already; then it stays.
    """

    item: OpenTask
    place: int
    confidence: float
    score: ImageScore
    prediction: Prediction | None

    @property
    def number(self) -> int:
        """The task's number on the server."""
        return _number(self.item)


def _number(item: OpenTask) -> int:
    return item.task.external_task_id or 0


def refresh_open_tasks(workspace: Workspace, client: LabelStudioClient) -> StageReport:
    """Let untouched open tasks show what the champion says, in its order; does nothing where all do that can.

    The report counts the tasks that something was sent for. Left as they are, and counted: tasks whose image cannot be read
    any more (it is quarantined), whose picture somebody has taken away, whose stored mask is none of their image, and those
    somebody has started. Where tasks show the champion, the project ends with its version as the one annotators see.
    """
    started = time.monotonic()
    with workspace.database.read() as session:
        champion = checkpoints.champion(session)
        sources = sources_shown(session)
    if champion is None or not sources:
        return StageReport("refresh", seconds=time.monotonic() - started)
    source, project = source_of(champion), open_project(workspace, client)
    with workspace.database.read() as session:
        tasks = open_tasks(session, project.id)
    free = _untouched(client, project, tasks) if sources != {source} else []
    stale, left = _to_show(workspace, client, project, champion, free)
    if not stale:
        details = _show_version(client, project, champion, tasks)
        return StageReport("refresh", 0, left.total(), time.monotonic() - started, details | dict(left))
    predictions, scores = _draw(workspace, champion, free, stale)
    data = client.task_data(project.external_project_id, [_number(item) for item in tasks])
    # Drawing takes minutes, in which people start tasks.
    free = [item for item in _untouched(client, project, tasks) if item.image.image_id in scores]
    free = [item for item in free if item.source == source or item.image.image_id in predictions]
    free = [item for item in free if _has_picture(data, item)]
    kept = [data.get(_number(item), {}) for item in _without(tasks, free)]
    line = _line_up(free, scores, seed=workspace.settings.selection.seed * 1_000_003 + champion.id)
    places = _places(free, {str(one.get("order")) for one in kept})
    shown = [
        _Shown(item, next(places), confidence_of_order(at, len(line)), scores[number], predictions.get(number))
        for at, (number, item) in enumerate((item.image.image_id, item) for item in line)
    ]
    shown.sort(key=lambda one: one.prediction is not None)
    done = sum(_show(workspace, client, project, champion, group, data) for group in blocks(shown, GROUP))
    _show_version(client, project, champion, tasks)
    details = {"model_version": champion.model_version, "left alone": len(tasks) - done} | dict(left)
    return StageReport("refresh", done, left.total(), time.monotonic() - started, details)


def _to_show(
    workspace: Workspace,
    client: LabelStudioClient,
    project: LabelingProject,
    champion: Checkpoint,
    free: Sequence[OpenTask],
) -> tuple[list[OpenTask], Counter[str]]:
    """Tasks that do not show the champion and can, and why others cannot: for those nothing is drawn, by no pull ever again."""
    stale = [item for item in free if item.source != source_of(champion)]
    data = client.task_data(project.external_project_id, [_number(item) for item in stale]) if stale else {}
    with workspace.database.read() as session:
        stored = labeling.predictions_of(session, source_of(champion), [item.image.image_id for item in stale])
    left, possible = Counter[str](), list[OpenTask]()
    for item in stale:
        prediction = stored.get(item.image.image_id)
        if not _has_picture(data, item):
            left["tasks without image"] += 1
        elif prediction and not _is_damaged(workspace, prediction) and _regions(workspace, project, prediction, item) is None:
            left["masks that do not fit"] += 1
        else:
            possible.append(item)
    return possible, left


def _has_picture(data: Mapping[int, Mapping[str, Any]], item: OpenTask) -> bool:
    return isinstance(data.get(_number(item), {}).get("image"), str)


def _is_damaged(workspace: Workspace, prediction: Prediction) -> bool:
    """Whether the file of its mask is lost or altered: it is drawn again."""
    try:
        workspace.artifacts.read(prediction.mask_location, sha256=prediction.mask_sha256)
    except DataError:
        return True
    return False


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
    workspace: Workspace, champion: Checkpoint, free: Sequence[OpenTask], stale: Sequence[OpenTask]
) -> tuple[dict[int, Prediction], dict[int, ImageScore]]:
    """The champion's predictions of the stale tasks' images and its scores of all, by image id; unreadable ones are absent."""
    ids, source = [item.image.image_id for item in stale], source_of(champion)
    with workspace.database.read() as session:
        stored, known = labeling.predictions_of(session, source, ids), labeling.drawn(session, source, ids)
    damaged = {number for number, prediction in stored.items() if _is_damaged(workspace, prediction)}
    missing = [item.image for item in stale if item.image.image_id not in known - damaged]
    failures = predict_and_store(workspace, champion, missing, anew=damaged)
    scores: dict[int, ImageScore] = {}
    with closing(_score(workspace, champion, free)) as stream:
        for result in stream:
            if isinstance(result, ScoreFailure):
                failures[result.image_id] = result.reason
            else:
                scores[result.image_id] = result
    with workspace.database.write() as session:
        images.quarantine(session, failures)
        return labeling.predictions_of(session, source, ids), scores


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
) -> int:
    """Bring a group of tasks up to date; those that were started meanwhile stay as they are.

    Returns for how many something was sent.
    """
    there = set(client.untouched_tasks(project.external_project_id, [one.number for one in group]))
    group = [one for one in group if one.number in there]
    payloads = {one.number: _payload(workspace, project, champion, one) for one in group if one.prediction is not None}
    group = [one for one in group if payloads.get(one.number, {}) is not None]
    urls = _maps(workspace, client, project, [one for one in group if one.prediction is not None], data)
    sent = {number for number, payload in payloads.items() if payload is not None}
    for one in group:
        known = data[one.number]
        wanted = _data(workspace, champion, one, urls.get(one.number, _map_shown(known)), known)
        if wanted != known:
            client.set_task_data(one.number, wanted)
            sent.add(one.number)
    if predictions := [payload for payload in payloads.values() if payload is not None]:
        client.replace_predictions(project.external_project_id, champion.model_version, predictions)
    with workspace.database.write() as session:
        for one in group:
            if one.prediction is not None:
                row = session.get_one(Task, one.item.task.id)
                row.prediction_id, row.entropy_url = one.prediction.id, urls[one.number]
    return len(sent)


def _data(
    workspace: Workspace, champion: Checkpoint, one: _Shown, entropy_url: str | None, known: Mapping[str, Any]
) -> dict[str, Any]:
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
        model_version=champion.model_version,
        overlap=workspace.label_set.overlap,
        cells=asked_of(one.item.cells, workspace.label_set),
    )
    return {**known, **{name: payload["data"][name] for name in ("entropy", "doubt", "order")}}


def _map_shown(data: Mapping[str, Any]) -> str | None:
    """The address of the entropy map a task shows, None where it shows its image in that place."""
    listed = data.get("entropy")
    first = str(listed[0]) if isinstance(listed, list) and listed else ""
    return first if first and first != data.get("image") else None


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
        known = _map_shown(data[one.number]) or ""
        urls[one.number] = known if png and known.endswith(name) else None
        if png and urls[one.number] is None:
            missing.append((one.number, name, png))
    files = [(name, png) for _, name, png in missing]
    uploaded = client.upload_files(project.external_project_id, files) if files else []
    return urls | {number: url for (number, _, _), url in zip(missing, uploaded, strict=True)}


def _payload(workspace: Workspace, project: LabelingProject, champion: Checkpoint, one: _Shown) -> dict[str, Any] | None:
    """The prediction as it is sent; None where its stored mask is damaged since it was drawn."""
    regions = None if one.prediction is None else _regions(workspace, project, one.prediction, one.item)
    if regions is None:
        return None
    return prediction_payload(regions, model_version=champion.model_version, score=one.confidence, task_id=one.number)


def _regions(
    workspace: Workspace, project: LabelingProject, prediction: Prediction, item: OpenTask
) -> list[dict[str, Any]] | None:
    cells = asked_of(item.cells, workspace.label_set)
    return shown_regions(workspace, project, prediction, size=item.size, shown=item.shown, cells=cells)
