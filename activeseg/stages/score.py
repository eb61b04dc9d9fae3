"""images -> scores: one forward pass of the champion over every pool image it has not scored yet, or as many as time allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from activeseg.config.budget import Budget
from activeseg.db import checkpoints, images, scores
from activeseg.db.models import Checkpoint, ScoringRun
from activeseg.db.models.columns import now
from activeseg.nn.checkpoint import Segmenter, load_checkpoint
from activeseg.nn.device import describe_device, pick_device
from activeseg.nn.infer import score_images
from activeseg.nn.pace import Pace
from activeseg.nn.prefetch import Behind
from activeseg.records import ImageRef, ImageScore, ScoreFailure, StageReport
from activeseg.workspace import Workspace

Progress = Callable[[int, int], None]
"""Called with (images done, images planned)."""

Chunk = list[ImageScore | ScoreFailure]


def score_pool(workspace: Workspace, *, budget: Budget | None = None, on_progress: Progress | None = None) -> StageReport:
    """Score what the champion's configuration has not scored; commits as it goes, so a killed run goes on.

    budget: how much at most (default: [scoring] budget). Images that were never scored come first then, and after them those
    the scores before (of any checkpoint) were highest for; the next run goes on with the rest. At least one batch is scored.

    Images that cannot be read are quarantined with the reason. Raises NotReadyError without a champion,
    NonFiniteScoreError where the network yields NaN or infinity (nothing of that chunk is written), DeviceMemoryError where
    memory is too small, and what a failed write raises.
    """
    started = time.monotonic()
    configured = workspace.settings.scoring.budget
    budget = budget or (Budget.parse(configured) if configured else None)
    device = pick_device(workspace.settings.model.device)
    with workspace.database.write() as session:
        champion = checkpoints.require_champion(session)
        checkpoints.require_labels(champion, workspace.label_set)
        config = scores.ensure_config(session, champion.id, scoring_definition(workspace, champion))
        unscored = scores.count_unscored(session, config)
        if not unscored:
            details = {"scoring_config": config, "model_version": champion.model_version, "coverage": 1.0}
            return StageReport("score", 0, 0, time.monotonic() - started, details)
        previous = scores.previous_config(session, config) if budget else None
        run = ScoringRun(
            scoring_config_id=config,
            device=describe_device(device),
            images_planned=min(unscored, budget.images or unscored) if budget else unscored,
            work_order="id" if previous is None else "previous ranking",
            budget=budget.text if budget else None,
        )
        session.add(run)
        session.flush()
    segmenter = _load(workspace, champion, device)
    work = _Pass(workspace, run, budget, previous, started)
    work.score(segmenter, device, on_progress)
    return work.finish(champion)


def scoring_definition(workspace: Workspace, checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything besides checkpoint and image that decides a score, but for the last bits.

    What only decides how fast it comes (device, batches, compiling) is not in it: see docs/scoring.md for how far such
    scores may differ.
    """
    policy = checkpoint.spec["input_policy"]
    return {
        "input_policy": policy,
        "precision": workspace.settings.model.precision,
        # The name for a decoder at full size is that of older versions, whose scores stay valid.
        "decoder": "pillow, JPEG reduced" if policy.get("reduced") else "pillow",
    }


def _load(workspace: Workspace, checkpoint: Checkpoint, device: Any) -> Segmenter:
    data = workspace.artifacts.read(checkpoint.location, sha256=checkpoint.sha256)
    return load_checkpoint(data, model_version=checkpoint.model_version, device=device)


