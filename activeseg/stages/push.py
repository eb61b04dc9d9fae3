"""predictions -> Label Studio tasks: every task once, whatever happens on the way.

    settle     calls whose end nobody knows (killed, answer lost): look their tasks up by key
    plan       a tasks row with its deterministic key and the size it is shown at, for every query
    deliver    an address for each image and entropy map, by upload or link; committed, so that a killed push does not
               upload again
    send       journal row, one import request, journal row closed and task ids recorded (`labelstudio.sending`)

A request that creates tasks is never sent twice for the same key unless a look-up by key came back empty. Tasks are taken
in blocks, so memory does not grow with a round.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from sqlalchemy.orm import Session

from activeseg.core.cells import asked_of, framed
from activeseg.core.scaling import shown_size
from activeseg.db import checkpoints, drift, images, labeling, planned, rounds, scores
from activeseg.db.images import blocks
from activeseg.db.models import LabelingProject, Round, RoundStatus, Task, TaskStatus
from activeseg.db.planned import PlannedTask
from activeseg.errors import ImageError, NotReadyError
from activeseg.imaging.browser import resize_picture, shows_as_decoded
from activeseg.imaging.decode import detect_format
from activeseg.imaging.sandbox import decode_image
from activeseg.imaging.thumbnails import encode_png
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.images import address_of, folder_on_server
from activeseg.labelstudio.pictures import shown_entropy, shown_regions
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.sending import send_tasks
from activeseg.labelstudio.storages import ensure_local_storage
from activeseg.labelstudio.tasks import TaskBody, confidence_of_order, task_body, task_payload
from activeseg.nn.prefetch import map_ahead
from activeseg.predictions import shown_version, source_of
from activeseg.reconciliation import settle, task_key
from activeseg.records import StageReport
from activeseg.workspace import Workspace

BLOCK = 200
UPLOAD_GROUP = 16
UPLOAD_LEVEL = 1  # of PNG compression: at 6 we would take longer to make a picture than the server to store it
# Unpacking and packing leave Python's lock, so a second thread helps; each holds the pixels of a whole image.
_THREADS = min(2, os.cpu_count() or 1)
_AHEAD = 2 * UPLOAD_GROUP
TAB_TITLE = "activeseg: most useful first"

Progress = Callable[[int, int], None]
"""Called with (tasks sent, tasks planned)."""


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
    that of the youngest stored ones, if there are any. Images that cannot be read any more are quarantined. The report says
    how many images were uploaded and, where they go by address, how many did; or, where [drift] blocks it, why nothing is sent.
    Raises LabelStudioDoubt where an answer was lost and the look-up could not settle it: the round stays as it is and the
    next run goes on.
    """
    started = time.monotonic()
    with workspace.database.read() as session:
        held = drift.held(session, workspace.settings.drift, "push")
    if held is not None:
        return StageReport("push", seconds=time.monotonic() - started, details={"held": held})
    project = open_project(workspace, client)
    settled = settle(workspace, client, project)
    source = _shown_source(workspace, round_id, pre_annotation)
    total = _plan(workspace, project, round_id, source)
    counts = _deliver(workspace, client, project, round_id)
    tell = on_progress or (lambda done, planned: None)
    with closing(_bodies(workspace, project, round_id)) as tasks:
        sent = send_tasks(workspace, client, project, tasks, on_sent=lambda done: tell(done, total))
    # Before the round counts as pushed: whatever fails here is done again by the next run.
    if source is not None and _is_shown(workspace, project, source):
        client.set_model_version(project.external_project_id, shown_version(source))
    client.ensure_tab(project.external_project_id, TAB_TITLE, ["tasks:data.order"])
    with workspace.database.write() as session:
        rounds.finish_pushing(session, round_id)
    failed = counts.pop("failed", 0)
    details = {"settled": settled, "project": project.external_project_id} | {name: n for name, n in counts.items() if n}
    return StageReport("push", sent + settled, failed, time.monotonic() - started, details)


def _shown_source(workspace: Workspace, round_id: int, pre_annotation: str | None) -> str | None:
    """Whose predictions a round's tasks show."""
    with workspace.database.read() as session:
        if (checkpoint := checkpoints.of_round(session, session.get_one(Round, round_id))) is not None:
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


# Plan


