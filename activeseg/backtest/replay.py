"""One unit of a backtest, computed by the loop's own stages in a workspace of its own, with known masks as the annotator.

A unit depends on the images it is given as labelled, on the seed and on the settings, not on how its workspace came about: a
workspace that is lost is made again from the files of the rounds before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from sqlalchemy.orm import Session

from activeseg import __version__
from activeseg.backtest.task import START, Place, Task
from activeseg.backtest.units import Chosen, Unit, finite
from activeseg.backtest.workspaces import (
    ANNOTATOR,
    answer,
    bring_to,
    copy_workspace,
    follows,
    open_round,
    replay_settings,
    replaying,
    require_all_active,
    round_of,
    usable,
)
from activeseg.core.spread import mean_nearest_distance
from activeseg.db import checkpoints, embeddings, images, rounds, truth
from activeseg.db.models import Checkpoint, Round, Split, TrainingRun
from activeseg.errors import ActivesegError
from activeseg.evaluations import evaluate_checkpoint
from activeseg.nn.device import describe_device, pick_device, pick_precision
from activeseg.nn.evaluate import Evaluation
from activeseg.stages.promote import promote_by_hand
from activeseg.stages.score import score_pool
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace, open_workspace

OnStep = Callable[[int], None]
"""Called with the optimiser steps a training has done."""


def compute(place: Place, task: Task, on_step: OnStep) -> Unit:
    """Train, measure, score and choose as the task says. What an interrupted process did of it is not done again.

    The unit's fingerprint is empty: the caller, who knows all rounds, puts it in.
    """
    if task.start is not None:
        return _chosen_after(place, task, task.start)
    with replaying(place, task) as workspace:
        if task.added:
            bring_to(place, workspace, task.added)
        else:
            answer(place, workspace, round_of(workspace, 1) or open_round(workspace))
        seconds, evaluation, details = _train_and_measure(workspace, task, on_step)
        chosen: tuple[Chosen, ...] = ()
        if task.next_query:
            _score(workspace, seconds, details)
        if task.next_query and task.strategy != START:
            chosen = _choose(place, workspace, task, seconds, details)
        return _described(place, workspace, task, evaluation, seconds, chosen, details)


def _chosen_after(place: Place, task: Task, start: Unit) -> Unit:
    """Round 0 of a strategy: the start's training, with this strategy's choice from a copy of its workspace."""
    seconds, details, chosen = dict(start.seconds), dict(start.details), start.chosen
    if task.next_query:
        if not _goes_on(place, task):
            copy_workspace(place.folder(START, task.seed), place.folder(task.strategy, task.seed), task.workspace)
        with replaying(place, task) as workspace:
            _score(workspace, seconds, details)
            chosen = _choose(place, workspace, task, seconds, details)
    return replace(start, strategy=task.strategy, chosen=chosen, seconds=_rounded(seconds), details=details)


def _goes_on(place: Place, task: Task) -> bool:
    """Whether the strategy's workspace stands where the start's does. One made for another plan labelled more by now, and one
    made anew was not trained: that is the start's part."""
    if not usable(place.folder(task.strategy, task.seed), task.workspace) or not follows(place, task):
        return False
    with open_workspace(replay_settings(place, task)) as workspace:
        return _trained(workspace) is not None


def _train_and_measure(
    workspace: Workspace, task: Task, on_step: OnStep
) -> tuple[dict[str, float], Evaluation, dict[str, Any]]:
    """Train on what is labelled, make the checkpoint the champion without asking the gate, and measure it."""
    details: dict[str, Any] = {"steps": task.steps}
    if _trained(workspace) is None:
        report = train_challenger(workspace, reason=ANNOTATOR, on_progress=lambda done, _: on_step(done))
        details |= {key: report.details[key] for key in ("loss", "resumed_at", "unlabelled") if key in report.details}
    trained = _trained(workspace)
    if trained is None:
        raise ActivesegError(f"{workspace.settings.root}: the labelled images changed while they were trained on")
    run, checkpoint = trained
    seconds = {"training": ((run.ended_at or run.started_at) - run.started_at).total_seconds()}
    with workspace.database.read() as session:
        champion = checkpoints.champion(session)
    if champion is None or champion.id != checkpoint.id:
        promote_by_hand(workspace, checkpoint.model_version, decided_by=ANNOTATOR, reason=f"round {task.round}")
    started = time.monotonic()
    evaluation = evaluate_checkpoint(workspace, checkpoint, Split.TEST)
    return seconds | {"evaluation": time.monotonic() - started}, evaluation, details


