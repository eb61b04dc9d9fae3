"""A process that pulls and is killed by SIGKILL after its n-th commit or while it stores its n-th mask."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from activeseg.config import load_settings
from activeseg.core.labels import LabelSet, Mask
from activeseg.db import lease
from activeseg.labelstudio.registration import open_client
from activeseg.stages import pull
from activeseg.storage.artifacts import Artifact
from activeseg.workspace import Workspace, open_workspace
from tests.loop.worker import die_after


def die_storing(masks: int) -> None:
    """Let this process be killed when its n-th mask is stored and no row knows of it yet."""
    store, done = Workspace.store_mask, []

    def store_mask(workspace: Workspace, mask: Mask, *, label_set: LabelSet | None = None) -> Artifact:
        stored = store(workspace, mask, label_set=label_set)
        done.append(stored)
        if len(done) == masks:
            os.kill(os.getpid(), signal.SIGKILL)
        return stored

    Workspace.store_mask = store_mask  # type: ignore[method-assign]


def pull_in_blocks(config: Path, size: int, commits: int | None = None, masks: int | None = None) -> None:
    """`activeseg pull` in blocks of `size` tasks; killed where a number is given."""
    patch = pytest.MonkeyPatch()
    patch.setattr(pull, "BLOCK", size)
    settings = load_settings(config)
    with open_workspace(settings) as workspace, open_client(settings) as client:
        if masks is not None:
            die_storing(masks)
        with lease.holding(workspace.database):
            if commits is not None:
                die_after(workspace.database, commits)
            pull.pull_annotations(workspace, client)