def _plan(workspace: Workspace, project: LabelingProject, round_id: int, source: str | None) -> int:
    """Write the missing tasks rows of a round; returns how many of its queries wait."""
    with workspace.database.read() as session:
        row = session.get_one(Round, round_id)
        waiting = planned.waiting(session, round_id) if row.status == RoundStatus.SELECTED else []
    longest_side = workspace.settings.labelstudio.longest_side
    for block in blocks(waiting, BLOCK):
        tasks = []
        with workspace.database.write() as session:
            shown = labeling.predictions_of(session, source, [item.image.image_id for item in block]) if source else {}
            for item in block:
                height, width = shown_size(*item.size, longest_side)
                task = Task(
                    labeling_project_id=project.id,
                    query_id=item.query_id,
                    prediction_id=shown[item.image.image_id].id if item.image.image_id in shown else None,
                    key=task_key(project, row.number, item.image),
                    shown_height=height or None,
                    shown_width=width or None,
                    status=TaskStatus.PLANNED,
                )
                tasks.append(task)
            planned.plan(session, tasks)
    return len(waiting)


# Deliver

_ENDINGS = {"JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True, slots=True)
class _Delivery:
    """What a task's pictures need: an address, or a file to upload. problem: why the image cannot be used at all."""

    item: PlannedTask
    address: str | None = None
    image: bytes | None = None
    entropy_png: bytes | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        """The name of the image's file on the server, with the ending that its bytes ask for."""
        kind = detect_format(self.image or b"") or ""
        return f"{PurePosixPath(self.item.image.uri).stem}.{_ENDINGS.get(kind, 'png')}"


def _deliver(workspace: Workspace, client: LabelStudioClient, project: LabelingProject, round_id: int) -> Counter[str]:
    """See that every planned task's pictures can be reached; counts how they are."""
    counts = Counter[str]()
    items = _undelivered(workspace, project, round_id)
    # The next ones are read, and shrunk and encoded where they have to be, while a group travels.
    prepared = map_ahead(partial(_prepare, workspace), items, workers=_THREADS, ahead=_AHEAD)
    with closing(prepared):  # at once also when an error ends the loop: its threads must not outlive this call
        for group in _groups(prepared):
            by_address = any(one.address is not None for one in group) and not counts["images by address"]
            if by_address and workspace.settings.labelstudio.images == "local-files":
                ensure_local_storage(client.http, project.external_project_id, folder_on_server(workspace.settings))
            counts.update(_deliver_group(workspace, client, project, group))
    return counts


def _groups(prepared: Iterable[_Delivery]) -> Iterator[list[_Delivery]]:
    """What is uploaded in a request and recorded in a transaction: UPLOAD_GROUP tasks with files, or BLOCK in all."""
    group: list[_Delivery] = []
    uploads = 0
    for one in prepared:
        group.append(one)
        uploads += one.image is not None or one.entropy_png is not None
        if uploads == UPLOAD_GROUP or len(group) == BLOCK:
            yield group
            group, uploads = [], 0
    if group:
        yield group


def _deliver_group(
    workspace: Workspace, client: LabelStudioClient, project: LabelingProject, group: list[_Delivery]
) -> dict[str, int]:
    addresses = {one.item.task.id: one.address for one in group if one.address is not None}
    image_urls, entropy_urls = _upload(client, project, group)
    failures = {one.item.image.image_id: one.problem for one in group if one.problem is not None}
    with workspace.database.write() as session:
        urls = (image_urls | addresses).items()
        planned.deliver(session, {number: (url, entropy_urls.get(number)) for number, url in urls})
        images.quarantine(session, failures)
    return {"images uploaded": len(image_urls), "images by address": len(addresses), "failed": len(failures)}


def _upload(
    client: LabelStudioClient, project: LabelingProject, group: list[_Delivery]
) -> tuple[dict[int, str], dict[int, str]]:
    """Upload what has no address; the addresses of images and of entropy maps by the id of the task's row."""
    pictures = [(one.item.task.id, one.name, one.image) for one in group]
    maps = [(one.item.task.id, "entropy.png", one.entropy_png) for one in group]
    wanted = [[(number, (name, data)) for number, name, data in some if data is not None] for some in (pictures, maps)]
    files = [file for some in wanted for _, file in some]
    urls = iter(client.upload_files(project.external_project_id, files) if files else ())
    image_urls, entropy_urls = ({number: next(urls) for number, _ in some} for some in wanted)
    return image_urls, entropy_urls


def _undelivered(workspace: Workspace, project: LabelingProject, round_id: int) -> Iterator[PlannedTask]:
    after = -1
    while True:
        with workspace.database.read() as session:
            items = planned.page(session, project.id, round_id, after=after, limit=BLOCK, without_image=True)
        if not items:
            return
        yield from items
        after = items[-1].shown_order


def _prepare(workspace: Workspace, item: PlannedTask) -> _Delivery:
    """Decide how an image is reached: by address, as the file it is, or as a PNG of the pixels people are to see.

    The first two only where a browser shows the very pixels the network saw, unshrunk. That the file decodes was seen when
    it was registered, and its bytes are still those. Where a part of it is asked about and there is no entropy map to frame
    that on, the picture itself does.
    """
    address = image = None
    cells = asked_of(item.cells, workspace.label_set)
    try:
        data = workspace.read_bytes(item.image)
        if item.shown == item.size and shows_as_decoded(data):
            address = address_of(workspace.settings, item.image.uri)
            image = data if address is None else None
        else:
            picture = decode_image(data, max_pixels=workspace.settings.pool.max_pixels)
            image = encode_png(resize_picture(picture, item.shown), level=UPLOAD_LEVEL)
        beside = shown_entropy(workspace, item.prediction, size=item.size, shown=item.shown, cells=cells)
        if cells is not None and beside is None and workspace.settings.labelstudio.entropy_map != "none":
            picture = decode_image(data, max_pixels=workspace.settings.pool.max_pixels)
            beside = encode_png(framed(resize_picture(picture, item.shown), cells), level=UPLOAD_LEVEL)
    except ImageError as error:
        return _Delivery(item, problem=str(error))
    return _Delivery(item, address, image, beside)


# Send


def _bodies(workspace: Workspace, project: LabelingProject, round_id: int) -> Generator[TaskBody, None, None]:
    """The tasks of a round that are still to be sent, in shown order. Reads the database and writes nothing.

    Made in threads of its own: close it.
    """
    with workspace.database.read() as session:
        row = session.get_one(Round, round_id)
        before = labeling.count_tasks_before(session, project.id, row.number)
    work = _unsent(workspace, project, row)
    body = partial(_body, workspace, project, row, before=before)
    return map_ahead(lambda one: body(*one), work, workers=_THREADS, ahead=_AHEAD)


def _unsent(workspace: Workspace, project: LabelingProject, row: Round) -> Iterator[tuple[PlannedTask, list[str]]]:
    """The planned tasks of a round, each with its classes in doubt."""
    after = -1
    while True:
        with workspace.database.read() as session:
            items = planned.page(session, project.id, row.id, after=after, limit=BLOCK)
            doubtful = _doubtful(session, row, items)
        if not items:
            return
        for item in items:
            yield item, [workspace.label_set.names[index] for index in doubtful.get(item.image.image_id, ())]
        after = items[-1].shown_order


def _doubtful(session: Session, row: Round, items: list[PlannedTask]) -> dict[int, list[int]]:
    if row.scoring_config_id is None:
        return {}
    return scores.doubtful_classes(session, row.scoring_config_id, [item.image.image_id for item in items])


def _body(
    workspace: Workspace, project: LabelingProject, row: Round, item: PlannedTask, doubtful: list[str], *, before: int
) -> TaskBody:
    if item.task.image_url is None:
        raise NotReadyError(f"image {item.image.image_id} was not delivered")
    result, cells = None, asked_of(item.cells, workspace.label_set)
    if item.prediction is not None:  # one that cannot be shown is left out: the person draws, and the push goes on
        result = shown_regions(workspace, project, item.prediction, size=item.size, shown=item.shown, cells=cells)
    prediction = item.prediction if result is not None else None
    payload = task_payload(
        item.task.key,
        item.task.image_url,
        item.task.entropy_url,
        order=before + item.shown_order,
        sha256=item.image.sha256,
        doubtful=doubtful,
        result=result or (),
        score=confidence_of_order(item.shown_order, row.query_size),
        model_version=shown_version(prediction.source) if prediction else None,
        rough=prediction is not None and prediction.checkpoint_id is None,
        overlap=workspace.label_set.overlap,
        cells=cells,
    )
    return task_body(payload, item.task.id, left_out=item.prediction is not None and prediction is None)