def _trained(workspace: Workspace) -> tuple[TrainingRun, Checkpoint] | None:
    """The training on exactly the images that are labelled now, where it was done."""
    with workspace.database.read() as session:
        run = checkpoints.latest_training(session)
        labelled = sorted(item.annotation_id for item in truth.current(session, split=Split.TRAIN))
        if run is None or run.checkpoint_id is None or checkpoints.annotations_of(session, run.id) != labelled:
            return None
        return run, session.get_one(Checkpoint, run.checkpoint_id)


def _score(workspace: Workspace, seconds: dict[str, float], details: dict[str, Any]) -> None:
    """Score the pool with what this workspace's strategy needs, and note seconds and images, where it was not done before.

    After the start's pass, one that only embeds what is labelled comes on top of it; any other stands in its place.
    """
    report = score_pool(workspace)
    require_all_active(workspace)
    if not report.written:
        return
    on_top = report.details.get("embedded only") == report.written
    seconds["scoring"] = report.seconds + (seconds.get("scoring", 0.0) if on_top else 0.0)
    details["scored"] = report.written + (details.get("scored", 0) if on_top else 0)


def _choose(
    place: Place, workspace: Workspace, task: Task, seconds: dict[str, float], details: dict[str, Any]
) -> tuple[Chosen, ...]:
    """The next round's images, as the loop chooses them; the seconds it took and how alike the images are are noted."""
    started = time.monotonic()
    row = round_of(workspace, task.round + 2) or open_round(workspace)
    seconds["selection"] = time.monotonic() - started
    if task.strategy not in (row.acquisition, "random"):
        raise ActivesegError(f"the round was chosen by {row.acquisition}, {task.strategy} was asked for")
    with workspace.database.read() as session:
        asked = rounds.queries(session, row.id)
        spread = _spread(session, row, [ref.image_id for _, ref in asked])
    if len(asked) != task.next_query:
        raise ActivesegError(f"{task.strategy} chose {len(asked)} images, {task.next_query} were asked for")
    details |= {} if spread is None else {"spread": round(spread, 5)}
    prefix = place.folder_uri("pool")
    return tuple(
        Chosen(ref.uri.removeprefix(prefix), query.rank, query.score, query.arm.value, query.reason) for query, ref in asked
    )


def _spread(session: Session, row: Round, image_ids: Sequence[int]) -> float | None:
    """Mean distance of these images to the nearest of them, in the embedding that came with the scores they were chosen by."""
    embedder = embeddings.find_embedder(session, embeddings.FEATURES.format(row.scoring_config_id))
    if embedder is None:
        return None
    found, vectors = embeddings.load(session, embedder, image_ids)
    return mean_nearest_distance(vectors) if len(found) == len(image_ids) else None


def _described(
    place: Place,
    workspace: Workspace,
    task: Task,
    evaluation: Evaluation,
    seconds: dict[str, float],
    chosen: tuple[Chosen, ...],
    details: dict[str, Any],
) -> Unit:
    label_set = place.data.label_set
    device = pick_device(workspace.settings.model.device)
    with workspace.database.read() as session:
        labelled = [item.image.uri.removeprefix(place.folder_uri("pool")) for item in truth.current(session, split=Split.TRAIN)]
        held = images.refs(session, evaluation.image_ids)
    names = [label_set.names[index] for index in label_set.channels]
    return Unit(
        fingerprint="",
        strategy=task.strategy,
        seed=task.seed,
        round=task.round,
        labelled=tuple(sorted(labelled)),
        chosen=chosen,
        classes=tuple(names),
        overall={name: finite(value) for name, value in evaluation.overall().items()},
        iou=dict(zip(names, map(finite, evaluation.metrics.iou), strict=True)),
        seconds=_rounded(seconds),
        machine={
            "device": describe_device(device),
            "precision": pick_precision(device, workspace.settings.model.precision),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "activeseg": __version__,
        },
        held_out=tuple(held[number].uri.removeprefix(place.folder_uri("held")) for number in evaluation.image_ids),
        counts=evaluation.counts,
        details=details,
    )


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}
