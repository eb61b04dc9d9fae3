"""A pass over several devices writes the rows of a pass over one. Two processes on the CPU stand for two GPUs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from activeseg.config.budget import Budget
from activeseg.db import checkpoints, scores
from activeseg.db.models import ClassScoreRow, Embedding, Image, ImageStatus, Score, ScoringRun
from activeseg.errors import ConfigError, DeviceLostError, NonFiniteScoreError
from activeseg.nn import spread
from activeseg.nn.checkpoint import checkpoint_bytes, load_checkpoint
from activeseg.stages.pool import sync_pool
from activeseg.stages.score import score_pool
from activeseg.workspace import Workspace
from tests.forked import exit_status
from tests.stages.scoring_worker import score

# Each of the processes imports torch.
pytestmark = pytest.mark.slow

TWO = ["cpu", "cpu"]


@pytest.fixture
def scorable(
    make_sqlite_workspace: Callable[..., Workspace], train_champion: Callable[[Workspace], None]
) -> Callable[..., Workspace]:
    """A synchronised pool and a champion, nothing scored."""

    def make(pool: int, **scoring: object) -> Workspace:
        workspace = make_sqlite_workspace(pool=pool, scoring={"compile": "never"} | scoring)
        train_champion(workspace)
        sync_pool(workspace)
        return workspace

    return make


def scored(workspace: Workspace) -> dict[int, float]:
    with workspace.database.read() as session:
        return {row.image_id: row.entropy_sum for row in session.scalars(sa.select(Score))}


def on_one(workspace: Workspace) -> Workspace:
    """The same with [model] device alone."""
    scoring = workspace.settings.scoring.model_copy(update={"devices": ()})
    return Workspace(workspace.settings.model_copy(update={"scoring": scoring}), workspace.database)


def last_run(workspace: Workspace) -> ScoringRun:
    with workspace.database.read() as session:
        return session.scalars(sa.select(ScoringRun).order_by(ScoringRun.id.desc())).first()


def our_processes() -> list[multiprocessing.process.BaseProcess]:
    return [one for one in multiprocessing.active_children() if one.name.startswith("activeseg-score")]


def test_two_devices_write_what_one_does_and_share_the_budget(scorable: Callable[..., Workspace], tmp_path: Path) -> None:
    workspace = scorable(40, batch_size=4, chunk_size=8, devices=TWO)
    (tmp_path / "pool" / "ball_0007.png").write_bytes(b"not an image any more")
    report = score_pool(workspace, budget=Budget.parse("25"))
    assert (report.written, report.failed) == (24, 1)
    run = last_run(workspace)
    assert (run.device, run.images_done, run.images_failed) == ("cpu, cpu", 24, 1)
    assert 1 <= run.batch_size <= 4
    assert not our_processes()
    spread = scored(workspace)
    with workspace.database.write() as session:
        for table in (ClassScoreRow, Embedding, Score):
            session.execute(sa.delete(table))
    assert score_pool(on_one(workspace)).written == 39
    assert last_run(workspace).device == "cpu"
    assert {image: value for image, value in scored(workspace).items() if image in spread} == pytest.approx(spread, rel=1e-4)
    with workspace.database.read() as session:
        aside = session.scalars(sa.select(Image.uri).where(Image.status == ImageStatus.QUARANTINED)).all()
    assert [Path(uri).name for uri in aside] == ["ball_0007.png"]


def test_a_process_that_is_killed_ends_the_run_and_the_next_one_goes_on(
    scorable: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = scorable(60, batch_size=1, chunk_size=2, devices=TWO)
    insert, killed = scores.insert_scores, []

    def killing(session: object, run: object, items: object) -> None:
        insert(session, run, items)  # type: ignore[arg-type]
        if not killed:
            killed.append(our_processes()[0])
            os.kill(killed[0].pid or 0, signal.SIGKILL)

    monkeypatch.setattr(scores, "insert_scores", killing)
    with pytest.raises(DeviceLostError, match=r"scored on cpu ended \(exit status -9"):
        score_pool(workspace)
    assert not our_processes()
    written = len(scored(workspace))
    assert 0 < written < 60
    assert score_pool(on_one(workspace)).written == 60 - written


def test_a_signal_that_a_service_manager_sends_to_all_processes_is_the_callers_to_heed(
    scorable: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, told, answer = scorable(12, batch_size=1, chunk_size=2, devices=TWO), set[int](), spread._Member.answer

    def telling(self: spread._Member, block: spread._Block) -> None:
        if self.process.pid not in told:
            told.add(self.process.pid or 0)
            os.kill(self.process.pid or 0, signal.SIGTERM)
            time.sleep(0.1)
        answer(self, block)

    monkeypatch.setattr(spread._Member, "answer", telling)
    assert score_pool(workspace).written == 12
    assert len(told) == 2


def test_what_goes_wrong_on_a_device_is_raised_here(scorable: Callable[..., Workspace]) -> None:
    workspace = scorable(4, devices=TWO)
    with workspace.database.write() as session:
        row = checkpoints.require_champion(session)
        segmenter = load_checkpoint(workspace.artifacts.read(row.location), model_version=row.model_version, device="cpu")
        next(iter(segmenter.module.parameters())).data.fill_(float("nan"))
        broken = workspace.artifacts.put(checkpoint_bytes(segmenter), "checkpoint", ".safetensors")
        row.location, row.sha256 = broken.location, broken.sha256
    with pytest.raises(NonFiniteScoreError, match="roll back"):
        score_pool(workspace)
    assert not our_processes()


def test_a_device_that_is_not_there_is_told_before_anything_begins(scorable: Callable[..., Workspace]) -> None:
    workspace = scorable(2, devices=["cpu", "cuda:99"])
    with pytest.raises(ConfigError, match="cuda:99 is not there"):
        score_pool(workspace)
    assert last_run(workspace) is None


def marked(mark: str) -> list[Path]:
    """Processes that were started with this in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append(process)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at processes as Linux shows them")
def test_the_processes_end_with_the_one_that_holds_them_however_that_ends(scorable: Callable[..., Workspace]) -> None:
    workspace, mark = scorable(300, batch_size=1, chunk_size=2, devices=TWO), f"SCORING_TEST={uuid.uuid4()}"
    assert exit_status(score, workspace.settings, 20, mark) == -signal.SIGKILL
    until = time.monotonic() + 60
    while marked(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert marked(mark) == []
    assert 0 < len(scored(workspace)) <= 20
