"""Scores: complete, resumable, equal to brute force, and never anything but a finite number."""

from __future__ import annotations

import math
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from PIL.PngImagePlugin import PngImageFile
from sqlalchemy.orm import Session

from activeseg.config.budget import Budget
from activeseg.core.entropy import image_entropy
from activeseg.db import checkpoints, rankings, scores
from activeseg.db.models import (
    Checkpoint,
    ClassScoreRow,
    Decision,
    Embedding,
    Image,
    ImageStatus,
    Score,
    ScoringConfig,
    ScoringRun,
)
from activeseg.errors import ConfigError, DeviceMemoryError, NonFiniteScoreError, NotReadyError
from activeseg.nn.allowance import Allowance
from activeseg.nn.checkpoint import Segmenter, checkpoint_bytes, load_checkpoint
from activeseg.nn.data import to_input, to_pixels
from activeseg.records import ImageScore
from activeseg.stages.pool import sync_pool
from activeseg.stages.score import score_pool
from activeseg.storage.local import LocalSource
from activeseg.workspace import Workspace
from tests.factories import write_balls
from tests.forked import exit_status
from tests.stages.scoring_worker import score

Make = Callable[..., Workspace]


def champion_of(workspace: Workspace) -> Segmenter:
    with workspace.database.read() as session:
        row = checkpoints.require_champion(session)
    return load_checkpoint(workspace.artifacts.read(row.location), model_version=row.model_version, device="cpu")


def brute_force(workspace: Workspace, uri: str) -> float:
    """Summed entropy of one image by the formula, alone and in float64."""
    from PIL import Image as Pillow

    segmenter = champion_of(workspace)
    pixels = to_pixels(np.asarray(Pillow.open(uri)))[None]
    with torch.inference_mode():
        logits = segmenter.module(to_input(pixels, segmenter.spec.input_policy, torch.device("cpu")))["out"].double()
    p = torch.softmax(logits, dim=1)
    assert torch.allclose(image_entropy(logits), -(p * p.log()).sum(dim=(1, 2, 3)))
    return float(-(p * p.log()).sum())


def test_the_ranking_equals_brute_force(make_workspace: Make, train_champion: Callable[[Workspace], None]) -> None:
    workspace = make_workspace(pool=7)
    train_champion(workspace)
    sync_pool(workspace)
    assert score_pool(workspace).written == 7
    expected = sorted(
        ((brute_force(workspace, str(p)), str(p)) for p in (workspace.settings.root / "pool").iterdir()), reverse=True
    )
    with workspace.database.read() as session:
        rows = rankings.ranking(session, checkpoints.require_champion(session), limit=10)
        view = session.execute(sa.text("SELECT uri FROM uncertainty_ranking ORDER BY rank")).scalars().all()
    assert [row.uri for row in rows] == [uri for _, uri in expected] == list(view)
    assert [row.score for row in rows] == pytest.approx([value for value, _ in expected], rel=1e-4)


def test_scoring_again_computes_nothing_and_new_images_only_are_scored(
    make_workspace: Make, train_champion: Callable[[Workspace], None], tmp_path: Path
) -> None:
    workspace = make_workspace(pool=5)
    train_champion(workspace)
    sync_pool(workspace)
    assert score_pool(workspace).details["coverage"] == 1.0
    assert score_pool(workspace).written == 0
    make_workspace(pool=7)
    sync_pool(workspace)
    assert score_pool(workspace).written == 2
    with workspace.database.read() as session:
        runs = session.scalars(sa.select(ScoringRun).order_by(ScoringRun.id)).all()
    assert [(run.images_planned, run.images_done, run.coverage) for run in runs] == [(5, 5, 1.0), (2, 2, 1.0)]


