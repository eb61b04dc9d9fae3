"""annotations -> a checkpoint: trains a challenger on the masks that count today."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from activeseg import __version__
from activeseg.config import ModelSection, TrainingSection
from activeseg.core.labels import LabelSet
from activeseg.db import checkpoints, images, truth
from activeseg.db.models import Checkpoint, LabelSetRow, Split, TrainingRun, TrainingStatus
from activeseg.db.models.columns import now
from activeseg.db.truth import AnnotatedImage
from activeseg.errors import CheckpointError, LabelSetMismatch, NotReadyError
from activeseg.nn.checkpoint import NetworkSpec, Segmenter, checkpoint_bytes, load_checkpoint, new_segmenter, read_weights
from activeseg.nn.data import LabeledImage
from activeseg.nn.device import pick_device
from activeseg.nn.fit import fit
from activeseg.nn.zoo import load_pretrained
from activeseg.records import InputPolicy, StageReport
from activeseg.workspace import Workspace

# A curve of this many points is enough to see how a training went.
HISTORY_POINTS = 100

Progress = Callable[[int, int], None]
"""Called with (steps done, steps planned)."""


def train_challenger(workspace: Workspace, *, reason: str, on_progress: Progress | None = None) -> StageReport:
    """Train a checkpoint and store it. An interrupted training is repeated on its own annotations and configuration.

    Raises NotReadyError below [training] min_train images, CheckpointError for initial weights that do not fit. What
    went wrong also stands in the run's row.
    """
    started = time.monotonic()
    run = _open_run(workspace, reason)
    try:
        checkpoint, losses = _run(workspace, run, on_progress)
    except Exception as error:
        # Whatever it was (out of memory, a broken image): left as running it would be repeated for ever.
        with workspace.database.write() as session:
            held = session.get_one(TrainingRun, run.id)
            held.status, held.ended_at = TrainingStatus.FAILED, now()
            held.error = (str(error) or type(error).__name__)[:1000]
        raise
    details = {
        "model_version": checkpoint.model_version,
        "images": run.num_images,
        "steps": run.configuration["training"]["steps"],
        "loss": round(losses[-1]["loss"], 4),
    }
    return StageReport("train", 1, 0, time.monotonic() - started, details)


def _open_run(workspace: Workspace, reason: str) -> TrainingRun:
    settings = workspace.settings
    with workspace.database.write() as session:
        interrupted = checkpoints.interrupted_training(session)
        configuration = {
            "training": settings.training.model_dump(mode="json"),
            "model": settings.model.model_dump(mode="json"),
        }
        if interrupted is not None and interrupted.configuration == configuration:
            return interrupted
        if interrupted is not None:
            interrupted.status, interrupted.ended_at = TrainingStatus.FAILED, now()
            interrupted.error = "given up: it was interrupted, and the settings changed since"
        labeled = truth.current(session, split=Split.TRAIN)
        label_set_id = images.label_set_row(session, workspace.label_set).id
        _require_same_classes(session, labeled, workspace.label_set)
        needed = settings.training.min_train
        if len(labeled) < needed:
            raise NotReadyError(
                f"{len(labeled)} annotated training images, [training] min_train asks for {needed}: "
                "annotate more or import some with `activeseg dataset import`"
            )
        parent = checkpoints.champion(session) if settings.training.start == "champion" else None
        run = TrainingRun(
            status=TrainingStatus.RUNNING,
            reason=reason[:200],
            configuration=configuration,
            code_version=__version__,
            label_set_id=label_set_id,
            parent_id=parent.id if parent else None,
            num_images=len(labeled),
        )
        return checkpoints.start_training(session, run, [item.annotation_id for item in labeled])


def _require_same_classes(session: Session, labeled: list[AnnotatedImage], label_set: LabelSet) -> None:
    """Masks hold class numbers: drawn for other classes, they would teach the wrong ones without a sound."""
    for row_id in {item.label_set_id for item in labeled}:
        drawn_for = LabelSet.from_dict(session.get_one(LabelSetRow, row_id).definition)
        if not drawn_for.same_classes(label_set):
            number = sum(item.label_set_id == row_id for item in labeled)
            raise LabelSetMismatch(
                f"{number} annotations were drawn for the classes {drawn_for.sentence()}, [labels] has "
                f"{label_set.sentence()}: restore the list, or start a new database and import the masks again"
            )


def _run(workspace: Workspace, run: TrainingRun, on_progress: Progress | None) -> tuple[Checkpoint, list[dict[str, float]]]:
    training = TrainingSection.model_validate(run.configuration["training"])
    model = ModelSection.model_validate(run.configuration["model"])
    with workspace.database.read() as session:
        labeled = truth.current(session, annotation_ids=checkpoints.annotations_of(session, run.id))
        parent = session.get(Checkpoint, run.parent_id) if run.parent_id else None
    version = f"{model.architecture}-{run.id:04d}"
    segmenter = _initial(workspace, model, parent, version, training.seed)
    result = fit(
        segmenter,
        [LabeledImage(item.image.image_id, partial(workspace.read_labeled, item)) for item in labeled],
        training,
        device=pick_device(workspace.settings.model.device),
        precision=model.precision,
        on_step=(lambda done, _: on_progress(done, training.steps)) if on_progress else None,
    )
    history = _thin(result.losses)
    return _store(workspace, run, segmenter, history, parent), history


def _initial(workspace: Workspace, model: ModelSection, parent: Checkpoint | None, version: str, seed: int) -> Segmenter:
    """The network before the first step: the champion's weights, pretrained ones, or random ones."""
    policy = InputPolicy(model.short_side, model.mean, model.std)
    spec = NetworkSpec(model.architecture, model.width, model.decoder_stride, workspace.label_set, policy)
    if parent is not None:
        data = workspace.artifacts.read(parent.location, sha256=parent.sha256)
        start = load_checkpoint(data, model_version=version, device="cpu")
        if start.spec != spec:
            raise CheckpointError(
                f"champion {parent.model_version} is another network than [model] and [labels] describe: "
                'set [training] start = "pretrained" for one training'
            )
        return start
    segmenter = new_segmenter(spec, model_version=version, seed=seed)
    if model.weights:
        location = workspace.artifacts.find("weights", model.weights)
        load_pretrained(segmenter.module, model.architecture, read_weights(workspace.artifacts.read(location)))
    elif model.pretrained:
        load_pretrained(segmenter.module, model.architecture)
    return segmenter


