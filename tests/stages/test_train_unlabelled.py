"""Which images of the pool a training learns from without labels, and what its row tells of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import sqlalchemy as sa

from activeseg.db import images, lease, truth, unlabelled
from activeseg.db.models import Image, ImageStatus, Split, TrainingRun, TrainingStatus
from activeseg.stages.dataset import import_dataset
from activeseg.stages.pool import sync_pool
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace
from tests.factories import write_balls

PSEUDO = {"unlabelled": "pseudo", "unlabelled_after": 2, "pseudo_threshold": 0.5, "ema_decay": 0.8, "save_every": 2}
GROUPS = {"group_pattern": r"ball_\d\d(\d\d)\.png"}


def ids(workspace: Workspace, *conditions: sa.ColumnElement[bool]) -> dict[str, int]:
    """File name -> id."""
    with workspace.database.read() as session:
        rows = session.execute(sa.select(Image.id, Image.uri).where(*conditions))
        return {uri.rsplit("/", 1)[1]: image_id for image_id, uri in rows}


def drawn(workspace: Workspace, count: int = 1000, seed: int = 0) -> list[int]:
    with workspace.database.read() as session:
        return unlabelled.draw(session, count, seed=seed)


def train(workspace: Workspace, **options):
    with lease.holding(workspace.database):
        return train_challenger(workspace, reason="test", **options).details


def last_run(workspace: Workspace) -> TrainingRun:
    with workspace.database.read() as session:
        return session.scalars(sa.select(TrainingRun).order_by(TrainingRun.id.desc())).first()


def test_only_images_that_can_never_validate_are_drawn(make_workspace, tmp_path: Path) -> None:
    """Not the labelled ones, whatever their split; not the group of a validation or test image; nothing set aside."""
    workspace = make_workspace(pool=12, pool_section=GROUPS)
    sync_pool(workspace)
    pool = ids(workspace)
    waiting, validates, tests, trains, broken, gone = (pool[f"ball_{number:04d}.png"] for number in range(6))
    with workspace.database.write() as session:
        for image_id, split in ((validates, Split.VAL), (tests, Split.TEST), (trains, Split.TRAIN)):
            images.set_split(session, [image_id], split)
        same_clip = sa.update(Image).where(Image.id.in_([pool["ball_0006.png"], pool["ball_0007.png"], pool["ball_0008.png"]]))
        session.execute(same_clip.values(group_name="01"))
        of_test, of_train = pool["ball_0008.png"], pool["ball_0009.png"]
        session.execute(sa.update(Image).where(Image.id == of_test).values(group_name="02"))
        session.execute(sa.update(Image).where(Image.id == of_train).values(group_name="03"))
        session.execute(sa.update(Image).where(Image.id == pool["ball_0010.png"]).values(group_name=None))
        images.quarantine(session, {broken: "unreadable"})
        images.retire(session, [gone], ImageStatus.MISSING)
    annotate_in_pool(workspace, tmp_path, waiting)
    expected = {of_train, pool["ball_0010.png"], pool["ball_0011.png"]}
    assert set(drawn(workspace)) == expected


def annotate_in_pool(workspace: Workspace, folder: Path, image_id: int) -> None:
    """A mask that counts, on an image that has no split yet."""
    mask = (folder / "truth/ball_0000.png").read_bytes()
    stored = workspace.artifacts.put(mask, "mask", ".png")
    with workspace.database.write() as session:
        row = truth.from_import(
            image_id=image_id,
            label_set_id=images.label_set_row(session, workspace.label_set).id,
            location=stored.location,
            sha256=stored.sha256,
            import_sha256=stored.sha256,
            query_id=None,
            annotator=None,
        )
        truth.record(session, row)


def test_a_draw_follows_from_seed_and_content_alone(make_sqlite_workspace) -> None:
    """Another numbering draws the same, and an image that leaves the pool moves no other's place."""
    workspace = make_sqlite_workspace(pool=12)
    sync_pool(workspace)
    with workspace.database.read() as session:
        contents = {row.id: row.sha256 for row in session.execute(sa.select(Image.id, Image.sha256))}
    ordered = {
        seed: sorted(contents, key=lambda one: hashlib.blake2b(f"{seed} {contents[one]}".encode(), digest_size=8).digest())
        for seed in (0, 1)
    }
    for seed, order in ordered.items():
        assert drawn(workspace, 5, seed) == order[:5]
        assert drawn(workspace, 50, seed) == order
    assert ordered[0] != ordered[1]
    with workspace.database.write() as session:
        images.set_split(session, ordered[0][1:2], Split.TRAIN)
    assert drawn(workspace, 4) == [ordered[0][0], *ordered[0][2:5]]


@pytest.fixture
def prepared(make_sqlite_workspace, import_balls):
    """Six labelled images, two for validation, eight in the pool."""

    def make(**training: object) -> Workspace:
        workspace = make_sqlite_workspace(training=PSEUDO | training)
        sync_pool(workspace)
        import_balls(workspace, range(100, 106), Split.TRAIN)
        import_balls(workspace, range(200, 202), Split.VAL)
        return workspace

    return make


def test_the_row_tells_which_images_were_used_and_what_came_of_them(prepared) -> None:
    workspace = prepared()
    details = train(workspace)
    run = last_run(workspace)
    assert details["unlabelled"] == 8
    assert sorted(run.configuration["unlabelled"]) == sorted(ids(workspace, Image.split == Split.POOL).values())
    ending = run.history[-1]
    assert (ending["unlabelled"], ending["left_out"]) == (8, {})
    assert list(ending["thresholds"]) == ["sky", "ground", "ball"]
    assert 0 <= ending["labelled_share"] <= 1


def test_without_the_option_nothing_is_drawn_nor_told(prepared) -> None:
    workspace = prepared(unlabelled="none")
    details = train(workspace)
    run = last_run(workspace)
    assert "unlabelled" not in details
    assert "unlabelled" not in run.configuration
    assert "unlabelled" not in run.history[-1]


def test_an_interrupted_training_goes_on_with_the_images_it_began_with(prepared, tmp_path: Path) -> None:
    workspace = prepared()
    write_balls(tmp_path / "pool", range(300, 304))

    def stop(done: int, planned: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), lease.holding(workspace.database):
        train_challenger(workspace, reason="test", on_progress=stop)
    sync_pool(workspace)
    assert len(drawn(workspace)) == 12
    details = train(workspace)
    assert (details["resumed_at"], details["unlabelled"]) == (4, 8)


def test_a_pool_image_that_cannot_be_read_is_left_out_and_told(prepared, tmp_path: Path) -> None:
    workspace = prepared()
    (tmp_path / "pool/ball_0003.png").unlink()
    details = train(workspace)
    run = last_run(workspace)
    [image_id] = run.history[-1]["left_out"]
    assert (details["unlabelled"], details["left out"]) == (7, 1)
    assert int(image_id) == ids(workspace)["ball_0003.png"]
    assert run.status == TrainingStatus.DONE


def test_an_empty_pool_trains_on_labels_alone(make_sqlite_workspace, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=6, training=PSEUDO)
    assert import_dataset(workspace, str(tmp_path / "pool"), tmp_path / "truth", Split.TRAIN).failed == 0
    assert train(workspace)["steps"] == 6
    assert last_run(workspace).configuration["unlabelled"] == []
