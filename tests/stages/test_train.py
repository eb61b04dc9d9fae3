"""What a training leaves behind: a checkpoint, a row that says how it came to be, and no loose files."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from activeseg.config import load_settings, toml_value
from activeseg.db import lease
from activeseg.db.models import Split, TrainingRun, TrainingStatus
from activeseg.errors import ConfigError
from activeseg.stages.dataset import import_dataset
from activeseg.stages.promote import promote_challengers
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace, open_workspace
from tests.canonical import canonical_dump, differences
from tests.factories import CLASSES, MODEL, TRAINING, write_balls
from tests.stages.training_worker import train

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "activeseg.stages.train", "tests.stages.training_worker"])
TABLES = {"pool": {"images": "pool"}, "labels": {"file": "classes.txt"}, "model": MODEL}


@pytest.fixture
def site(tmp_path: Path, migrated_sqlite: Path) -> Path:
    """A configured folder with six training and two validation images; returns its activeseg.toml."""
    folder = tmp_path / "site"
    (folder / "pool").mkdir(parents=True)
    shutil.copyfile(migrated_sqlite, folder / "activeseg.db")
    (folder / "classes.txt").write_text(CLASSES.to_text(), encoding="utf-8")
    tables = TABLES | {"training": TRAINING | {"steps": 9, "save_every": 2, "validate_every": 3, "ema_decay": 0.8}}
    lines = [f"[{name}]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in table.items()) for name, table in tables.items()]
    config = folder / "activeseg.toml"
    config.write_text("\n".join(lines), encoding="utf-8")
    with open_workspace(load_settings(config)) as workspace, lease.holding(workspace.database):
        for split, seeds in ((Split.TRAIN, range(6)), (Split.VAL, range(50, 52))):
            images, masks = folder / split.value, folder / f"{split.value}-masks"
            write_balls(images, seeds, masks=masks)
            assert import_dataset(workspace, str(images), masks, split).failed == 0
    return config


def run_training(config: Path, killed_at: int | None = None) -> int:
    process = CONTEXT.Process(target=train, args=(config, killed_at))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the worker hangs"
    return process.exitcode


def dump(config: Path) -> dict[str, list[str]]:
    with open_workspace(load_settings(config)) as workspace:
        return canonical_dump(workspace.database)


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "artifacts/training").glob("*"))


@pytest.mark.slow
def test_a_training_killed_by_the_system_goes_on_and_ends_the_same(site: Path, tmp_path: Path) -> None:
    """The dump holds the sha256 of the weights, the losses, the looks and the step that was kept."""
    folder = site.parent
    shutil.copytree(folder, tmp_path / "saved")
    assert run_training(site) == 0
    expected = dump(site)
    assert states(folder) == []
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "saved", folder)
    for killed_at in (1, 5, 8):
        assert run_training(site, killed_at) == -signal.SIGKILL
    assert states(folder) == ["1.safetensors"]
    assert run_training(site) == 0
    assert differences(expected, dump(site)) == {}
    assert len(expected["checkpoints"]) == len(expected["training_runs"]) == 1
    assert states(folder) == []


def train_here(workspace: Workspace) -> dict[str, Any]:
    with lease.holding(workspace.database):
        return train_challenger(workspace, reason="test").details


def runs(workspace: Workspace) -> list[TrainingRun]:
    with workspace.database.read() as session:
        return list(session.scalars(sa.select(TrainingRun).order_by(TrainingRun.id)))


def stop_at(step: int):
    def stop(done: int, planned: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return stop


def test_the_row_tells_where_a_training_started_and_how_it_ended(make_sqlite_workspace, import_balls) -> None:
    training = {"validate_every": 2, "start": "champion"}
    workspace = make_sqlite_workspace(training=training)
    import_balls(workspace, range(100, 106), Split.TRAIN)
    import_balls(workspace, range(200, 202), Split.VAL)
    details = train_here(workspace)
    with lease.holding(workspace.database):
        promote_challengers(workspace)
    train_here(workspace)
    cold, warm = runs(workspace)
    assert cold.configuration["start"] == {"weights": "random", "seed": 0}
    assert warm.configuration["start"] == {"weights": "champion", "checkpoint": details["model_version"]}
    assert cold.configuration["training"]["recipe"] == "modern"
    assert cold.configuration["training"]["ema_decay"] == 0.99
    assert len(cold.configuration["validation"]) == 2
    assert [row["step"] for row in cold.history if "loss" in row] == [1, 2, 3, 4, 5, 6]
    looks = [row for row in cold.history if "mean_iou" in row]
    assert [look["step"] for look in looks] == [2, 4, 6]
    best = max(looks, key=lambda look: look["mean_iou"])
    ending = cold.history[-1]
    assert (ending["step"], ending["stopped"], ending["kept_step"]) == (6, "all steps done", best["step"])
    assert (ending["device"], details["kept_step"]) == ("cpu", best["step"])
    assert details["mean_iou"] == pytest.approx(best["mean_iou"], abs=1e-4)


def test_the_kept_weights_are_those_the_best_look_saw(make_sqlite_workspace, import_balls) -> None:
    from activeseg.db import checkpoints
    from activeseg.evaluations import evaluate_checkpoint

    workspace = make_sqlite_workspace(training={"validate_every": 1, "learning_rate": 0.2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    import_balls(workspace, range(200, 202), Split.VAL)
    details = train_here(workspace)
    with workspace.database.read() as session:
        checkpoint = checkpoints.by_version(session, details["model_version"])
    with lease.holding(workspace.database):
        measured = evaluate_checkpoint(workspace, checkpoint).metrics.mean_iou
    assert round(measured, 4) == details["mean_iou"]


def test_an_interrupted_training_goes_on_and_says_so(make_sqlite_workspace, import_balls, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    with pytest.raises(KeyboardInterrupt), lease.holding(workspace.database):
        train_challenger(workspace, reason="test", on_progress=stop_at(5))
    assert states(tmp_path) == ["1.safetensors"]
    assert train_here(workspace)["resumed_at"] == 4
    assert states(tmp_path) == []
    assert [run.status for run in runs(workspace)] == [TrainingStatus.DONE]


def test_changed_settings_start_anew_and_a_failure_leaves_nothing(make_sqlite_workspace, import_balls, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    with pytest.raises(KeyboardInterrupt), lease.holding(workspace.database):
        train_challenger(workspace, reason="test", on_progress=stop_at(3))
    diverging = make_sqlite_workspace(training={"save_every": 2, "learning_rate": 1e20, "clip_norm": 0, "steps": 40})
    with pytest.raises(ConfigError, match="diverged"):
        train_here(diverging)
    assert states(tmp_path) == []
    assert [run.status for run in runs(workspace)] == [TrainingStatus.FAILED] * 2


def test_a_damaged_state_is_told_and_harmless(make_sqlite_workspace, import_balls, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    with pytest.raises(KeyboardInterrupt), lease.holding(workspace.database):
        train_challenger(workspace, reason="test", on_progress=stop_at(3))
    (tmp_path / "artifacts/training/1.safetensors").write_bytes(b"\0" * 100)
    details = train_here(workspace)
    assert "damaged" in details["problem"]
    assert "resumed_at" not in details
    assert details["steps"] == 6