def _store(
    workspace: Workspace, run: TrainingRun, segmenter: Segmenter, history: list[dict[str, float]], parent: Checkpoint | None
) -> Checkpoint:
    artifact = workspace.artifacts.put(checkpoint_bytes(segmenter), "checkpoint", ".safetensors")
    with workspace.database.write() as session:
        checkpoint = Checkpoint(
            model_version=segmenter.model_version,
            location=artifact.location,
            sha256=artifact.sha256,
            architecture=segmenter.spec.architecture,
            spec=segmenter.spec.as_dict(),
            label_set_id=run.label_set_id,
            parent_id=parent.id if parent else None,
        )
        session.add(checkpoint)
        session.flush()
        held = session.get_one(TrainingRun, run.id)
        held.status, held.checkpoint_id, held.history, held.ended_at = TrainingStatus.DONE, checkpoint.id, history, now()
    return checkpoint


def _thin(losses: tuple[float, ...]) -> list[dict[str, Any]]:
    """At most HISTORY_POINTS means over equal stretches of steps; the last one ends with the last step."""
    stretch = max(1, -(-len(losses) // HISTORY_POINTS))
    ends = [*range(stretch, len(losses), stretch), len(losses)]
    return [{"step": end, "loss": float(np.mean(losses[max(0, end - stretch) : end]))} for end in ends]
