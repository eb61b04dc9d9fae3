"""A process that scores and is killed by SIGKILL in the middle of it."""

from __future__ import annotations

import os
import signal

from activeseg.config import Settings
from activeseg.db import lease, scores
from activeseg.stages.score import score_pool
from activeseg.workspace import open_workspace


def score(settings: Settings, killed_at: int, mark: str = "") -> None:
    """`activeseg score`, killed while the rows after the first `killed_at` images are written.

    mark: `NAME=value`, to find the processes by that it starts.
    """
    import torch

    if mark:
        name, _, value = mark.partition("=")
        os.environ[name] = value

    torch.set_num_threads(1)
    written, insert = 0, scores.insert_scores

    def killing(session, run, items) -> None:
        nonlocal written
        insert(session, run, items)
        written += len(items)
        if written > killed_at:
            session.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    scores.insert_scores = killing
    with open_workspace(settings) as workspace, lease.holding(workspace.database):
        score_pool(workspace)
