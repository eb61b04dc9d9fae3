"""Through the real push, a real Label Studio and the real pull: what nobody changed comes back bit for bit."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from label_studio_sdk.converter import brush as sdk
from PIL import Image as Pillow

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.db import labeling, truth
from activeseg.db.models import Annotation, AnnotationStatus, Image, Prediction, Task
from activeseg.demo.annotator import Browser
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.labelstudio.server import RunningServer
from activeseg.loop import Listener, finish_round, rounds_to_push
from activeseg.stages.pool import sync_pool
from activeseg.stages.pull import pull_annotations
from activeseg.workspace import Workspace

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

NAMES = (
    "sky & <sun>",
    'a "quoted"',
    "Fußweg 歩道",
    "дорога",
    "עץ",
    "car 🚗",
    "a,b;c",
    "O'Neill",
    "back\\slash",
    "100 %",
    "Á / é",
    "void",
)
LONGEST_SIDE = 500
LARGE, SHRUNK = (350, 1010), (173, 500)  # 350 * 500 / 1010 = 173.3
UPRIGHT, TURNED = (40, 30), 6  # height and width as people see it; EXIF's number for a quarter turn clockwise


def write_pool(folder: Path) -> dict[str, tuple[int, int]]:
    """Pictures of every awkward size; (height, width) by file name, as a person sees them."""
    sizes = {"dot.png": (1, 1), "odd.png": (361, 479), "empty.png": (20, 30), "full.png": (21, 31), "large.png": LARGE}
    folder.mkdir()
    for seed, (name, size) in enumerate(sizes.items()):
        Pillow.fromarray(picture(size, seed)).save(folder / name)
    exif = Pillow.Exif()
    exif[0x0112] = TURNED
    Pillow.fromarray(picture(UPRIGHT[::-1], 9)).save(folder / "turned.jpg", exif=exif)
    return sizes | {"turned.jpg": UPRIGHT}


def picture(size: tuple[int, int], seed: int) -> np.ndarray:
    return np.kron(np.random.default_rng(seed).integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8), 3)), np.ones((8, 8, 1)))[
        : size[0], : size[1]
    ].astype(np.uint8)


def prediction_for(name: str, size: tuple[int, int], label_set: LabelSet, seed: int) -> Mask:
    """Ragged patches of all classes and of none; nothing on 'empty', one class everywhere on 'full'."""
    random, classes = np.random.default_rng(seed), len(label_set.names)
    if label_set.overlap:
        if name in ("empty.png", "full.png"):
            return np.stack([np.full(size, name == "full.png" and index == 2) for index in range(classes)])
        return np.stack([patches(size, random, 2).astype(bool) for _ in range(classes)])
    if name in ("empty.png", "full.png"):
        return np.full(size, UNLABELED if name == "empty.png" else classes - 1, np.uint8)
    mask = patches(size, random, classes + 1)
    mask[mask == classes] = UNLABELED
    return mask


def patches(size: tuple[int, int], random: np.random.Generator, values: int) -> np.ndarray:
    """(H, W) uint8: blocks of 11x13 pixels of random values, one pixel in 500 of another."""
    blocks = np.kron(random.integers(0, values, (-(-size[0] // 11), -(-size[1] // 13))), np.ones((11, 13)))[
        : size[0], : size[1]
    ]
    return np.where(random.random(size) < 0.002, random.integers(0, values, size), blocks).astype(np.uint8)


def store_predictions(workspace: Workspace, sizes: dict[str, tuple[int, int]]) -> dict[int, Mask]:
    """A prediction for every image, as if a network had drawn it; by image id."""
    with workspace.database.read() as session:
        images = {Path(row.uri).name: row for row in session.scalars(sa.select(Image))}
    assert {name: (row.height, row.width) for name, row in images.items()} == sizes
    predicted = {}
    for seed, (name, size) in enumerate(sizes.items()):
        mask = predicted[images[name].id] = prediction_for(name, size, workspace.label_set, seed)
        stored = workspace.store_mask(mask)
        row = Prediction(
            image_id=images[name].id, source="graphcut:test", mask_location=stored.location, mask_sha256=stored.sha256
        )
        with workspace.database.write() as session:
            labeling.store_prediction(session, row)
    return predicted


def submit_untouched(person: Browser, project: int, number: int) -> list[dict[str, Any]]:
    """What the page sends where a person opens a task and submits; the regions as the server took them."""
    task = person.call("GET", f"/api/tasks/{number}/", project=project)
    (prediction,) = task["predictions"]
    result = [region | {"origin": "prediction"} for region in prediction["result"]]
    body = {"result": result, "lead_time": 12.5, "parent_prediction": prediction["id"], "was_cancelled": False}
    made: list[dict[str, Any]] = person.call("POST", f"/api/tasks/{number}/annotations/", body, project=project)["result"]
    return made


def seen_by_others(result: list[dict[str, Any]], label_set: LabelSet, size: tuple[int, int]) -> Mask:
    """The mask of regions, read by the SDK and by Pillow instead of our own code."""
    areas = {}
    for region in result:
        value = region["value"]
        if region["type"] == "brushlabels":
            alpha = sdk.decode_rle(value["rle"]).reshape(*size, 4)[..., 3]
        else:
            data = base64.b64decode(value["imageDataURL"].partition(",")[2])
            alpha = np.asarray(Pillow.open(io.BytesIO(data)).convert("RGBA"))[..., 3]
        areas[label_set.names.index(value[region["type"]][0])] = alpha > 127
    if label_set.overlap:
        return np.stack([areas.get(index, np.zeros(size, bool)) for index in range(len(label_set.names))])
    mask = np.full(size, UNLABELED, np.uint8)
    for index, area in areas.items():
        mask[area] = index
    return mask


@pytest.fixture
def make_awkward_workspace(
    make_sqlite_workspace: Callable[..., Workspace], with_label_studio: dict[str, Any], tmp_path: Path
) -> Callable[..., Workspace]:
    """A workspace on the awkward pictures, with so many classes of awkward names, that sends masks of this kind."""

    def make(kind: str, classes: int, overlap: bool) -> Workspace:
        names = [*NAMES[:-1], *(f"{index} класс" for index in range(len(NAMES), classes))]
        (tmp_path / "many.txt").write_text("\n".join([*names, "void #000000 ignore"]), encoding="utf-8")
        workspace = make_sqlite_workspace(
            pool=0,
            pool_section={"images": "awkward"},
            labels={"file": "many.txt", "overlap": overlap},
            selection={"bootstrap_size": 10},
            labelstudio=with_label_studio | {"mask_kind": kind, "longest_side": LONGEST_SIDE},
        )
        assert len(workspace.label_set.names) == classes
        return workspace

    return make


def push(workspace: Workspace, client: LabelStudioClient) -> dict[int, Task]:
    """Send everything; the tasks by image id, of those that show a prediction."""
    for row in rounds_to_push(workspace, None):
        list(finish_round(workspace, row, client, Listener()))
    with workspace.database.read() as session:
        statement = sa.select(Prediction.image_id, Task).join(Task, Task.prediction_id == Prediction.id)
        return dict(session.execute(statement).all())


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
@pytest.mark.parametrize(("classes", "overlap"), [(12, False), (60, False), (12, True)], ids=["12", "60", "12 overlapping"])
def test_untouched_predictions_come_back_bit_for_bit(
    make_awkward_workspace: Callable[..., Workspace],
    labelstudio_server: RunningServer,
    tmp_path: Path,
    kind: str,
    classes: int,
    overlap: bool,
) -> None:
    sizes = write_pool(tmp_path / "awkward")
    workspace = make_awkward_workspace(kind, classes, overlap)
    sync_pool(workspace)
    predicted = store_predictions(workspace, sizes)
    person = Browser(labelstudio_server.url, labelstudio_server.add_user("round.trips@example.com")[1])
    with open_client(workspace.settings) as client:
        tasks = push(workspace, client)
        assert set(tasks) == set(predicted), "every image was sent with its prediction"
        project = open_project(workspace, client).external_project_id
        for image_id, task in tasks.items():
            result, full = submit_untouched(person, project, task.external_task_id or 0), predicted[image_id]
            shown = SHRUNK if full.shape[-2:] == LARGE else full.shape[-2:]
            assert {(r["type"], r["original_height"], r["original_width"]) for r in result} <= {(f"{kind}labels", *shown)}
            if shown == full.shape[-2:]:
                assert np.array_equal(seen_by_others(result, workspace.label_set, shown), full)
        # Where classes exclude each other a mask without any labels nothing: it is set aside, for the annotator to mend.
        blank = {image_id for image_id, mask in predicted.items() if not overlap and np.all(mask == UNLABELED)}
        details = pull_annotations(workspace, client).details
        assert [why.partition(":")[0] for why in details.pop("problems", {}).values()] == ["no pixel has a class"] * len(blank)
        assert details == +Counter(valid=len(sizes) - len(blank), quarantined=len(blank))
        assert pull_annotations(workspace, client, full=True).details == {}

    with workspace.database.read() as session:
        rows = session.scalars(sa.select(Annotation).where(Annotation.status == AnnotationStatus.VALID)).all()
        counting = truth.current(session)
    pulled = {item.image.image_id: workspace.read_mask(item.mask_location, item.mask_sha256) for item in counting}
    assert set(pulled) == set(predicted) - blank
    for image_id, mask in pulled.items():
        assert mask.dtype == predicted[image_id].dtype
        assert np.array_equal(mask, predicted[image_id])
    assert [row.changed_share for row in rows] == [0.0] * len(pulled)
    # The share is of the picture that was shown; of a shrunk one it is that of the prediction nearly.
    stacked = {number: np.mean(full.sum(axis=0) > 1) if overlap else 0.0 for number, full in pulled.items()}
    assert {row.image_id: row.overlap_share for row in rows} == pytest.approx(stacked, abs=0.02)
