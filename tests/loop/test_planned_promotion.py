"""With a time for `promote`, nothing else judges: the champion serves on, nothing is trained twice, and people are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from activeseg.db import checkpoints
from activeseg.db.models import Promotion, Round, ScoringConfig, Split, TrainingRun
from activeseg.db.standstill import why_no_round
from activeseg.db.status import read_status
from activeseg.errors import ImageError
from activeseg.loop import advance_round, collect_and_train, train_if_due
from activeseg.scheduler import Scheduler, loop_jobs
from activeseg.stages.dataset import import_dataset
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace
from tests.factories import write_balls

PROMOTE = "0 8 * * * Europe/Berlin"
SELECTION = {"bootstrap_size": 2, "query_size": 2, "val_size": 0, "refill_below": 2}


class Nights:
    """A workspace with six labelled images and a planned `promote`."""

    def __init__(self, workspace: Workspace, folder: Path) -> None:
        self.workspace, self.folder = workspace, folder
        jobs = loop_jobs(workspace.settings, workspace.database)
        self.scheduler = Scheduler(workspace.database, jobs)

    def add(self, seeds: range) -> None:
        """Labelled training images."""
        images = self.folder / f"more-{seeds.start}"
        write_balls(images, seeds, masks=self.folder / f"masks-{seeds.start}")
        import_dataset(self.workspace, str(images), self.folder / f"masks-{seeds.start}", Split.TRAIN)

    def count(self, kind: type[TrainingRun | Promotion]) -> int:
        with self.workspace.database.read() as session:
            return session.scalar(sa.select(sa.func.count()).select_from(kind)) or 0

    def champion(self) -> str | None:
        with self.workspace.database.read() as session:
            row = checkpoints.champion(session)
            return None if row is None else row.model_version

    def waiting(self) -> list[str]:
        with self.workspace.database.read() as session:
            return [row.model_version for row in checkpoints.undecided(session)]

    def next_lines(self) -> list[str]:
        with self.workspace.database.read() as session:
            return read_status(session, self.workspace.settings)["next"]


def test_only_the_planned_promote_judges_and_the_champion_serves_until_then(
    make_sqlite_workspace: Callable[..., Workspace], tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(pool=4, selection=SELECTION, schedule={"promote": PROMOTE, "train": "0 1 * * *"})
    nights = Nights(workspace, tmp_path)
    nights.add(range(100, 106))
    assert nights.scheduler.run_once("train").message == "train 1, promote waits (see `activeseg status`)"
    assert (nights.champion(), nights.count(Promotion)) == (None, 0)
    assert nights.scheduler.run_once("promote").message == "promote 1"
    first = nights.champion()
    assert first is not None

    nights.add(range(110, 112))
    reports = {report.stage: report for report in collect_and_train(workspace, None)}
    [second] = nights.waiting()
    assert (reports["train"].details["model_version"], nights.champion()) == (second, first)
    sentence = f'{second} waits for `promote` ([schedule] promote = "{PROMOTE}"; `activeseg promote` judges at once)'
    assert reports["promote"].details == {"held": sentence}

    # The night: it scores and chooses with the champion, and trains nothing again.
    stages = [report.stage for report in advance_round(workspace, None)]
    assert "train" not in stages
    assert {"score", "rank", "hand out"} <= set(stages)
    assert "train" not in [report.stage for report in train_if_due(workspace, None)]
    assert nights.count(TrainingRun) == 2
    with workspace.database.read() as session:
        chosen_by = session.scalars(sa.select(ScoringConfig.checkpoint_id).join(Round)).all()
        assert {checkpoints.by_version(session, first).id} == set(chosen_by)
        assert why_no_round(session, workspace.settings).endswith(f"; {sentence}")
    assert [line for line in nights.next_lines() if second in line] == [sentence]

    # More annotations came meanwhile: what is new is trained on, and both wait.
    nights.add(range(120, 122))
    assert nights.scheduler.run_once("train").message == "train 1, promote waits (see `activeseg status`)"
    assert f"{', '.join(nights.waiting())} wait for `promote`" in nights.next_lines()[-1]
    assert nights.scheduler.run_once("promote").message == "promote 2"
    assert (nights.waiting(), nights.count(TrainingRun), nights.count(Promotion)) == ([], 3, 3)
    assert not any("promote" in line and "waits" in line for line in nights.next_lines())
    assert nights.scheduler.run_once("promote").message == "nothing new"


def test_without_a_time_for_promote_the_gate_judges_right_after_the_training(
    make_sqlite_workspace: Callable[..., Workspace], tmp_path: Path
) -> None:
    nights = Nights(make_sqlite_workspace(pool=2, schedule={"train": "0 1 * * *"}), tmp_path)
    nights.add(range(100, 106))
    assert nights.scheduler.run_once("train").message == "train 1, promote 1"
    assert nights.champion() is not None


def test_a_training_that_cannot_go_on_keeps_no_checkpoint_waiting(
    make_sqlite_workspace: Callable[..., Workspace], tmp_path: Path
) -> None:
    nights = Nights(make_sqlite_workspace(pool=2), tmp_path)
    nights.add(range(100, 106))
    train_challenger(nights.workspace, reason="by hand")
    nights.add(range(110, 112))
    for image in (tmp_path / "more-110").iterdir():
        image.write_bytes(b"no image any more")
    with pytest.raises(ImageError):
        train_if_due(nights.workspace, None)
    assert (nights.waiting(), nights.count(Promotion)) == ([], 1)
