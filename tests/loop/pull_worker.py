"""A process that pulls, and copies its folder at every moment at which a kill would leave something else behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from activeseg.config import load_settings
from activeseg.core.labels import LabelSet, Mask
from activeseg.db import lease
from activeseg.labelstudio.registration import open_client
from activeseg.stages import pull
from activeseg.storage.artifacts import Artifact
from activeseg.workspace import Workspace, open_workspace
from tests.loop.worker import Copies, die_after


def copy_storing(copies: Copies) -> None:
    """Copy the folder whenever a mask is stored and no row knows of it yet."""
    store = Workspace.store_mask

    def store_mask(workspace: Workspace, mask: Mask, *, label_set: LabelSet | None = None) -> Artifact:
        stored = store(workspace, mask, label_set=label_set)
        copies.make()
        return stored

    Workspace.store_mask = store_mask  # type: ignore[method-assign]


def pull_in_blocks(config: Path, into: Path | None = None, *, kill: int | None = None) -> None:
    """`activeseg pull` in blocks of two tasks; with a copy at every such moment; or killed after its n-th commit."""
    patch = pytest.MonkeyPatch()
    patch.setattr(pull, "BLOCK", 2)
    settings = load_settings(config)
    with open_workspace(settings) as workspace, open_client(settings) as client, lease.holding(workspace.database):
        if into is not None:
            copies = Copies(config.parent, into)
            copies.after_every_commit(workspace.database)
            copy_storing(copies)
        if kill is not None:
            die_after(workspace.database, kill)
        pull.pull_annotations(workspace, client)
