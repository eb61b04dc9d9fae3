"""A worse model never serves; every decision leaves its reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import torch

from activeseg.config import PromotionSection
from activeseg.core.calibration import Calibration, CalibrationFigures
from activeseg.core.labels import LabelSet
from activeseg.core.metrics import ConfusionMatrix, smoothed
from activeseg.db import checkpoints, images
from activeseg.db.models import Checkpoint, Decision, Promotion, Split, TrainingRun, TrainingStatus
from activeseg.errors import CheckpointError, ImageError, LabelSetMismatch, NotReadyError
from activeseg.evaluations import evaluate_checkpoint
from activeseg.nn.evaluate import Evaluation as Measured
from activeseg.stages.promote import gate, promote_challengers
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace

LABELS = LabelSet(("a", "b", "c"), ((0, 0, 0),) * 3)
Make = Callable[..., Workspace]


def measured(errors: list[float], *, rare: float | None = None, images: int = 30) -> Measured:
    """An evaluation of images whose share of wrong pixels per class is `errors`; `rare`: class c is wrong that often."""
    random = np.random.default_rng(0)
    matrices = []
    for _ in range(images):
        matrix = np.zeros((3, 3), np.int64)
        for index, error in enumerate([*errors, errors[0]] if rare is None else [*errors, rare]):
            wrong = round(1000 * error * random.uniform(0.9, 1.1))
            matrix[index, index], matrix[index, (index + 1) % 3] = 1000 - wrong, wrong
        matrices.append(matrix)
    total = ConfusionMatrix(3)
    total.matrix = torch.from_numpy(np.sum(matrices, axis=0))
    counts = np.stack([[np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)] for matrix in matrices])
    calibration = Calibration().compute()
    return Measured(total.compute(), counts, total.matrix.numpy(), calibration, smoothed(counts), tuple(range(images)))


@pytest.mark.parametrize(
    ("champion", "challenger", "promoted", "told"),
    [
        (measured([0.3, 0.3]), measured([0.2, 0.2]), True, "mIoU"),
        (measured([0.2, 0.2]), measured([0.2, 0.2]), True, "mIoU"),
        (measured([0.2, 0.2]), measured([0.3, 0.3]), False, "may lose more than"),
        # Better on average, but one class falls far.
        (measured([0.5, 0.5], rare=0.05), measured([0.1, 0.1], rare=0.7), False, "c lost more than"),
    ],
)
def test_better_and_equal_models_are_promoted_worse_ones_refused(
    champion: Measured, challenger: Measured, promoted: bool, told: str
) -> None:
    verdict = gate(champion, challenger, PromotionSection(), LABELS)
    assert (verdict.promoted, told in verdict.reason) == (promoted, True), verdict.reason
    assert verdict.statistics["low"] <= verdict.statistics["difference"] <= verdict.statistics["high"]


def test_classes_too_small_to_measure_have_no_floor() -> None:
    before, after = measured([0.5, 0.5], rare=0.05), measured([0.1, 0.1], rare=0.7)
    assert gate(before, after, PromotionSection(floor_min_pixels=10**9), LABELS).promoted


@pytest.mark.parametrize(
    ("before", "after", "allowed", "promoted"),
    [
        (0.02, 0.069, 0.05, True),
        (0.02, 0.08, 0.05, False),
        (0.02, 0.9, 1.0, True),
        (0.3, 0.1, 0.0, True),
        (0.02, math.nan, 0.05, True),
    ],
)
def test_a_challenger_that_is_much_worse_calibrated_is_refused(
    before: float, after: float, allowed: float, promoted: bool
) -> None:
    """Measured with the temperature each scores with: what it was before does not count."""
    champion, challenger = (
        replace(measured([0.3, 0.3]), calibration=CalibrationFigures(1.0, 0.5, ()), scaled=CalibrationFigures(1.0, ece, ()))
        for ece in (before, after)
    )
    verdict = gate(champion, challenger, PromotionSection(max_ece_rise=allowed), LABELS)
    assert verdict.promoted == promoted
    assert ("calibration error 0.020 -> 0.080 rises by more than 0.05" in verdict.reason) == (not promoted)
    assert verdict.statistics["champion_ece"] == before
    assert verdict.statistics.get("ece") == (None if math.isnan(after) else after)


def test_the_challengers_calibration_is_that_of_the_temperature_it_will_score_with(
    make_workspace: Make, import_balls: Callable[..., None]
) -> None:
    workspace = make_workspace(promotion={"tolerance": 1.0, "class_floor": 1.0, "max_ece_rise": 1.0})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    import_balls(workspace, range(200, 204), Split.VAL)
    for _ in range(2):
        train_challenger(workspace, reason="test")
        promote_challengers(workspace)
    with workspace.database.read() as session:
        first, second = session.scalars(sa.select(Promotion).order_by(Promotion.id))
        rows = [session.get_one(Checkpoint, row.checkpoint_id) for row in (first, second)]
    measured_again = [evaluate_checkpoint(workspace, row) for row in rows]
    assert all(one.scaled is not None for one in measured_again)
    eces = [one.scaled.ece for one in measured_again if one.scaled]
    assert [second.statistics["champion_ece"], second.statistics["ece"]] == pytest.approx(eces)


def test_without_validation_images_only_the_first_checkpoint_is_promoted(
    make_workspace: Make, import_balls: Callable[..., None]
) -> None:
    workspace = make_workspace()
    import_balls(workspace, range(100, 106), Split.TRAIN)
    for _ in range(2):
        train_challenger(workspace, reason="test")
        promote_challengers(workspace)
    with workspace.database.read() as session:
        decisions = [(row.decision, row.reason[:5]) for row in session.scalars(sa.select(Promotion).order_by(Promotion.id))]
        assert checkpoints.require_champion(session).id == 1
    assert decisions == [(Decision.PROMOTED, "first"), (Decision.REFUSED, "no va")]


def test_a_challenger_that_cannot_be_judged_is_refused_and_the_next_one_judged(
    make_sqlite_workspace: Make, import_balls: Callable[..., None], tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace()
    import_balls(workspace, range(100, 106), Split.TRAIN)
    import_balls(workspace, range(200, 202), Split.VAL)
    damaged = workspace.artifacts.put(b"no checkpoint", "checkpoint", ".safetensors")
    lost = damaged.location.replace(damaged.sha256, damaged.sha256[:-1] + "0")
    with workspace.database.write() as session:
        row = images.label_set_row(session, workspace.label_set)
        for version, location, labels in (
            ("of other classes", damaged.location, LABELS),
            ("damaged", damaged.location, workspace.label_set),
            ("lost", lost, workspace.label_set),
        ):
            known = {"architecture": "x", "spec": {"label_set": labels.as_dict()}, "label_set_id": row.id}
            session.add(Checkpoint(model_version=version, location=location, sha256=damaged.sha256, **known))
            session.flush()
    train_challenger(workspace, reason="test")

    def undecided() -> list[str]:
        with workspace.database.read() as session:
            return [row.model_version for row in checkpoints.undecided(session)]

    # No file at all is there: the disk is away, and that is the fault of none of them.
    folder = workspace.artifacts.root / "checkpoints"
    away = folder.rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match="cannot be read"):
        promote_challengers(workspace)
    assert undecided() == ["damaged", "lost", "fcn_mobilenet_v2-0001"]
    away.rename(folder)
    image = tmp_path / "val-images/ball_0201.png"
    gone = image.rename(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="ball_0201"):
        promote_challengers(workspace)
    assert undecided() == ["fcn_mobilenet_v2-0001"]
    gone.rename(image)
    assert promote_challengers(workspace).details["promoted"] == 1
    with workspace.database.read() as session:
        told = {row.checkpoint_id: (row.decision, row.reason) for row in session.scalars(sa.select(Promotion))}
    refused = [reason for decision, reason in told.values() if decision == Decision.REFUSED]
    expected = ("checkpoint of other classes knows the classes", "checkpoint damaged is damaged", f"checkpoint {lost} cannot")
    assert [reason.startswith(f"cannot be judged: {why}") for reason, why in zip(refused, expected, strict=True)] == [True] * 3
    assert told[4] == (Decision.PROMOTED, "first")


def test_challengers_wait_where_the_champion_too_has_other_classes_than_a_class_list_that_may_be_wrong(
    make_sqlite_workspace: Make, train_champion: Callable[[Workspace], None]
) -> None:
    workspace = make_sqlite_workspace()
    train_champion(workspace)
    train_challenger(workspace, reason="test")
    mistaken = Workspace(workspace.settings, workspace.database)
    mistaken.__dict__["label_set"] = LABELS
    report = promote_challengers(mistaken)
    assert (report.details["promoted"], "knows the classes" in report.details["held"]) == (0, True)
    with workspace.database.read() as session:
        assert [row.model_version for row in checkpoints.undecided(session)] == ["fcn_mobilenet_v2-0002"]
    assert "held" not in promote_challengers(workspace).details
    with workspace.database.read() as session:
        assert checkpoints.undecided(session) == []


def test_a_failed_training_says_why_in_its_row(
    make_sqlite_workspace: Make, import_balls: Callable[..., None], tmp_path
) -> None:
    workspace = make_sqlite_workspace()
    import_balls(workspace, range(100, 106), Split.TRAIN)
    (tmp_path / "train-images" / "ball_0101.png").write_bytes(b"broken")
    with pytest.raises(Exception, match="changed"):
        train_challenger(workspace, reason="test")
    with workspace.database.read() as session:
        run = session.scalars(sa.select(TrainingRun)).one()
    assert run.status == TrainingStatus.FAILED
    assert "changed" in (run.error or "")


def test_too_few_images_are_told(make_sqlite_workspace: Make, import_balls: Callable[..., None]) -> None:
    workspace = make_sqlite_workspace()
    import_balls(workspace, range(100, 102), Split.TRAIN)
    with pytest.raises(NotReadyError, match="min_train asks for 4"):
        train_challenger(workspace, reason="test")


def test_masks_drawn_for_other_classes_are_never_trained_on(
    make_sqlite_workspace: Make, import_balls: Callable[..., None], tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace()
    import_balls(workspace, range(100, 106), Split.TRAIN)
    (tmp_path / "classes.txt").write_text("sky\nhill\nground\nball\nvoid ignore\n")
    with pytest.raises(LabelSetMismatch, match="6 annotations were drawn for the classes sky, ground"):
        train_challenger(Workspace(workspace.settings, workspace.database), reason="test")


def test_an_interrupted_training_whose_settings_changed_is_given_up(
    make_sqlite_workspace: Make, import_balls: Callable[..., None]
) -> None:
    workspace = make_sqlite_workspace(training={"steps": 2})
    import_balls(workspace, range(100, 106), Split.TRAIN)
    train_challenger(workspace, reason="test")
    with workspace.database.write() as session:
        run = session.scalars(sa.select(TrainingRun)).one()
        run.status, run.checkpoint_id = TrainingStatus.RUNNING, None
    changed = make_sqlite_workspace(training={"steps": 3})
    train_challenger(changed, reason="test")
    with changed.database.read() as session:
        runs = session.scalars(sa.select(TrainingRun).order_by(TrainingRun.id)).all()
    assert [run.status for run in runs] == [TrainingStatus.FAILED, TrainingStatus.DONE]
    assert "settings or the version changed" in (runs[0].error or "")
