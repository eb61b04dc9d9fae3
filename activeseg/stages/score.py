"""images -> scores: one forward pass of the champion over every pool image it has not scored yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from activeseg.db import checkpoints, images, scores
from activeseg.db.models import Checkpoint, ScoringRun
from activeseg.db.models.columns import now
from activeseg.nn.checkpoint import Segmenter, load_checkpoint
from activeseg.nn.device import describe_device, pick_device
from activeseg.nn.infer import score_images
from activeseg.records import ImageScore, ScoreFailure, StageReport
from activeseg.workspace import Workspace

Progress = Callable[[int, int], None]
"""Called with (images done, images planned)."""


def score_pool(workspace: Workspace, *, on_progress: Progress | None = None) -> StageReport:
    """Score what the champion's configuration has not scored; commits chunk by chunk, so a killed run goes on.

    Images that cannot be read are quarantined with the reason. Raises NotReadyError without a champion,
    NonFiniteScoreError where the network yields NaN or infinity: nothing of that chunk is written.
    """
    started = time.monotonic()
    device = pick_device(workspace.settings.model.device)
    with workspace.database.write() as session:
        champion = checkpoints.require_champion(session)
        checkpoints.require_labels(champion, workspace.label_set)
        config = scores.ensure_config(session, champion.id, scoring_definition(workspace, champion))
        work = scores.unscored(session, config)
        if not work:
            details = {"scoring_config": config, "model_version": champion.model_version, "coverage": 1.0}
            return StageReport("score", 0, 0, time.monotonic() - started, details)
        run = ScoringRun(scoring_config_id=config, device=describe_device(device), images_planned=len(work))
        session.add(run)
        session.flush()
    segmenter = _load(workspace, champion, device)
    stream = score_images(
        segmenter,
        work,
        workspace.read_image,
        device=device,
        precision=workspace.settings.model.precision,
        batch_size=workspace.settings.scoring.batch_size,
    )
    forward = time.monotonic()
    done, failed = _write(workspace, run, stream, len(work), on_progress)
    return _finish(workspace, run, config, champion, done, failed, started, forward)


def scoring_definition(workspace: Workspace, checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything besides checkpoint and image that decides a score."""
    return {
        "input_policy": checkpoint.spec["input_policy"],
        "precision": workspace.settings.model.precision,
        "decoder": "pillow",
    }


def _load(workspace: Workspace, checkpoint: Checkpoint, device: Any) -> Segmenter:
    data = workspace.artifacts.read(checkpoint.location, sha256=checkpoint.sha256)
    return load_checkpoint(data, model_version=checkpoint.model_version, device=device)


def _write(
    workspace: Workspace,
    run: ScoringRun,
    stream: Iterable[ImageScore | ScoreFailure],
    planned: int,
    on_progress: Progress | None,
) -> tuple[int, int]:
    done = failed = 0
    for chunk in _chunks(stream, workspace.settings.scoring.chunk_size):
        good = [item for item in chunk if isinstance(item, ImageScore)]
        bad = {item.image_id: item.reason for item in chunk if isinstance(item, ScoreFailure)}
        done, failed = done + len(good), failed + len(bad)
        with workspace.database.write() as session:
            scores.insert_scores(session, run, good)
            images.quarantine(session, bad)
            held = session.get_one(ScoringRun, run.id)
            held.images_done, held.images_failed = done, failed
        if on_progress:
            on_progress(done + failed, planned)
    return done, failed


def _chunks(stream: Iterable[ImageScore | ScoreFailure], size: int) -> Iterator[list[ImageScore | ScoreFailure]]:
    chunk: list[ImageScore | ScoreFailure] = []
    for item in stream:
        chunk.append(item)
        if len(chunk) >= size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _finish(
    workspace: Workspace,
    run: ScoringRun,
    config: int,
    champion: Checkpoint,
    done: int,
    failed: int,
    started: float,
    forward: float,
) -> StageReport:
    ended = time.monotonic()
    speed = (done + failed) / max(ended - forward, 1e-9)
    with workspace.database.write() as session:
        held = session.get_one(ScoringRun, run.id)
        held.images_per_second, held.ended_at = speed, now()
        held.coverage = scores.coverage(session, config)
        coverage = held.coverage
    details = {
        "scoring_config": config,
        "model_version": champion.model_version,
        "images_per_second": round(speed, 1),
        "coverage": coverage,
    }
    return StageReport("score", done, failed, ended - started, details)