def test_an_image_that_changed_or_broke_since_it_was_registered_is_set_aside(
    make_sqlite_workspace: Make, train_champion: Callable[[Workspace], None], tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(pool=6)
    train_champion(workspace)
    sync_pool(workspace)
    (tmp_path / "pool" / "ball_0002.png").write_bytes(b"not an image any more")
    (tmp_path / "pool" / "ball_0004.png").unlink()
    report = score_pool(workspace)
    assert (report.written, report.failed) == (4, 2)
    with workspace.database.read() as session:
        aside = session.scalars(sa.select(Image).where(Image.status == ImageStatus.QUARANTINED)).all()
        assert len(session.scalars(sa.select(Score)).all()) == 4
    assert {Path(image.uri).name for image in aside} == {"ball_0002.png", "ball_0004.png"}
    assert any("pool sync" in (image.reason or "") for image in aside)


def test_a_checkpoint_that_yields_nan_raises_and_ranks_nothing(
    make_sqlite_workspace: Make, train_champion: Callable[[Workspace], None]
) -> None:
    workspace = make_sqlite_workspace(pool=4)
    train_champion(workspace)
    sync_pool(workspace)
    segmenter = champion_of(workspace)
    next(iter(segmenter.module.parameters())).data.fill_(float("nan"))
    broken = workspace.artifacts.put(checkpoint_bytes(segmenter), "checkpoint", ".safetensors")
    with workspace.database.write() as session:
        row = checkpoints.require_champion(session)
        row.location, row.sha256 = broken.location, broken.sha256
    with pytest.raises(NonFiniteScoreError, match="roll back"):
        score_pool(workspace)
    with workspace.database.read() as session:
        assert session.scalars(sa.select(Score)).all() == []


def test_without_a_champion_the_way_to_one_is_told(make_sqlite_workspace: Make) -> None:
    with pytest.raises(NotReadyError, match="activeseg train"):
        score_pool(make_sqlite_workspace(pool=2))


def rows(workspace: Workspace) -> dict[int, tuple]:
    """Every score by image, but for when and by which run it was written."""
    columns = [column for column in Score.__table__.columns if column.name not in ("scored_at", "scoring_run_id")]
    with workspace.database.read() as session:
        return {row.image_id: tuple(map(str, row)) for row in session.execute(sa.select(*columns))}


def vectors(workspace: Workspace) -> dict[int, bytes]:
    """Every embedding by image."""
    with workspace.database.read() as session:
        return {row.image_id: row.vector for row in session.scalars(sa.select(Embedding))}


def runs(workspace: Workspace) -> list[ScoringRun]:
    with workspace.database.read() as session:
        return list(session.scalars(sa.select(ScoringRun).order_by(ScoringRun.id)))


@pytest.fixture
def scorable(make_sqlite_workspace: Make, train_champion: Callable[[Workspace], None]) -> Callable[..., Workspace]:
    """A synchronised pool and a champion, nothing scored."""

    def make(pool: int, **scoring: object) -> Workspace:
        workspace = make_sqlite_workspace(pool=pool, scoring={"compile": "never"} | scoring)
        train_champion(workspace)
        sync_pool(workspace)
        return workspace

    return make


@pytest.mark.slow
def test_a_killed_run_loses_at_most_a_chunk_and_ends_as_if_it_had_not_been(scorable: Callable[..., Workspace]) -> None:
    workspace = scorable(13, batch_size=2, chunk_size=4)
    assert exit_status(score, workspace.settings, 5) == -signal.SIGKILL
    kept = rows(workspace)
    assert len(kept) == 4  # two halves of a chunk; the third was being written
    embedded = vectors(workspace)
    assert embedded.keys() == kept.keys()
    report = score_pool(workspace)
    assert report.written == 13 - len(kept)
    resumed = rows(workspace)
    assert {image_id: resumed[image_id] for image_id in kept} == kept
    together = vectors(workspace)
    assert together.keys() == resumed.keys()
    assert {image_id: together[image_id] for image_id in kept} == embedded
    with workspace.database.write() as session:
        for table in (ClassScoreRow, Score, Embedding):
            session.execute(sa.delete(table))
    assert score_pool(workspace).written == 13
    assert (rows(workspace), vectors(workspace)) == (resumed, together)


def test_a_budget_of_images_is_spent_on_new_ones_and_then_on_the_most_uncertain(scorable: Callable[..., Workspace]) -> None:
    workspace = scorable(6, batch_size=1, chunk_size=2)
    score_pool(workspace)
    by_entropy = sorted(rows(workspace), key=lambda image_id: -float(rows(workspace)[image_id][2]))
    with workspace.database.write() as session:  # another champion: the same weights under another name
        old = checkpoints.require_champion(session)
        new = Checkpoint(
            model_version="second",
            **{name: getattr(old, name) for name in ("location", "sha256", "architecture", "spec", "label_set_id")},
        )
        session.add(new)
        session.flush()
        checkpoints.decide(session, new.id, Decision.PROMOTED, "test", decided_by="test")
    write_balls(workspace.settings.root / "pool", range(6, 8))
    sync_pool(workspace)
    spent: list[list[int]] = []
    for number in range(3):
        before = newest(workspace)
        report = score_pool(workspace, budget=Budget.parse("4"))
        spent.append([image_id for image_id in newest(workspace) if image_id not in before])
        assert report.details["coverage"] == min(1.0, (number + 1) * 4 / 8)
    with workspace.database.read() as session:
        new_ones = list(session.scalars(sa.select(Image.id).where(Image.uri.like("%ball_000_.png")).order_by(Image.id)))[-2:]
    assert spent == [[*new_ones, *by_entropy[:2]], by_entropy[2:], []]
    assert [(run.budget, run.work_order, run.images_planned) for run in runs(workspace)] == [
        (None, "id", 6),
        ("4", "previous ranking", 4),
        ("4", "previous ranking", 4),
    ]


def newest(workspace: Workspace) -> list[int]:
    """Images the champion has scored, in the order of writing."""
    with workspace.database.read() as session:
        champion = checkpoints.require_champion(session)
        mine = sa.select(ScoringConfig.id).where(ScoringConfig.checkpoint_id == champion.id)
        written = sa.select(Score.image_id).where(Score.scoring_config_id.in_(mine)).order_by(sa.text("rowid"))
        return list(session.scalars(written))


def test_a_budget_of_time_that_is_too_short_still_gets_on_and_the_setting_counts(scorable: Callable[..., Workspace]) -> None:
    workspace = scorable(60, batch_size=1, chunk_size=2, readers=1, budget="0.001s")
    report = score_pool(workspace)
    assert 0 < report.written < 60
    assert report.details["coverage"] == report.written / 60
    assert report.details["budget"] == "0.001s"
    assert score_pool(workspace, budget=Budget.parse("1h")).written == 60 - report.written


def test_images_that_cannot_be_read_use_up_a_budget_of_time_too(scorable: Callable[..., Workspace], tmp_path: Path) -> None:
    workspace = scorable(30, batch_size=1, chunk_size=2, readers=1)
    for file in (tmp_path / "pool").iterdir():
        file.write_bytes(b"not an image any more")
    assert 0 < score_pool(workspace, budget=Budget.parse("0.001s")).failed < 30


def test_a_time_budget_is_not_cut_short_by_images_that_could_not_be_read(
    scorable: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed takes no more time: a budget of ten times what the whole pool takes is enough for it."""
    workspace = scorable(40, batch_size=1, chunk_size=2, readers=1)
    for number in range(30):
        (tmp_path / "pool" / f"ball_{number:04d}.png").write_bytes(b"not an image any more")

    def patience(self: Allowance) -> float:
        return 10 * 40 * self._seconds_each() if self.pace.images else math.inf

    monkeypatch.setattr(Allowance, "seconds_left", patience)
    report = score_pool(workspace, budget=Budget.parse("1h"))
    assert (report.written, report.failed) == (10, 30)


def test_a_broken_image_in_the_middle_of_a_batch_is_set_aside_alone(scorable: Callable[..., Workspace], tmp_path: Path) -> None:
    workspace = scorable(12, batch_size=4, chunk_size=8)
    (tmp_path / "pool" / "ball_0005.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    report = score_pool(workspace)
    assert (report.written, report.failed, report.details["coverage"]) == (11, 1, 1.0)
    [run] = runs(workspace)
    assert (run.images_done, run.images_failed, run.batch_size) == (11, 1, 4)


def test_a_disk_that_goes_away_in_the_middle_sets_nothing_aside_and_the_next_run_goes_on(
    scorable: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = scorable(12, batch_size=2, chunk_size=4, readers=1)
    pool, reads, read = tmp_path / "pool", [], LocalSource.read

    def unmounting(self: LocalSource, uri: str, *, max_bytes: int | None = None) -> bytes:
        reads.append(uri)
        if len(reads) == 9:
            pool.rename(tmp_path / "unmounted")
            pool.mkdir()
        return read(self, uri, max_bytes=max_bytes)

    monkeypatch.setattr(LocalSource, "read", unmounting)
    with pytest.raises(ConfigError, match="its disk is mounted"):
        score_pool(workspace)
    written = len(rows(workspace))
    assert 0 < written <= 8
    pool.rmdir()
    (tmp_path / "unmounted").rename(pool)
    report = score_pool(workspace)
    assert (report.written, report.failed, report.details["coverage"]) == (12 - written, 0, 1.0)


def test_memory_that_ran_out_in_decoding_sets_nothing_aside(
    scorable: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = scorable(4)

    def full(self: PngImageFile) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PngImageFile, "load", full)
        with pytest.raises(DeviceMemoryError, match=r"no memory to decode .*ball_000\d.png"):
            score_pool(workspace)
    assert score_pool(workspace).written == 4


def test_a_write_that_fails_ends_the_run_and_the_next_one_goes_on(
    scorable: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = scorable(12, batch_size=2, chunk_size=4)
    calls, insert = [], scores.insert_scores

    def full(session: Session, run: ScoringRun, items: list[ImageScore]) -> None:
        calls.append(len(items))
        insert(session, run, items)
        if len(calls) == 2:
            raise OSError("disk full")

    monkeypatch.setattr(scores, "insert_scores", full)
    with pytest.raises(OSError, match="disk full"):
        score_pool(workspace)
    assert calls == [2, 2]  # nothing was written after the failure
    assert len(rows(workspace)) == 2
    monkeypatch.undo()
    assert score_pool(workspace).written == 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("activeseg-")]


def test_the_row_and_the_report_say_where_the_time_went(scorable: Callable[..., Workspace]) -> None:
    workspace = scorable(6)
    seen: list[tuple[int, int, str]] = []
    report = score_pool(workspace, on_progress=lambda done, planned, note: seen.append((done, planned, note)))
    [run] = runs(workspace)
    shares = [run.waiting_decode, run.waiting_device, run.waiting_database]
    assert all(share is not None and 0 <= share <= 1 for share in shares)
    assert sum(share or 0 for share in shares) <= 1.01
    assert (run.compile_seconds, run.compiled_images, run.work_order, run.budget) == (None, 0, "id", None)
    assert run.images_per_second == pytest.approx(report.details["images_per_second"], abs=0.1)
    assert "decode" in report.sentence()
    assert seen[-1] == (6, 6, "")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert re.fullmatch(r"waits for decode \d+%, device \d+%, database \d+%", seen[0][2])


@pytest.mark.parametrize(
    ("text", "budget"),
    [("2h", (7200.0, None)), ("30m", (1800.0, None)), ("1.5 H", (5400.0, None)), ("500", (None, 500)), ("1d", (86400.0, None))],
)
def test_budgets_are_durations_or_images(text: str, budget: tuple[float | None, int | None]) -> None:
    found = Budget.parse(text)
    assert (found.seconds, found.images) == budget


@pytest.mark.parametrize("text", ["", "0", "-1", "2 hours", "h", "1.5", "0m", "nan", "1e3"])
def test_anything_else_is_no_budget(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a duration"):
        Budget.parse(text)