@dataclass
class _Pass:
    """One run over the pool. done, failed: images whose rows are committed. taken: handed to the network so far."""

    workspace: Workspace
    run: ScoringRun
    budget: Budget | None
    previous: int | None
    started: float
    pace: Pace = field(default_factory=Pace)
    taken: int = 0
    done: int = 0
    failed: int = 0

    def score(self, segmenter: Segmenter, device: Any, on_progress: Progress | None) -> None:
        """Score and write; rows are written by a thread of their own while the next ones are computed."""
        settings, policy = self.workspace.settings, segmenter.spec.input_policy
        stream = score_images(
            segmenter,
            self._images(),
            partial(self.workspace.read_input, policy=policy),
            device=device,
            precision=settings.model.precision,
            batch_size=settings.scoring.batch_size,
            readers=settings.scoring.readers,
            compile=settings.scoring.compile,
            cache=self.workspace.artifacts.root / "compiled",
            left=self._left,
            pace=self.pace,
        )
        # One half is written while the other is computed: together they are what a kill may lose.
        size = max(1, settings.scoring.chunk_size // 2)
        with closing(stream), Behind(self._write, waiting=0) as writer:
            for chunk in _chunks(stream, size):
                with self.pace.waiting("database"):
                    writer.put(chunk)
                if on_progress:
                    on_progress(self.done + self.failed, self.run.images_planned)
            with self.pace.waiting("database"):
                writer.finish()
        if on_progress:
            on_progress(self.done + self.failed, self.done + self.failed)

    def finish(self, champion: Checkpoint) -> StageReport:
        """Complete the run's row; what is to be said of it."""
        seconds = max(time.monotonic() - self.pace.started, 1e-9)
        waiting = {what: self.pace.waited[what] / seconds for what in self.pace.waited}
        with self.workspace.database.write() as session:
            held = session.get_one(ScoringRun, self.run.id)
            held.images_per_second, held.ended_at = (self.done + self.failed) / seconds, now()
            held.coverage = coverage = scores.coverage(session, self.run.scoring_config_id)
            held.batch_size, held.compiled_images = self.pace.batch_size, self.pace.compiled_images
            held.compile_seconds = self.pace.compile_seconds or None
            held.waiting_decode, held.waiting_device = waiting["decode"], waiting["device"]
            held.waiting_database = waiting["database"]
        details = {
            "scoring_config": self.run.scoring_config_id,
            "model_version": champion.model_version,
            "images_per_second": round((self.done + self.failed) / seconds, 1),
            "coverage": coverage,
            "waiting": ", ".join(f"{what} {share:.0%}" for what, share in waiting.items()),
        }
        if self.budget:
            details |= {"budget": self.budget.text, "order": self.run.work_order}
        if self.pace.compiled_images:
            details["compiled"] = f"{self.pace.compiled_images} images after {self.pace.compile_seconds:.0f} s"
        elif self.pace.not_compiled:
            details["not compiled"] = self.pace.not_compiled
        return StageReport("score", self.done, self.failed, time.monotonic() - self.started, details)

    def _images(self) -> Iterator[ImageRef]:
        """The work list, page by page, until the budget is used up."""
        for page in scores.work_pages(self.workspace.database, self.run.scoring_config_id, previous=self.previous):
            for image in page:
                if not self._allowed():
                    return
                self.taken += 1
                yield image

    def _allowed(self) -> bool:
        """Whether one more image fits the budget, after those that are under way."""
        if self.budget is None or not self.taken:
            return True
        if self.budget.images is not None:
            return self.taken < self.budget.images
        finished = self._finished()
        return finished == 0 or self._seconds_left() >= (self.taken + 1 - finished) * self._seconds_each()

    def _left(self) -> float:
        """Images still to come, as far as can be told."""
        left = float(self.run.images_planned - self._finished())
        if self.budget and self.budget.seconds is not None and self._finished():
            left = min(left, self._seconds_left() / self._seconds_each())
        return max(0.0, left)

    def _seconds_left(self) -> float:
        allowed = self.budget.seconds if self.budget else None
        return float("inf") if allowed is None else allowed - (time.monotonic() - self.started)

    def _seconds_each(self) -> float:
        return (time.monotonic() - self.pace.started) / self._finished()

    def _finished(self) -> int:
        """Images that take no more time: computed, or found to be unreadable."""
        return self.pace.images + self.pace.failed

    def _write(self, chunk: Chunk) -> None:
        good = [item for item in chunk if isinstance(item, ImageScore)]
        bad = {item.image_id: item.reason for item in chunk if isinstance(item, ScoreFailure)}
        done, failed = self.done + len(good), self.failed + len(bad)
        with self.workspace.database.write() as session:
            scores.insert_scores(session, self.run, good)
            images.quarantine(session, bad)
            held = session.get_one(ScoringRun, self.run.id)
            held.images_done, held.images_failed = done, failed
        self.done, self.failed = done, failed


def _chunks(stream: Iterable[ImageScore | ScoreFailure], size: int) -> Iterator[Chunk]:
    chunk: Chunk = []
    for item in stream:
        chunk.append(item)
        if len(chunk) >= size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
