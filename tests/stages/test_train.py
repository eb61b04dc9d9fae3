"""What a training leaves behind: a checkpoint, a row that says how it came to be, and no loose files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from activeseg.challengers import training_due
from activeseg.config import load_settings, toml_value
from activeseg.db import lease
from activeseg.db.models import Split, TrainingRun, TrainingStatus
from activeseg.errors import (
    ConfigError,
    DeviceMemoryError,
    ImageError,
    LabelSetMismatch,
    NotReadyError,
    SourceGoneError,
)
from activeseg.stages.dataset import import_dataset
from activeseg.stages.pool import sync_pool
from activeseg.stages.promote import promote_challengers
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace, open_workspace
from tests.canonical import canonical_dump, differences
from tests.factories import CLASSES, MODEL, TRAINING, WorkspaceFactory, write_balls
from tests.forked import exit_status
from tests.stages.training_worker import train

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow

TABLES = {"pool": {"images": "pool"}, "labels": {"file": "classes.txt"}, "model": MODEL}


@pytest.fixture
def site(tmp_path: Path, migrated_sqlite: Path) -> Path:
    """A configured folder with six training and two validation images and a pool to learn from; returns its activeseg.toml."""
    folder = tmp_path / "site"
    (folder / "pool").mkdir(parents=True)
    shutil.copyfile(migrated_sqlite, folder / "activeseg.db")
    (folder / "classes.txt").write_text(CLASSES.to_text(), encoding="utf-8")
    steps = {"steps": 9, "save_every": 2, "validate_every": 3, "ema_decay": 0.8}
    pseudo = {"unlabelled": "pseudo", "unlabelled_after": 3, "pseudo_threshold": 0.5}
    tables = TABLES | {"training": TRAINING | steps | pseudo}
    write_balls(folder / "pool", range(300, 304))
    lines = [f"[{name}]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in table.items()) for name, table in tables.items()]
    config = folder / "activeseg.toml"
    config.write_text("\n".join(lines), encoding="utf-8")
    with open_workspace(load_settings(config)) as workspace, lease.holding(workspace.database):
        sync_pool(workspace)
        for split, seeds in ((Split.TRAIN, range(6)), (Split.VAL, range(50, 52))):
            images, masks = folder / split.value, folder / f"{split.value}-masks"
            write_balls(images, seeds, masks=masks)
            assert import_dataset(workspace, str(images), masks, split).failed == 0
    return config


def run_training(config: Path, killed_at: int | None = None) -> int:
    return exit_status(train, config, killed_at)


def dump(config: Path) -> dict[str, list[str]]:
    with open_workspace(load_settings(config)) as workspace:
        return canonical_dump(workspace.database)


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "artifacts/training").glob("*"))


def numbers(names: list[str]) -> list[str]:
    """The runs that states belong to."""
    found = [re.fullmatch(r"(\d+)-[0-9a-f]{8}\.safetensors", name) for name in names]
    return [match[1] for match in found if match]


@pytest.mark.slow
def test_a_training_killed_by_the_system_goes_on_and_ends_the_same(site: Path, tmp_path: Path) -> None:
    """With all that a training may have, unlabelled images too.

    The dump holds the sha256 of the weights, the losses, the looks and the step that was kept.
    """
    folder = site.parent
    shutil.copytree(folder, tmp_path / "saved")
    assert run_training(site) == 0
    expected = dump(site)
    assert states(folder) == []
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "saved", folder)
    for killed_at in (1, 5, 8):
        assert run_training(site, killed_at) == -signal.SIGKILL
    assert numbers(states(folder)) == ["1"]
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


def interrupt(workspace: Workspace, step: int) -> None:
    with pytest.raises(KeyboardInterrupt), lease.holding(workspace.database):
        train_challenger(workspace, reason="test", on_progress=stop_at(step))


def with_classes(workspace: Workspace, folder: Path, text: str) -> Workspace:
    """The same workspace after somebody edited its class list."""
    (folder / "classes.txt").write_text(text, encoding="utf-8")
    return Workspace(workspace.settings, workspace.database)


@pytest.fixture
def make_beside(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Callable[..., Workspace]]:
    """Workspaces with a fresh database of their own and the same artifacts folder; six training images of these seeds."""
    opened: list[WorkspaceFactory] = []

    def make(name: str, seeds: range, **training: Any) -> Workspace:
        shutil.copyfile(migrated_sqlite, tmp_path / f"{name}.db")
        opened.append(WorkspaceFactory(tmp_path, f"sqlite:///{tmp_path / name}.db"))
        workspace = opened[-1](training={"save_every": 2} | training)
        images, masks = tmp_path / name / "images", tmp_path / name / "masks"
        write_balls(images, seeds, masks=masks)
        assert import_dataset(workspace, str(images), masks, Split.TRAIN).failed == 0
        return workspace

    yield make
    for factory in opened:
        factory.close()


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
    interrupt(workspace, 5)
    assert numbers(states(tmp_path)) == ["1"]
    assert train_here(workspace)["resumed_at"] == 4
    assert states(tmp_path) == []
    assert [run.status for run in runs(workspace)] == [TrainingStatus.DONE]


def test_changed_settings_start_anew_and_a_failure_leaves_nothing(make_sqlite_workspace, import_balls, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    interrupt(workspace, 3)
    diverging = make_sqlite_workspace(training={"save_every": 2, "learning_rate": 1e20, "clip_norm": 0, "steps": 40})
    with pytest.raises(ConfigError, match="diverged"):
        train_here(diverging)
    assert states(tmp_path) == []
    assert [run.status for run in runs(workspace)] == [TrainingStatus.FAILED] * 2


def test_a_damaged_state_is_told_and_harmless(make_sqlite_workspace, import_balls, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    interrupt(workspace, 3)
    [state] = states(tmp_path)
    (tmp_path / "artifacts/training" / state).write_bytes(b"\0" * 100)
    details = train_here(workspace)
    assert "damaged" in details["problem"]
    assert "resumed_at" not in details
    assert details["steps"] == 6


def test_a_training_in_a_new_database_takes_nothing_from_one_of_the_same_number(make_beside) -> None:
    interrupt(make_beside("lost", range(6)), 5)
    details = train_here(make_beside("new", range(300, 306)))
    assert details["steps"] == 6
    assert not {"resumed_at", "problem"} & details.keys()


def test_databases_that_share_a_folder_keep_each_others_states(make_beside) -> None:
    one, other = make_beside("one", range(6)), make_beside("other", range(300, 306), steps=4)
    interrupt(one, 5)
    assert "resumed_at" not in train_here(other)
    assert train_here(one)["resumed_at"] == 4


def test_states_nobody_came_back_for_are_removed_after_two_weeks(make_beside, tmp_path: Path) -> None:
    interrupt(make_beside("one", range(6)), 5)
    [forgotten] = states(tmp_path)
    file = tmp_path / "artifacts/training" / forgotten
    other = make_beside("other", range(300, 306))
    for age, left in ((13, [forgotten]), (15, [])):
        long_ago = time.time() - age * 24 * 3600
        os.utime(file, (long_ago, long_ago))
        train_here(other)
        assert states(tmp_path) == left


@pytest.mark.parametrize(
    "section", [{"training": {"retrain_days": 3, "min_train": 5, "save_every": 1}}, {"model": {"device": "auto"}}]
)
def test_settings_without_effect_on_the_weights_let_an_interrupted_training_go_on(
    make_sqlite_workspace, import_balls, section
) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    interrupt(workspace, 5)
    changed = make_sqlite_workspace(**{"training": {"save_every": 2}} | section)
    assert train_here(changed)["resumed_at"] == 4


def test_an_interrupted_training_of_another_version_is_given_up(make_sqlite_workspace, import_balls, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    interrupt(workspace, 5)
    with workspace.database.write() as session:
        session.scalars(sa.select(TrainingRun)).one().code_version = "0.0.1"
    assert "resumed_at" not in train_here(workspace)
    given_up, done = runs(workspace)
    assert given_up.error == "given up: it was interrupted, and the settings or the version changed since"
    assert (given_up.status, done.status) == (TrainingStatus.FAILED, TrainingStatus.DONE)
    assert states(tmp_path) == []


def test_an_interrupted_training_is_not_resumed_for_other_classes(make_sqlite_workspace, import_balls, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    interrupt(workspace, 5)
    renamed = with_classes(workspace, tmp_path, "ground\nsky\nball\nvoid ignore\n")
    with pytest.raises(LabelSetMismatch, match="6 annotations were drawn for the classes sky, ground"):
        train_here(renamed)
    [run] = runs(workspace)
    assert run.error == "given up: it was interrupted, and the classes changed since"
    assert states(tmp_path) == []
    assert training_due(renamed) != "interrupted"


def test_an_interrupted_training_that_nothing_can_replace_is_given_up_once(make_sqlite_workspace, import_balls) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    interrupt(workspace, 3)
    demanding = make_sqlite_workspace(training={"save_every": 2, "min_train": 50, "steps": 5})
    assert training_due(demanding) == "interrupted"
    with pytest.raises(NotReadyError, match="min_train asks for 50"):
        train_here(demanding)
    assert training_due(demanding) is None
    assert [run.status for run in runs(workspace)] == [TrainingStatus.FAILED]


def test_validation_masks_of_other_classes_choose_no_weights(make_sqlite_workspace, import_balls, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(training={"validate_every": 2})
    import_balls(workspace, range(50, 52), Split.VAL)
    renamed = with_classes(workspace, tmp_path, "ground\nsky\nball\nvoid ignore\n")
    import_balls(renamed, range(100, 106), Split.TRAIN)
    with pytest.raises(LabelSetMismatch, match="2 annotations were drawn for the classes sky, ground"):
        train_here(renamed)
    assert runs(workspace) == []


def test_a_validation_image_that_is_gone_is_told_by_name_before_the_first_step(
    make_sqlite_workspace, import_balls, tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(training={"validate_every": 0})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    import_balls(workspace, range(50, 53), Split.VAL)
    (tmp_path / "val-images/ball_0051.png").unlink()
    steps: list[int] = []
    with pytest.raises(ImageError, match=r"^image 8 \(.*ball_0051\.png\): .*gone.*; restore the file, or import") as raised:
        train_challenger(workspace, reason="test", on_progress=lambda done, planned: steps.append(done))
    assert "pool sync" not in str(raised.value)
    assert steps == []
    [run] = runs(workspace)
    assert (run.status, run.error) == (TrainingStatus.FAILED, str(raised.value))


def test_an_image_of_the_pool_that_changed_asks_for_a_sync(make_sqlite_workspace, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace()
    assert import_dataset(workspace, str(tmp_path / "pool"), tmp_path / "truth", Split.TRAIN).failed == 0
    (tmp_path / "pool/ball_0003.png").write_bytes((tmp_path / "pool/ball_0004.png").read_bytes())
    with pytest.raises(ImageError, match=r"^image 4 \(.*ball_0003\.png\): the file changed.*: run `activeseg pool sync`$"):
        train_here(workspace)


def test_a_training_that_a_broken_image_ended_goes_on_when_it_is_back(
    make_sqlite_workspace, import_balls, tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    interrupt(workspace, 5)
    file = tmp_path / "train-images/ball_0103.png"
    away = file.rename(tmp_path / "away.png")
    for _ in range(2):
        with pytest.raises(ImageError, match="ball_0103"):
            train_here(workspace)
        assert [run.status for run in runs(workspace)] == [TrainingStatus.FAILED]
        assert numbers(states(tmp_path)) == ["1"]
    away.rename(file)
    assert train_here(workspace)["resumed_at"] == 4
    [run] = runs(workspace)
    assert (run.status, run.error, states(tmp_path)) == (TrainingStatus.DONE, None, [])


def test_a_fault_of_the_machine_ends_no_training_which_goes_on_by_day_too(
    make_sqlite_workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    assert import_dataset(workspace, str(tmp_path / "pool"), tmp_path / "truth", Split.TRAIN).failed == 0
    interrupt(workspace, 5)

    def waits() -> None:
        assert [run.status for run in runs(workspace)] == [TrainingStatus.RUNNING]
        assert numbers(states(tmp_path)) == ["1"]
        assert training_due(workspace, retry_failed=False) == "interrupted"

    folder = tmp_path / "pool"
    away = folder.rename(tmp_path / "away")
    folder.mkdir()  # what a disk that is not mounted leaves
    with pytest.raises(SourceGoneError, match="is empty"):
        train_here(workspace)
    waits()
    folder.rmdir()
    away.rename(folder)
    lost = sa.exc.OperationalError("UPDATE", {}, Exception("server closed the connection unexpectedly"))
    for fault in (DeviceMemoryError("no memory"), lost):
        with monkeypatch.context() as patch:
            patch.setattr("activeseg.stages.train.fit", raising(fault))
            with pytest.raises(type(fault)):
                train_here(workspace)
        waits()
    assert train_here(workspace)["resumed_at"] == 4


def test_a_fault_nobody_foresaw_fails_a_training_that_goes_on_when_it_is_tried_again(
    make_sqlite_workspace, import_balls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    interrupt(workspace, 5)
    with monkeypatch.context() as patch:
        patch.setattr("activeseg.stages.train.fit", raising(RuntimeError("CUDA error: out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            train_here(workspace)
    assert [run.status for run in runs(workspace)] == [TrainingStatus.FAILED]
    assert training_due(workspace, retry_failed=False) is None
    assert train_here(workspace)["resumed_at"] == 4


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


def test_other_annotations_do_not_go_on_from_a_training_that_a_broken_image_ended(
    make_sqlite_workspace, import_balls, tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    interrupt(workspace, 5)
    file = tmp_path / "train-images/ball_0103.png"
    away = file.rename(tmp_path / "away.png")
    with pytest.raises(ImageError, match="ball_0103"):
        train_here(workspace)
    away.rename(file)
    import_balls(workspace, range(106, 107), Split.TRAIN)
    details = train_here(workspace)
    assert "resumed_at" not in details
    assert [run.num_images for run in runs(workspace)] == [6, 7]


def test_a_state_that_cannot_be_saved_does_not_cost_the_training(
    make_sqlite_workspace, import_balls, tmp_path: Path, caplog
) -> None:
    workspace = make_sqlite_workspace(training={"save_every": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    (tmp_path / "artifacts/training").write_text("no folder", encoding="utf-8")
    assert train_here(workspace)["steps"] == 6
    assert "could not be saved" in caplog.text
