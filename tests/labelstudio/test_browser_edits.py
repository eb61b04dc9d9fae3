"""A person corrects masks in a real browser; what the production pull stores is exactly what was drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sqlalchemy as sa
from PIL import Image

from activeseg.config import write_secret
from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.db import labeling
from activeseg.db.models import Annotation, AnnotationStatus, Prediction, Query, Task
from activeseg.db.models import Image as ImageRow
from activeseg.labelstudio.registration import open_client
from activeseg.stages.pool import sync_pool
from activeseg.stages.pull import pull_annotations
from activeseg.workspace import Workspace
from tests.labelstudio.seat import PICTURE, Point, Seat, distance_to_path, picture
from tests.labelstudio.test_browser import HEIGHT, WIDTH, scene
from tests.memory_label_studio import push

pytestmark = [pytest.mark.labelstudio, pytest.mark.browser, pytest.mark.slow]

_titles = count(1)
# Across three classes, with a bend: from the quoted one over road into the car's region.
PATH: list[Point] = [(90, 200), (190, 205), (300, 260)]
WALKER, CAR = 8, 7
NEAR = 4  # pixels by which an edge may be rounded and smoothed


@dataclass
class Desk:
    """Tasks of one scene, pushed by the production push, and the seat they are corrected at."""

    workspace: Workspace
    client: Any
    seat: Seat
    labels: LabelSet
    project: int
    tasks: dict[str, int]
    prediction: dict[str, npt.NDArray[np.uint8] | None]

    def open(self, name: str) -> Seat:
        self.seat.open(self.project, self.tasks[name])
        self.seat.rest(4000)
        return self.seat

    def pulled(self, name: str) -> npt.NDArray[np.uint8]:
        """The mask that the production pull stored for a task."""
        pull_annotations(self.workspace, self.client)
        with self.workspace.database.read() as session:
            newest = sa.select(Annotation).where(Annotation.external_task_id == self.tasks[name]).order_by(Annotation.id.desc())
            row = session.scalars(newest).first()
        assert row is not None
        assert row.status == AnnotationStatus.VALID, row.reason
        return self.workspace.read_mask(row.mask_location or "", row.mask_sha256)

    def exported(self, name: str) -> list[dict[str, Any]]:
        (task,) = self.client.export_tasks(self.project, [self.tasks[name]])
        regions: list[dict[str, Any]] = task["annotations"][-1]["result"]
        return regions


@pytest.fixture
def desk(
    page: Any, labelstudio_server: Any, make_sqlite_workspace: Any, labels: LabelSet, tmp_path: Path
) -> Callable[..., Desk]:
    """kind, names of tasks -> the mask each is pushed with, or None; longest_side as in [labelstudio]."""

    def make(kind: str, masks: dict[str, npt.NDArray[np.uint8] | None], **section: Any) -> Desk:
        token = tmp_path / "token"
        write_secret(token, labelstudio_server.token())
        title = f"edits {kind} {next(_titles)}"
        connection = {"url": labelstudio_server.url, "token_file": str(token), "project": title, "mask_kind": kind}
        selection = {"bootstrap_size": len(masks), "query_size": len(masks)}
        workspace = make_sqlite_workspace(pool=len(masks), selection=selection, labelstudio=connection | section)
        (tmp_path / "classes.txt").write_text(labels.to_text(), encoding="utf-8")
        files = sorted((tmp_path / "pool").glob("*.png"))
        for number, file in enumerate(files):
            pixels = scene()[0].copy()
            pixels[-1, -1] = number  # no two files alike
            Image.fromarray(pixels).save(file)
        client = open_client(workspace.settings)
        given = {file.name: mask for file, mask in zip(files, masks.values(), strict=True)}
        _store_before_push(workspace, given)
        push(workspace, client)
        tasks = _tasks_by_file(workspace)
        named = {name: tasks[file.name] for name, file in zip(masks, files, strict=True)}
        with workspace.database.read() as session:
            project = session.scalars(sa.select(labeling.LabelingProject)).one().external_project_id
        return Desk(workspace, client, Seat(page, client.url), labels, project, named, masks)

    return make


def _store_before_push(workspace: Workspace, masks: dict[str, npt.NDArray[np.uint8] | None]) -> None:
    sync_pool(workspace)
    with workspace.database.read() as session:
        images = {Path(image.uri).name: image.id for image in session.scalars(sa.select(ImageRow))}
    for name, mask in masks.items():
        if mask is not None:
            stored = workspace.store_mask(mask)
            with workspace.database.write() as session:
                row = Prediction(image_id=images[name], source="graphcut:scene", mask_sha256=stored.sha256)
                row.mask_location = stored.location
                labeling.store_prediction(session, row)


def _tasks_by_file(workspace: Workspace) -> dict[str, int]:
    statement = (
        sa.select(ImageRow.uri, Task.external_task_id)
        .join(Query, Query.image_id == ImageRow.id)
        .join(Task, Task.query_id == Query.id)
    )
    with workspace.database.read() as session:
        return {Path(uri).name: number or 0 for uri, number in session.execute(statement)}


def region_pixels(region: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """Where a region is, by the SDK's decoder or Pillow: not by ours."""
    if region["type"] == "brushlabels":
        from label_studio_sdk.converter.brush import decode_rle

        shape = (region["original_height"], region["original_width"], 4)
        return np.asarray(decode_rle(region["value"]["rle"])).reshape(shape)[..., 3] > 127
    data = base64.b64decode(region["value"]["imageDataURL"].split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[..., 3] > 127


def assert_stroke(changed: npt.NDArray[np.bool_], path: Sequence[Point], *, half: float) -> None:
    """The stroke covers where the mouse went and nothing far from it. half: of its width, in pixels of the picture."""
    away = distance_to_path(*changed.shape, path)
    assert changed[away < half - NEAR].all()
    assert not changed[away > half + NEAR].any()


def half_width(seat: Seat, kind: str) -> float:
    """Half of the brush as it is at first, in pixels of the picture: 15 of the screen wide, or with bitmasks 15 around."""
    return 15 / 2 * WIDTH / float(seat.page.locator(PICTURE).first.bounding_box()["width"]) if kind == "brush" else 15.0


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_what_a_person_draws_or_leaves_is_what_is_pulled(desk, tmp_path, kind):
    mask = scene()[1]
    used: Desk = desk(kind, {"selected": mask, "unchanged": mask, "empty": None})

    seat = used.open("selected")
    assert picture(seat.page).shape[1] < WIDTH  # shown smaller than it is: strokes are scaled, too
    seat.select(used.labels.names[CAR])
    half = half_width(seat, kind)
    seat.stroke(PATH, width=WIDTH)
    seat.page.screenshot(path=tmp_path / f"{kind}-selected.png")
    seat.submit()
    (edited,) = [region for region in used.exported("selected") if region["origin"] == "prediction-changed"]
    pixels = region_pixels(edited)
    expected = mask.copy()
    expected[pixels] = CAR
    pulled = used.pulled("selected")
    assert (pulled == expected).all()
    assert pixels[mask == CAR].all()
    away = distance_to_path(HEIGHT, WIDTH, PATH)
    assert (pulled[away < half - NEAR] == CAR).all()
    assert (pulled == mask)[away > half + NEAR].all()

    seat = used.open("unchanged")
    seat.submit()
    assert (used.pulled("unchanged") == mask).all()

    seat = used.open("empty")
    seat.press("9")
    seat.stroke(PATH, width=WIDTH)
    seat.page.screenshot(path=tmp_path / f"{kind}-empty.png")
    seat.submit()
    (drawn,) = used.exported("empty")
    expected = np.where(region_pixels(drawn), WALKER, UNLABELED)
    pulled = used.pulled("empty")
    assert (pulled == expected).all()
    assert_stroke(pulled == WALKER, PATH, half=half)


def test_a_brush_stroke_with_no_region_selected_is_what_is_pulled(desk, tmp_path):
    mask = scene()[1]
    used: Desk = desk("brush", {"new": mask})
    seat = used.open("new")
    seat.press("9")
    seat.stroke(PATH, width=WIDTH)
    seat.page.screenshot(path=tmp_path / "new.png")
    half = half_width(seat, "brush")
    seat.submit()
    (drawn,) = [region for region in used.exported("new") if region["origin"] == "manual"]
    expected = mask.copy()
    expected[region_pixels(drawn)] = WALKER
    pulled = used.pulled("new")
    assert (pulled == expected).all()
    assert_stroke(pulled == WALKER, PATH, half=half)


def test_a_bitmask_stroke_with_no_region_selected_draws_only_where_no_region_is(desk, tmp_path):
    """Why bitmasks are not the default: the tool is off while the mouse is over a region, so a stroke cannot begin there."""
    mask = scene()[1]
    hole = mask.copy()
    hole[180:230, 160:220] = UNLABELED
    used: Desk = desk("bitmask", {"covered": mask, "hole": hole})

    seat = used.open("covered")
    seat.press("9")
    before = picture(seat.page)
    seat.stroke(PATH, width=WIDTH)
    seat.page.mouse.move(5, 5)
    seat.rest()
    assert (picture(seat.page) == before).all()  # nothing was drawn: at least it does not look as if it had been
    assert {region["origin"] for region in seat.submit()} == {"prediction"}
    assert (used.pulled("covered") == mask).all()

    seat = used.open("hole")
    seat.press("9")
    path = [(190.0, 205.0), (300.0, 260.0)]
    seat.stroke(path, width=WIDTH)
    seat.page.screenshot(path=tmp_path / "hole.png")
    seat.submit()
    (drawn,) = [region for region in used.exported("hole") if region["origin"] == "manual"]
    expected = hole.copy()
    expected[region_pixels(drawn)] = WALKER
    pulled = used.pulled("hole")
    assert (pulled == expected).all()
    assert (pulled == WALKER)[distance_to_path(HEIGHT, WIDTH, path) < NEAR].all()
