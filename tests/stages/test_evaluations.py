"""Figures of checkpoints are stored, and compared on the same masks only."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from activeseg.core.bootstrap import paired_bootstrap
from activeseg.db import checkpoints
from activeseg.db.models import Evaluation, Promotion, Split
from activeseg.errors import ConfigError, LabelSetMismatch, NotReadyError
from activeseg.evaluations import BOOTSTRAP_SAMPLES, compare_checkpoints, evaluate_checkpoint
from activeseg.stages.dataset import import_dataset
from activeseg.stages.promote import promote_challengers
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace
from tests.factories import draw_ball, overlapping, write_balls, write_class_folders

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow

Make = Callable[..., Workspace]
Train = Callable[[Workspace], None]


def stored(workspace: Workspace) -> dict[tuple[int, str, str], float]:
    with workspace.database.read() as session:
        rows = session.scalars(sa.select(Evaluation)).all()
    return {(row.checkpoint_id, row.metric, row.class_name): row.value for row in rows}


@pytest.fixture
def two(make_sqlite_workspace: Make, train_champion: Train) -> tuple[Workspace, list[str]]:
    """A champion, and a challenger nobody measured yet."""
    workspace = make_sqlite_workspace()
    train_champion(workspace)
    train_challenger(make_sqlite_workspace(training={"seed": 5, "steps": 30}), reason="test")
    with workspace.database.read() as session:
        versions = [row["model_version"] for row in reversed(checkpoints.overview(session))]
    return workspace, versions


def test_every_figure_is_stored_once_and_evaluating_again_replaces_it(make_workspace: Make, train_champion: Train) -> None:
    workspace = make_workspace()
    train_champion(workspace)
    before = stored(workspace)
    with workspace.database.read() as session:
        champion = checkpoints.require_champion(session)
    result = evaluate_checkpoint(workspace, champion)
    assert stored(workspace) == before
    overall = {metric: value for (_, metric, name), value in before.items() if name == "*"}
    assert overall == {name: value for name, value in result.overall().items() if math.isfinite(value)}
    assert {"mean_iou", "mean_dice", "pixel_accuracy", "nll", "ece", "smoothed_iou", "smoothed_dice"} == set(overall)
    by_class = {metric for (_, metric, name) in before if name == "sky"}
    assert by_class == {"iou", "dice", "accuracy", "truth_pixels", "smoothed_iou", "smoothed_dice"}
    assert "void" not in {name for _, _, name in before}


def test_comparison_measures_all_and_gives_differences_from_the_first(two: tuple[Workspace, list[str]]) -> None:
    workspace, [first, second] = two
    old, new = compare_checkpoints(workspace, [first, second], confidence=0.8)
    assert (old.model_version, new.model_version) == (first, second)
    assert old.difference is None
    assert new.difference == paired_bootstrap(
        old.evaluation.counts, new.evaluation.counts, samples=BOOTSTRAP_SAMPLES, confidence=0.8, seed=0
    )
    expected = new.evaluation.metrics.mean_iou - old.evaluation.metrics.mean_iou
    assert new.difference.mean_iou.difference == pytest.approx(expected)
    assert expected != 0
    figures = stored(workspace)
    assert figures[1, "mean_iou", "*"] == old.evaluation.metrics.mean_iou
    assert figures[2, "mean_iou", "*"] == new.evaluation.metrics.mean_iou


def test_a_class_list_that_does_not_match_is_refused_before_anything_is_measured(
    two: tuple[Workspace, list[str]], tmp_path: Path
) -> None:
    workspace, versions = two
    before = stored(workspace)
    (tmp_path / "classes.txt").write_text("sky\nground\ncube\nvoid ignore\n")
    other = Workspace(workspace.settings, workspace.database)
    with workspace.database.read() as session:
        champion = checkpoints.require_champion(session)
    with pytest.raises(LabelSetMismatch, match="cube"):
        evaluate_checkpoint(other, champion)
    with pytest.raises(LabelSetMismatch, match=f"{versions[0]} knows the classes sky"):
        compare_checkpoints(other, versions)
    assert stored(workspace) == before


def test_masks_of_other_classes_are_refused_before_anything_is_measured(
    two: tuple[Workspace, list[str]], import_balls: Callable[..., None], tmp_path: Path
) -> None:
    """The checkpoints fit the class list; one of the masks was drawn for another one."""
    workspace, versions = two
    before, classes = stored(workspace), (tmp_path / "classes.txt").read_text()
    (tmp_path / "classes.txt").write_text("ground\nsky\nball\nvoid ignore\n")
    import_balls(Workspace(workspace.settings, workspace.database), range(300, 301), Split.VAL)
    (tmp_path / "classes.txt").write_text(classes)
    with workspace.database.read() as session:
        champion = checkpoints.require_champion(session)
    with pytest.raises(LabelSetMismatch, match="1 annotations were drawn for the classes ground, sky"):
        evaluate_checkpoint(workspace, champion)
    with pytest.raises(LabelSetMismatch, match="1 annotations were drawn for the classes ground, sky"):
        compare_checkpoints(workspace, versions)
    assert stored(workspace) == before


def test_what_cannot_be_compared_is_told(two: tuple[Workspace, list[str]]) -> None:
    workspace, versions = two
    with pytest.raises(ConfigError, match="two or more different checkpoints"):
        compare_checkpoints(workspace, versions[:1])
    with pytest.raises(ConfigError, match="two or more different checkpoints"):
        compare_checkpoints(workspace, [versions[0], versions[0]])
    with pytest.raises(ConfigError, match="confidence"):
        compare_checkpoints(workspace, versions, confidence=95)
    with pytest.raises(NotReadyError, match="no checkpoint 'x'"):
        compare_checkpoints(workspace, [versions[0], "x"])
    with pytest.raises(NotReadyError, match="the test split has no annotated images"):
        compare_checkpoints(workspace, versions, Split.TEST)


def test_a_figure_that_is_no_number_gets_no_row(two: tuple[Workspace, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """All validation pixels void: nothing was counted, so there is no accuracy to store."""
    workspace, [first, _] = two
    void = np.full((48, 64), 3, np.uint8)
    original = Workspace.read_sample
    monkeypatch.setattr(Workspace, "read_sample", lambda self, item, policy: (original(self, item, policy)[0], void))
    with workspace.database.read() as session:
        row = checkpoints.by_version(session, first)
    result = evaluate_checkpoint(workspace, row)
    assert math.isnan(result.metrics.mean_iou)
    names = {metric for (checkpoint, metric, name) in stored(workspace) if (checkpoint, name) == (row.id, "*")}
    assert names == {"smoothed_iou", "smoothed_dice"}


def test_overlapping_classes_go_through_training_the_gate_and_a_comparison(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(labels={"overlap": True})
    for split, seeds in ((Split.TRAIN, range(100, 106)), (Split.VAL, range(200, 203))):
        folder = tmp_path / split.value
        write_balls(folder / "images", seeds, masks=folder / "masks")
        write_class_folders(folder / "masks", folder / "classes")
        assert import_dataset(workspace, str(folder / "images"), folder / "classes", split).failed == 0
    for _ in range(2):
        train_challenger(workspace, reason="test")
        promote_challengers(workspace)
    with workspace.database.read() as session:
        decisions = session.scalars(sa.select(Promotion).order_by(Promotion.id)).all()
        versions = [row["model_version"] for row in checkpoints.overview(session)]
    assert decisions[0].reason == "first"
    assert "interval of the difference" in decisions[1].reason
    _, measured = compare_checkpoints(workspace, versions)
    planes = np.stack([overlapping(draw_ball(seed)[1]) for seed in range(200, 203)])
    counted = planes[:, :3] & ~planes[:, 3:]  # void is the ignored class
    assert measured.evaluation.counts[:, 1].tolist() == counted.sum(axis=(2, 3)).tolist()
    assert measured.evaluation.confusion is None
    assert measured.difference is not None
