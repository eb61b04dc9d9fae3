"""Parts of images through the real push, a real Label Studio and the real pull, pixel by pixel."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from PIL import Image as Pillow

from activeseg.core.labels import UNLABELED, Mask
from activeseg.db import truth
from activeseg.db.models import Annotation, Image, Query, Task
from activeseg.demo.annotator import Browser
from activeseg.labelstudio.regions import mask_to_result
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.labelstudio.server import RunningServer
from activeseg.stages.pull import pull_annotations
from activeseg.stages.push import push_round
from activeseg.workspace import Workspace
from tests.loop.test_round_trips import seen_by_others, submit_untouched
from tests.stages.pushing import chosen, drawn_mask, save_picture

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

# Four divides no side but one; the largest is shown at 64x47.
SIZES = {"large": (133, 181), "odd": (47, 63), "small": (30, 40)}
SHOWN = {"large": (47, 64), "odd": (47, 63), "small": (30, 40)}
CELLS = {"large": [1, 2, 11], "odd": [0, 7, 13], "small": [15]}


def inside(cells: list[int], size: tuple[int, int]) -> np.ndarray:
    """Where a picture lies in these cells."""
    rows, columns = (torch.arange(side).tensor_split(4) for side in size)
    found = np.zeros(size, bool)
    for cell in cells:
        found[np.ix_(rows[cell // 4].numpy(), columns[cell % 4].numpy())] = True
    return found


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size: each pixel as the one its centre lies in."""
    rows, columns = (
        np.floor((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_a_part_is_shown_drawn_and_stored_and_nothing_of_the_rest(
    make_sqlite_workspace: Callable[..., Workspace],
    with_label_studio: dict[str, Any],
    labelstudio_server: RunningServer,
    tmp_path: Path,
    kind: str,
) -> None:
    options = with_label_studio | {"mask_kind": kind, "longest_side": 64, "uncovered": "sky"}
    workspace = make_sqlite_workspace(pool=0, labelstudio=options)
    for name, (height, width) in SIZES.items():
        save_picture(tmp_path / "pool" / f"{name}.png", width, height)
    chosen(workspace)
    with workspace.database.write() as session:
        names = {row.id: Path(row.uri).stem for row in session.scalars(sa.select(Image))}
        for query in session.scalars(sa.select(Query)):
            query.cells = CELLS[names[query.image_id]]
    person = Browser(labelstudio_server.url, labelstudio_server.add_user("in.part@example.com")[1])
    expected: dict[str, Mask] = {}
    changed: dict[str, float] = {}
    with open_client(workspace.settings) as client:
        push_round(workspace, 1, client)
        project = open_project(workspace, client).external_project_id
        with workspace.database.read() as session:
            rows = session.execute(sa.select(Task.external_task_id, Query.image_id).join(Query)).all()
        for number, image_id in rows:
            name = names[image_id]
            asked, predicted = inside(CELLS[name], SHOWN[name]), drawn_mask(*SIZES[name])
            seen = nearest(predicted, SHOWN[name])
            task = person.call("GET", f"/api/tasks/{number}/", project=project)
            shown = seen_by_others(task["predictions"][0]["result"], workspace.label_set, SHOWN[name])
            assert np.array_equal(shown, np.where(asked, seen, UNLABELED))
            assert task["data"]["doubt"].startswith("Label only these cells of 4 rows and 4 columns: row ")
            beside = np.asarray(Pillow.open(io.BytesIO(client.http.download(task["data"]["entropy"][0], max_bytes=10**6))))
            assert beside.shape[:2] == SHOWN[name]
            assert beside[~asked].max() <= 180 // 3 < beside[asked].max() == 255

            whole = nearest(asked, SIZES[name])
            if name == "small":  # sent back as it was shown
                submit_untouched(person, project, number)
                drawn = seen
            else:  # a class painted over everything, and a hole in it under no region
                drawn = np.full(SHOWN[name], 2, np.uint8)
                drawn[5:9] = UNLABELED
                result = mask_to_result(drawn, workspace.label_set, kind=kind)
                body = {"result": [region | {"origin": "manual"} for region in result], "lead_time": 9.0}
                person.call("POST", f"/api/tasks/{number}/annotations/", body, project=project)
            filled = np.where(drawn == UNLABELED, 0, drawn)
            kept = nearest(filled == seen, SIZES[name])
            expected[name] = np.where(whole, np.where(kept, predicted, nearest(filled, SIZES[name])), UNLABELED)
            changed[name] = float(np.mean(filled[asked] != seen[asked]))
        assert pull_annotations(workspace, client).details == {"valid": len(SIZES)}
        assert pull_annotations(workspace, client, full=True).details == {}

    with workspace.database.read() as session:
        counting = {names[item.image.image_id]: item for item in truth.current(session)}
        shares = {names[row.image_id]: row.changed_share for row in session.scalars(sa.select(Annotation))}
    for name, item in counting.items():
        mask = workspace.read_mask(item.mask_location, item.mask_sha256)
        assert np.array_equal(mask, expected[name]), name
    assert shares == changed
    assert counting.keys() == SIZES.keys()
