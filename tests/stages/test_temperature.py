"""The temperature of scores: fitted once on the validation split, frozen with the checkpoint, told in the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from PIL import Image as Pillow

from activeseg.db import checkpoints
from activeseg.db.models import Checkpoint, Score, ScoringConfig, Split
from activeseg.evaluations import evaluate_checkpoint
from activeseg.nn.checkpoint import load_checkpoint
from activeseg.nn.data import to_input, to_pixels
from activeseg.stages.pool import sync_pool
from activeseg.stages.promote import promote_challengers, rollback
from activeseg.stages.score import score_pool
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace

Make = Callable[..., Workspace]
Import = Callable[..., None]


def champion(workspace: Workspace) -> Checkpoint:
    with workspace.database.read() as session:
        return checkpoints.require_champion(session)


def first_model(workspace: Workspace, import_balls: Import, *, val: int) -> float | None:
    """Train on six images and promote with so many validation images; returns the temperature."""
    import_balls(workspace, range(100, 106), Split.TRAIN)
    import_balls(workspace, range(200, 200 + val), Split.VAL)
    train_challenger(workspace, reason="test")
    promote_challengers(workspace)
    return champion(workspace).temperature


def entropy_by_formula(workspace: Workspace, file: Path, temperature: float) -> float:
    """Summed entropy in float64 of an image's logits divided by a temperature."""
    row = champion(workspace)
    segmenter = load_checkpoint(workspace.artifacts.read(row.location), model_version="m", device="cpu")
    pixels = to_pixels(np.asarray(Pillow.open(file)))[None]
    with torch.inference_mode():
        logits = segmenter.module(to_input(pixels, segmenter.spec.input_policy, torch.device("cpu")))["out"].double()
    p = torch.softmax(logits / temperature, dim=1)
    return float(-(p * p.log()).sum())


def test_scores_are_made_with_the_temperature_that_suits_the_validation_split(
    make_workspace: Make, import_balls: Import, tmp_path: Path
) -> None:
    workspace = make_workspace(pool=3)
    temperature = first_model(workspace, import_balls, val=4)
    assert temperature is not None
    used = round(temperature, 2)
    assert used != 1.0
    measured = evaluate_checkpoint(workspace, champion(workspace))
    assert measured.scaled is not None
    assert measured.temperature == used
    assert measured.scaled.nll < measured.calibration.nll

    sync_pool(workspace)
    assert score_pool(workspace).written == 3
    with workspace.database.read() as session:
        [config] = session.scalars(sa.select(ScoringConfig))
        found = session.scalars(sa.select(Score.entropy_sum).order_by(Score.image_id)).all()
    assert config.definition["temperature"] == used
    files = sorted((tmp_path / "pool").iterdir())
    assert found == pytest.approx([entropy_by_formula(workspace, file, used) for file in files], rel=1e-4)


def test_a_validation_split_that_grows_changes_no_score(make_sqlite_workspace: Make, import_balls: Import) -> None:
    workspace = make_sqlite_workspace(pool=3)
    before = first_model(workspace, import_balls, val=4)
    sync_pool(workspace)
    score_pool(workspace)
    import_balls(workspace, range(200, 209), Split.VAL)
    first = champion(workspace).model_version
    train_challenger(workspace, reason="test")
    promote_challengers(workspace)  # measures the champion again, on the larger split
    rollback(workspace, first, decided_by="test", reason="test")
    evaluate_checkpoint(workspace, champion(workspace), fit_temperature=True)
    assert champion(workspace).temperature == before
    assert score_pool(workspace).written == 0


def test_few_validation_images_fit_nothing_then_or_later(make_sqlite_workspace: Make, import_balls: Import) -> None:
    workspace = make_sqlite_workspace(pool=2)
    assert first_model(workspace, import_balls, val=3) is None
    sync_pool(workspace)
    score_pool(workspace)
    import_balls(workspace, range(200, 206), Split.VAL)
    former = champion(workspace).model_version
    train_challenger(workspace, reason="test")
    promote_challengers(workspace)
    rollback(workspace, former, decided_by="test", reason="test")
    with workspace.database.read() as session:
        first, second = session.scalars(sa.select(Checkpoint.temperature).order_by(Checkpoint.id))
        [config] = session.scalars(sa.select(ScoringConfig))
    assert first is None
    assert second is not None
    assert "temperature" not in config.definition
    assert score_pool(workspace).written == 0


def test_none_scores_with_the_networks_own_probabilities(
    make_sqlite_workspace: Make, import_balls: Import, tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(pool=2, scoring={"temperature": "none"})
    assert first_model(workspace, import_balls, val=4) is not None
    sync_pool(workspace)
    score_pool(workspace)
    with workspace.database.read() as session:
        [config] = session.scalars(sa.select(ScoringConfig))
        found = session.scalars(sa.select(Score.entropy_sum).order_by(Score.image_id)).all()
    assert "temperature" not in config.definition
    files = sorted((tmp_path / "pool").iterdir())
    assert found == pytest.approx([entropy_by_formula(workspace, file, 1.0) for file in files], rel=1e-4)
    assert evaluate_checkpoint(workspace, champion(workspace)).scaled is None
