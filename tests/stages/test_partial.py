"""Images that are asked about in part: what is asked, what is shown, and what of an answer counts."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.core.labels import UNLABELED, Mask
from activeseg.db import checkpoints, lease, scores
from activeseg.db.models import AnnotationStatus, Arm, Checkpoint, Prediction, Query, Score, Task
from activeseg.labelstudio.regions import result_to_mask
from activeseg.stages.pool import sync_pool
from activeseg.stages.promote import rollback
from activeseg.stages.push import push_round
from activeseg.stages.refresh import refresh_open_tasks
from activeseg.stages.score import score_pool
from activeseg.stages.split import assign_splits
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace
from tests.memory_label_studio import push, section
from tests.stages.pulling import HEIGHT, WIDTH, Site, plain, reasons
from tests.stages.pushing import Shelf, chosen, save_picture

Make = Callable[..., Workspace]
CELLS = [0, 5, 6, 15]


def inside(cells: list[int], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """The cells of a picture whose sides four divides, pixel by pixel."""
    pixels = [[4 * row // height * 4 + 4 * column // width in cells for column in range(width)] for row in range(height)]
    return np.array(pixels)


def only(cells: list[int], mask: Mask) -> Mask:
    return np.where(inside(cells, *mask.shape), mask, UNLABELED).astype(np.uint8)


def anything(seed: int, values: int = 4, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Mask:
    return np.random.default_rng(seed).integers(0, values, size).astype(np.uint8)


def ask_in_part(workspace: Workspace, cells: list[int] | None = None) -> None:
    with workspace.database.write() as session:
        session.execute(sa.update(Query).values(cells=CELLS if cells is None else cells))


@pytest.mark.slow
def test_both_arms_are_asked_about_their_most_doubtful_cells_and_a_new_champion_shows_the_same_part(
    make_sqlite_workspace: Make, train_champion: Callable[[Workspace], None]
) -> None:
    sections = {
        "selection": {"query_size": 6, "control_share": 0.34, "refill_below": 1, "partial_cells": 3},
        "labelstudio": section("partial") | {"mask_kind": "bitmask"},
    }
    workspace, server = make_sqlite_workspace(pool=8, **sections), Shelf()
    train_champion(workspace)
    with lease.holding(workspace.database):
        sync_pool(workspace)
        score_pool(workspace)
    push(workspace, server)
    with workspace.database.read() as session:
        queries = {query.image_id: query for query in session.scalars(sa.select(Query))}
        statement = sa.select(Score.image_id, Score.grid)
        grids = {image_id: np.array(grid) for image_id, grid in session.execute(statement)}
    assert {query.arm for query in queries.values()} == {Arm.CHOSEN, Arm.CONTROL}
    for image_id, query in queries.items():
        assert query.cells == sorted(np.argsort(-grids[image_id], kind="stable")[:3].tolist())
    _check_tasks(workspace, server)

    train_challenger_of(workspace, make_sqlite_workspace, sections)
    assert refresh_open_tasks(workspace, server).written == 6  # type: ignore[arg-type]
    with workspace.database.read() as session:
        assert {query.image_id: query.cells for query in session.scalars(sa.select(Query))} == {
            image_id: query.cells for image_id, query in queries.items()
        }
    _check_tasks(workspace, server)


def train_challenger_of(workspace: Workspace, make: Make, sections: dict[str, dict[str, object]]) -> None:
    """Another checkpoint becomes champion."""
    other = make(pool=8, training={"seed": 7, "steps": 30}, **sections)
    with lease.holding(other.database):
        train_challenger(other, reason="test")
    with workspace.database.read() as session:
        version = session.scalars(sa.select(Checkpoint.model_version).order_by(Checkpoint.id.desc())).first() or ""
    rollback(workspace, version, decided_by="test", reason="test")


def _check_tasks(workspace: Workspace, server: Shelf) -> None:
    """Every task shows the champion's mask inside its cells only, the map frames them, the text begins with them."""
    with workspace.database.read() as session:
        champion = checkpoints.require_champion(session).id
        statement = sa.select(Task.external_task_id, Query, Prediction).select_from(Task).join(Query).join(Prediction)
        rows = session.execute(statement).all()
    for number, query, prediction in rows:
        task = server.tasks[number]
        assert prediction.checkpoint_id == champion
        mask = workspace.read_mask(prediction.mask_location)
        shown = result_to_mask(task["predictions"][0]["result"], workspace.label_set, width=WIDTH, height=HEIGHT).mask
        assert np.array_equal(shown, only(query.cells, mask))
        assert task["data"]["doubt"].startswith("Label only these cells of 4 rows and 4 columns: row ")
        assert "(framed in the picture beside). The rest does not count. Least sure about: " in task["data"]["doubt"]
        assert not any(word in task["data"]["doubt"] for word in ("control", "chosen", "rank", "entropy"))
        beside = np.asarray(Pillow.open(io.BytesIO(server.files[task["data"]["entropy"][0]])))
        drawn = np.asarray(Pillow.open(io.BytesIO(workspace.artifacts.read(prediction.entropy_location))))
        outside = ~inside(query.cells)
        assert np.array_equal(beside[outside], drawn[outside] // 3)
        assert (beside[~outside] == 255).all(axis=1).any()


def test_a_picture_without_a_map_is_framed_itself_unless_no_picture_is_wanted_beside(
    make_sqlite_workspace: Make, tmp_path: Path
) -> None:
    for entropy_map, title in (("beside", "framed"), ("none", "plain")):
        options = section(title) | {"entropy_map": entropy_map, "longest_side": 64}
        workspace, server = make_sqlite_workspace(pool=0, labelstudio=options), Shelf()
        if entropy_map == "beside":
            save_picture(tmp_path / "pool" / "wide.png", 128, 96)
            chosen(workspace, maps=False)
        ask_in_part(workspace)
        with workspace.database.write() as session:
            session.execute(sa.delete(Task))
            session.execute(sa.update(Query).values(status="selected"))
            session.execute(sa.text("UPDATE rounds SET status = 'selected'"))
        push_round(workspace, 1, server)  # type: ignore[arg-type]
        (task,) = server.sent()
        if entropy_map == "none":
            assert task["data"]["entropy"] == [task["data"]["image"]]
            assert "framed" not in task["data"]["doubt"]
        else:
            image, beside = (np.asarray(Pillow.open(io.BytesIO(server.files[url]))) for url in server.files)
            outside = ~inside(CELLS, 48, 64)
            assert np.array_equal(beside[outside], image[outside] // 3)
            assert "framed" in task["data"]["doubt"]


@pytest.mark.parametrize("uncovered", ["ignore", "sky"])
@pytest.mark.parametrize("shown", [None, (24, 32)], ids=["own size", "shrunk"])
@pytest.mark.parametrize("predicted", [True, False])
def test_only_what_is_drawn_inside_counts_and_what_was_changed_is_a_share_of_that(
    make_sqlite_workspace: Make, uncovered: str, shown: tuple[int, int] | None, predicted: bool
) -> None:
    site = Site(make_sqlite_workspace, {"labelstudio": {"uncovered": uncovered}}, images=2)
    ask_in_part(site.workspace)
    size = shown or (HEIGHT, WIDTH)
    prediction = anything(1)
    seen = prediction[HEIGHT // size[0] // 2 :: HEIGHT // size[0], WIDTH // size[1] // 2 :: WIDTH // size[1]]
    for task in site.tasks:
        if predicted:
            site.show(task, prediction, shown)
    untouched, redrawn = site.tasks
    if not predicted and shown:
        with site.workspace.database.write() as session:
            session.execute(sa.update(Task).values(shown_height=size[0], shown_width=size[1]))
    site.submit(untouched, site.result(only(CELLS, seen), "prediction"))
    drawn = np.where(anything(2, 3, size) == 0, seen, anything(3, 4, size))
    drawn[:, ::7] = UNLABELED  # under no region, inside the cells and outside
    site.submit(redrawn, site.result(drawn))
    assert site.pull().details == {"valid": 2}

    one, two = site.rows(AnnotationStatus.VALID)
    fill = UNLABELED if uncovered == "ignore" else 0
    filled = np.where(drawn == UNLABELED, fill, drawn)
    larger = np.kron(filled, np.ones((HEIGHT // size[0], WIDTH // size[1]))).astype(np.uint8)
    same = np.kron(filled == seen, np.ones((HEIGHT // size[0], WIDTH // size[1]))).astype(bool)
    as_seen = np.kron(seen, np.ones((HEIGHT // size[0], WIDTH // size[1]))).astype(np.uint8)
    whole = prediction if predicted else as_seen
    assert np.array_equal(site.mask_of(one), only(CELLS, whole))
    assert np.array_equal(site.mask_of(two), only(CELLS, np.where(same & predicted, prediction, larger)))
    asked = inside(CELLS, *size)
    changes = [0.0, np.mean(filled[asked] != seen[asked])] if predicted else [None, None]
    assert [one.changed_share, two.changed_share] == changes


def test_what_is_drawn_outside_only_is_told_to_the_annotator(make_sqlite_workspace: Make) -> None:
    site = Site(make_sqlite_workspace, {"labelstudio": {"uncovered": "ignore"}}, images=1)
    ask_in_part(site.workspace, [3])
    drawn = np.where(inside([3]), UNLABELED, plain(1)).astype(np.uint8)
    site.submit(site.tasks[0], site.result(drawn))
    assert site.pull().details["quarantined"] == 1
    assert reasons(site.rows()) == ["no pixel has a class: label what is there, or skip the image"]


def test_annotators_who_saw_a_part_do_not_agree_on_the_rest(make_sqlite_workspace: Make) -> None:
    site = Site(make_sqlite_workspace, {"labelstudio": {"consensus": "majority"}}, images=1)
    ask_in_part(site.workspace, [0, 1])
    other = plain(1)
    other[: HEIGHT // 8] = 2
    site.submit(site.tasks[0], site.result(plain(1)), person=1)
    site.submit(site.tasks[0], site.result(other), person=2)
    site.pull()
    drawn = [row for row in site.rows() if row.consensus_of is None]
    assert [row.agreement for row in drawn] == [0.5, 0.5]


@pytest.mark.parametrize("in_part", [True, False])
def test_images_that_were_asked_about_in_part_do_not_validate(make_sqlite_workspace: Make, in_part: bool) -> None:
    selection = {"bootstrap_size": 3, "val_size": 2, "control_share": 0.0}
    site = Site(make_sqlite_workspace, {"training": {"min_train": 1}, "selection": selection}, images=3)
    if in_part:
        ask_in_part(site.workspace)
    for task in site.tasks:
        site.submit(task, site.result(plain(1)))
    site.pull()
    assert assign_splits(site.workspace).details == {"train": 3 if in_part else 1, "val": 0 if in_part else 2, "test": 0}


def test_whole_images_are_asked_about_where_nothing_else_is_set(make_sqlite_workspace: Make) -> None:
    site = Site(make_sqlite_workspace, images=1)
    with site.workspace.database.read() as session:
        assert session.scalars(sa.select(Query.cells)).all() == [None]
        assert scores.grids(session, 1, [1]) == {}
    drawn = anything(4)
    site.submit(site.tasks[0], site.result(drawn))
    site.pull()
    assert np.array_equal(site.mask_of(site.rows()[0]), drawn)
