"""A process that trains and is killed by SIGKILL in the middle of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from activeseg.config import load_settings
from activeseg.db import lease
from activeseg.stages.train import train_challenger
from activeseg.workspace import open_workspace


def train(config: Path, killed_at: int | None) -> None:
    """`activeseg train --no-promote`; killed when it has done so many steps, where a number is given."""
    import torch

    torch.set_num_threads(1)

    def kill(done: int, planned: int) -> None:
        if done == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with open_workspace(load_settings(config)) as workspace, lease.holding(workspace.database):
        train_challenger(workspace, reason="test", on_progress=kill)
