"""Scores: complete, resumable, equal to brute force, and never anything but a finite number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import torch

from activeseg.core.entropy import image_entropy
from activeseg.db import checkpoints, rankings
from activeseg.db.models import Image, ImageStatus, Score, ScoringRun
from activeseg.errors import NonFiniteScoreError, NotReadyError
from activeseg.nn.checkpoint import Segmenter, checkpoint_bytes, load_checkpoint
from activeseg.nn.data import to_input, to_pixels
from activeseg.stages.pool import sync_pool
from activeseg.stages.score import score_pool
from activeseg.workspace import Workspace

Make = Callable[..., Workspace]


def champion_of(workspace: Workspace) -> Segmenter:
    with workspace.database.read() as session:
        row = checkpoints.require_champion(session)
    return load_checkpoint(workspace.artifacts.read(row.location), model_version=row.model_version, device="cpu")


def brute_force(workspace: Workspace, uri: str) -> float:
    """Summed entropy of one image by the formula, alone and in float64."""
    from PIL import Image as Pillow

    segmenter = champion_of(workspace)
    pixels = to_pixels(np.asarray(Pillow.open(uri)))[None]
    with torch.inference_mode():
        logits = segmenter.module(to_input(pixels, segmenter.spec.input_policy, torch.device("cpu")))["out"].double()
    p = torch.softmax(logits, dim=1)
    assert torch.allclose(image_entropy(logits), -(p * p.log()).sum(dim=(1, 2, 3)))
    return float(-(p * p.log()).sum())


def test_the_ranking_equals_brute_force(make_workspace: Make, train_champion: Callable[[Workspace], None]) -> None:
    workspace = make_workspace(pool=7)
    train_champion(workspace)
    sync_pool(workspace)
    assert score_pool(workspace).written == 7
    expected = sorted(
        ((brute_force(workspace, str(p)), str(p)) for p in (workspace.settings.root / "pool").iterdir()), reverse=True
    )
    with workspace.database.read() as session:
        rows = rankings.ranking(session, checkpoints.require_champion(session), limit=10)
        view = session.execute(sa.text("SELECT uri FROM uncertainty_ranking ORDER BY rank")).scalars().all()
    assert [row.uri for row in rows] == [uri for _, uri in expected] == list(view)
    assert [row.score for row in rows] == pytest.approx([value for value, _ in expected], rel=1e-4)


def test_scoring_again_computes_nothing_and_new_images_only_are_scored(
    make_workspace: Make, train_champion: Callable[[Workspace], None], tmp_path: Path
) -> None:
    workspace = make_workspace(pool=5)
    train_champion(workspace)
    sync_pool(workspace)
    assert score_pool(workspace).details["coverage"] == 1.0
    assert score_pool(workspace).written == 0
    make_workspace(pool=7)
    sync_pool(workspace)
    assert score_pool(workspace).written == 2
    with workspace.database.read() as session:
        runs = session.scalars(sa.select(ScoringRun).order_by(ScoringRun.id)).all()
    assert [(run.images_planned, run.images_done, run.coverage) for run in runs] == [(5, 5, 1.0), (2, 2, 1.0)]


def test_an_image_that_changed_or_broke_since_it_was_registered_is_set_aside(
    make_sqlite_workspace: Make, train_champion: Callable[[Workspace], None], tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(pool=6)
    train_champion(workspace)
    sync_pool(workspace)
    (tmp_path / "pool" / "ball_0002.png").write_bytes(b"not an image any more")
    (tmp_path / "pool" / "ball_0004.png").unlink()
    report = score_pool(workspace)
    assert (report.written, report.failed) == (4, 2)
    with workspace.database.read() as session:
        aside = session.scalars(sa.select(Image).where(Image.status == ImageStatus.QUARANTINED)).all()
        assert len(session.scalars(sa.select(Score)).all()) == 4
    assert {Path(image.uri).name for image in aside} == {"ball_0002.png", "ball_0004.png"}
    assert any("pool sync" in (image.reason or "") for image in aside)


def test_a_checkpoint_that_yields_nan_raises_and_ranks_nothing(
    make_sqlite_workspace: Make, train_champion: Callable[[Workspace], None]
) -> None:
    workspace = make_sqlite_workspace(pool=4)
    train_champion(workspace)
    sync_pool(workspace)
    segmenter = champion_of(workspace)
    next(iter(segmenter.module.parameters())).data.fill_(float("nan"))
    broken = workspace.artifacts.put(checkpoint_bytes(segmenter), "checkpoint", ".safetensors")
    with workspace.database.write() as session:
        row = checkpoints.require_champion(session)
        row.location, row.sha256 = broken.location, broken.sha256
    with pytest.raises(NonFiniteScoreError, match="roll back"):
        score_pool(workspace)
    with workspace.database.read() as session:
        assert session.scalars(sa.select(Score)).all() == []


def test_without_a_champion_the_way_to_one_is_told(make_sqlite_workspace: Make) -> None:
    with pytest.raises(NotReadyError, match="activeseg train"):
        score_pool(make_sqlite_workspace(pool=2))
