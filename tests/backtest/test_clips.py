"""A replay knows the clips and sites that the loop would know."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from activeseg.backtest.dataset import prepare
from activeseg.backtest.history import export_history
from activeseg.backtest.protocol import Protocol
from activeseg.backtest.run import Outcome
from activeseg.db.models import Image, Split
from activeseg.stages.dataset import import_dataset
from activeseg.stages.pool import sync_pool
from activeseg.workspace import Workspace
from tests.backtest.conftest import settings

BY_FOLDER = {"group_pattern": "([^/]+)/[^/]+$"}
TENS = {"group_pattern": r"ball_\d\d(\d)"}  # of the balls measured on, too: ball_0100 is of '0'


def test_folders_above_the_images_are_no_clip(labelled: Path, tmp_path: Path) -> None:
    assert prepare(labelled, tmp_path / "flat", settings(pool=BY_FOLDER)).groups == {}
    shutil.copytree(labelled, tmp_path / "nested")
    clip = tmp_path / "nested/train/images/monday"
    clip.mkdir()
    (tmp_path / "nested/train/images/ball_0003.png").rename(clip / "ball_0003.png")
    assert prepare(tmp_path / "nested", tmp_path / "data", settings(pool=BY_FOLDER)).groups == {
        "monday/ball_0003.png": "monday"
    }


def test_somebody_else_s_manifest_is_none_of_an_export(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled, tmp_path / "theirs")
    for content in ('{"images": 14}', "not JSON"):
        (tmp_path / "theirs/manifest.json").write_text(content, encoding="utf-8")
        groups = prepare(tmp_path / "theirs", tmp_path / "data", settings(pool=TENS)).groups
        assert groups == {f"ball_{number:04d}.png": str(number // 10) for number in range(14)}


def test_the_clips_of_own_annotations_are_those_of_the_workspace(
    make_sqlite_workspace: Callable[..., Workspace], tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(pool=12, pool_section=TENS)
    sync_pool(workspace)
    import_dataset(workspace, str(tmp_path / "pool"), tmp_path / "truth", Split.TRAIN, annotator="test")
    with workspace.database.write() as session:
        session.execute(sa.update(Image).where(Image.uri.like("%ball_0002%")).values(group_name="renamed by hand"))
    hold_out = export_history(workspace, tmp_path / "history")
    assert hold_out is not None
    data = prepare(tmp_path / "history", tmp_path / "data", settings(pool=BY_FOLDER), hold_out=hold_out)
    known = {name: "renamed by hand" if "ball_0002" in name else Path(name).stem[-2] for name in data.pool}
    assert data.groups == known
    assert data.held


def test_images_to_choose_from_have_their_clips_and_those_measured_on_none(
    replay: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = replay(tmp_path / "out", Protocol(("random",), (4, 5), (0,), 0), pool=TENS)
    assert not outcome.errors
    found: dict[str, str | None] = {}
    for file in (tmp_path / "out/work").rglob("replay.db"):
        with closing(sqlite3.connect(file)) as connection:
            found |= {Path(uri).stem: group for uri, group in connection.execute("SELECT uri, group_name FROM images")}
    assert found == {f"ball_{number:04d}": str(number // 10) for number in range(14)} | {
        f"ball_{number:04d}": None for number in range(100, 104)
    }


def test_limits_by_clip_bind_a_replay(replay: Callable[..., Outcome], tmp_path: Path) -> None:
    protocol = Protocol(("entropy_sum",), (4, 6), (0,), 0)
    outcome = replay(tmp_path / "out", protocol, pool=TENS, selection={"max_per_group": 1})
    [chosen] = [unit.chosen for unit in outcome.units if unit.round == 0 and unit.strategy == "entropy_sum"]
    assert sorted(Path(item.name).stem[7] for item in chosen) == ["0", "1"]


def test_unlabelled_images_teach_in_a_replay_though_their_clip_is_measured_on(
    replay: Callable[..., Outcome], tmp_path: Path
) -> None:
    training = {"unlabelled": "pseudo", "ema_decay": 0.8, "unlabelled_after": 1}
    outcome = replay(tmp_path / "out", Protocol(("random",), (4, 5), (0,), 0), pool=TENS, training=training)
    assert [unit.details["unlabelled"] for unit in outcome.units] == [10, 9]
