from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from activeseg.db import lease
from activeseg.db.models import Split
from activeseg.stages.dataset import import_dataset
from activeseg.stages.promote import promote_challengers
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace
from tests.factories import write_balls


@pytest.fixture
def import_balls(tmp_path: Path) -> Callable[..., None]:
    """Draw labelled images with these seeds and import them into a split."""

    def run(workspace: Workspace, seeds: range, split: Split) -> None:
        images, masks = tmp_path / f"{split}-images", tmp_path / f"{split}-masks"
        write_balls(images, seeds, masks=masks)
        report = import_dataset(workspace, str(images), masks, split)
        assert report.failed == 0

    return run


@pytest.fixture
def train_champion(import_balls: Callable[..., None]) -> Callable[[Workspace], None]:
    """Six labelled training images, two for validation, and a first checkpoint that serves."""

    def run(workspace: Workspace) -> None:
        import_balls(workspace, range(100, 106), Split.TRAIN)
        import_balls(workspace, range(200, 202), Split.VAL)
        with lease.holding(workspace.database):
            train_challenger(workspace, reason="test")
            promote_challengers(workspace)

    return run
