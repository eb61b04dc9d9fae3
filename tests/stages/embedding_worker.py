"""A process that chooses the first query and is killed by SIGKILL while it embeds the pool."""

from __future__ import annotations

import os
import signal

from activeseg.config import Settings
from activeseg.db import embeddings
from activeseg.loop import advance_round
from activeseg.workspace import open_workspace


def advance(settings: Settings, killed_at: int) -> None:
    """`activeseg round run`, killed while the embeddings after the first `killed_at` are written."""
    import torch

    torch.set_num_threads(1)
    written, insert = 0, embeddings.insert

    def killing(session, embedder, vectors) -> None:
        nonlocal written
        insert(session, embedder, vectors)
        written += len(vectors)
        if written > killed_at:
            session.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    embeddings.insert = killing
    with open_workspace(settings) as workspace:
        advance_round(workspace, None)
