"""A night on a pool that changed: the scoring says so, nothing is sent or promoted, and it goes on when a person says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.db import checkpoints, drift
from activeseg.db.models import Query, ScoringRun
from activeseg.loop import advance_round, why_nothing_to_push
from activeseg.stages.pool import sync_pool
from activeseg.stages.promote import promote_challengers
from activeseg.stages.score import score_pool
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace
from tests.factories import write_balls

Make = Callable[..., Workspace]


def test_a_pool_that_changed_blocks_pushes_and_promotions_until_a_person_accepts_it(
    make_workspace: Make, train_champion: Callable[[Workspace], None], tmp_path: Path
) -> None:
    rules = {"min_images": 8, "blocks": "both", "max_shift": 0.25}
    workspace = make_workspace(pool=24, drift=rules, selection={"query_size": 3, "refill_below": 1})
    train_champion(workspace)
    sync_pool(workspace)
    assert "drift" not in score_pool(workspace).details
    for number in range(24):  # one grey, and nothing like the scenes
        Pillow.fromarray(np.full((48, 64, 3), 128, np.uint8) + np.uint8(number % 3)).save(tmp_path / f"pool/grey_{number}.png")
    reports = {report.stage: report for report in advance_round(workspace, None)}
    assert reports["score"].written == 24
    assert "24 new images" in reports["score"].details["drift"]
    assert reports["push"].details["held"].startswith("waits since scoring run 2: ")
    assert "drift accept" in why_nothing_to_push(workspace)
    train_challenger(workspace, reason="test")
    report = promote_challengers(workspace)
    assert report.written == 0
    assert report.details["held"].startswith("waits since scoring run 2: ")
    with workspace.database.read() as session:
        assert len(checkpoints.undecided(session)) == 1
        assert session.scalars(sa.select(Query)).all() == []
        shift = session.get_one(ScoringRun, 2).shift
    with workspace.database.write() as session:
        drift.accept(session, accepted_by="ada")
    assert promote_challengers(workspace).written == 1
    assert [report.stage for report in advance_round(workspace, None)][-1] == "hand out"
    with workspace.database.read() as session:
        assert len(session.scalars(sa.select(Query)).all()) == 3
        assert session.get_one(ScoringRun, 2).shift == shift


def test_a_round_that_was_begun_before_is_held_too(
    make_sqlite_workspace: Make, train_champion: Callable[[Workspace], None]
) -> None:
    workspace = make_sqlite_workspace(pool=8, drift={"blocks": "push"}, selection={"query_size": 3, "refill_below": 1})
    train_champion(workspace)
    sync_pool(workspace)
    score_pool(workspace)
    with workspace.database.write() as session:
        session.get_one(ScoringRun, 1).drift = "said so"
    write_balls(workspace.settings.root / "pool", range(50, 52))
    assert [report.details["held"] for report in advance_round(workspace, None) if report.stage == "push"]
    with workspace.database.write() as session:
        drift.accept(session, accepted_by="ada")
    assert {report.stage for report in advance_round(workspace, None)} >= {"rank", "predict", "hand out"}
