"""The user's own annotations as the data of a backtest: what is labelled so far is the pool."""

from __future__ import annotations

import shutil
from pathlib import Path

from activeseg.backtest.dataset import HoldOut
from activeseg.core.selection import freeze_validation
from activeseg.db.models import Split
from activeseg.errors import NotReadyError
from activeseg.stages.export import ExportRequest, export_dataset
from activeseg.storage.manifest import read_manifest
from activeseg.workspace import Workspace

HELD_SHARE = 0.3
"""Of the annotated images, where there is no validation split."""
SEED = 0


def export_history(workspace: Workspace, folder: Path) -> HoldOut | None:
    """Write the training and validation images with their masks to `folder`, in the layout a backtest reads.

    Returns which training images to hold out where there is no validation split: HELD_SHARE of them, drawn by whole groups
    (clips, sites). Raises NotReadyError where nothing is annotated, or all of it is of one group.
    """
    shutil.rmtree(folder, ignore_errors=True)
    export_dataset(workspace, folder, ExportRequest(splits=(Split.TRAIN, Split.VAL)))
    entries = read_manifest(folder).entries
    train = [entry for entry in entries if entry.split == Split.TRAIN]
    if not train:
        raise NotReadyError("no annotated training images: there is no history to replay yet")
    if len(train) < len(entries):
        return None
    groups = {number: entry.group for number, entry in enumerate(train)}
    wanted = max(1, round(HELD_SHARE * len(train)))
    frozen = freeze_validation(groups, wanted, seed=SEED, keep_for_training=1)
    if not frozen:
        raise NotReadyError(
            "there is no validation split, and all annotated images are of one clip or site: name images to measure on with "
            "--hold-out"
        )
    held = {train[number].name for number in frozen}
    return held.__contains__
