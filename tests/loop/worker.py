"""A process that works on a workspace and is killed by SIGKILL right after its n-th commit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from activeseg.config import load_settings
from activeseg.db import lease, rounds
from activeseg.db.database import Database
from activeseg.db.models import QueryStatus, RoundStatus
from activeseg.loop import advance_round
from activeseg.stages.dataset import import_dataset
from activeseg.workspace import open_workspace


def die_after(database: Database, commits: int) -> None:
    """Let this process be killed the moment its n-th writing transaction is committed."""
    import sqlalchemy as sa

    done = 0

    def count(connection: sa.Connection) -> None:
        nonlocal done
        if connection.get_execution_options().get("activeseg_begin") == "IMMEDIATE":
            done += 1
            if done == commits:
                # The commit event comes before the commit itself: let the driver finish it, then die.
                connection.connection.driver_connection.execute("COMMIT")
                os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(database.engine, "commit", count)


def advance(config: Path, commits: int | None) -> None:
    """One call of the loop, without Label Studio; killed after its n-th commit where a number is given."""
    import torch

    torch.set_num_threads(1)
    with open_workspace(load_settings(config)) as workspace:
        if commits is not None:
            die_after(workspace.database, commits)
        advance_round(workspace, None)


def answer(config: Path) -> None:
    """Give every open query its true mask, as a person with any tool would."""
    folder = config.parent
    with open_workspace(load_settings(config)) as workspace:
        with workspace.database.read() as session:
            standing = rounds.unfinished(session, RoundStatus.PUSHED)
            asked = [ref for row in standing for _, ref in rounds.queries(session, row.id, QueryStatus.PUSHED)]
        masks = folder / "answers"
        masks.mkdir(exist_ok=True)
        for ref in asked:
            name = f"{Path(ref.uri).stem}.png"
            (masks / name).write_bytes((folder / "truth" / name).read_bytes())
        with lease.holding(workspace.database):
            import_dataset(workspace, workspace.settings.images_uri, masks, None)
