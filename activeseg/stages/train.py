"""annotations -> a checkpoint: trains a challenger on the masks that count today."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from activeseg import __version__
from activeseg.config import ModelSection, Settings, TrainingSection
from activeseg.core.labels import LabelSet
from activeseg.db import checkpoints, images, truth
from activeseg.db.models import Checkpoint, LabelSetRow, Split, TrainingRun, TrainingStatus
from activeseg.db.models.columns import now
from activeseg.db.truth import AnnotatedImage
from activeseg.errors import CheckpointError, LabelSetMismatch, NotReadyError
from activeseg.nn.checkpoint import NetworkSpec, Segmenter, checkpoint_bytes, load_checkpoint, new_segmenter, read_weights
from activeseg.nn.data import LabeledImage
from activeseg.nn.device import describe_device, pick_device, pick_precision
from activeseg.nn.fit import FitResult, fit
from activeseg.nn.snapshot import best_look
from activeseg.nn.zoo import load_pretrained
from activeseg.records import InputPolicy, StageReport
from activeseg.workspace import Workspace

# A curve of this many points is enough to see how a training went.
HISTORY_POINTS = 100

Progress = Callable[[int, int], None]
"""Called with (steps done, steps planned)."""


def train_challenger(workspace: Workspace, *, reason: str, on_progress: Progress | None = None) -> StageReport:
    """Train a checkpoint and store it. An interrupted training goes on from its last saved state, on its own annotations
    and configuration.

    Raises NotReadyError below [training] min_train images, CheckpointError for initial weights that do not fit. What
    went wrong also stands in the run's row.
    """
    started = time.monotonic()
    run = _open_run(workspace, reason)
    _remove_states(workspace, keep=run)
    try:
        checkpoint, result = _run(workspace, run, on_progress)
    except Exception as error:
        # Whatever it was (out of memory, a broken image): left as running it would be repeated for ever.
        with workspace.database.write() as session:
            held = session.get_one(TrainingRun, run.id)
            held.status, held.ended_at = TrainingStatus.FAILED, now()
            held.error = (str(error) or type(error).__name__)[:1000]
        _remove_states(workspace)
        raise
    _remove_states(workspace)
    return StageReport("train", 1, 0, time.monotonic() - started, _details(checkpoint, run, result))


def _details(checkpoint: Checkpoint, run: TrainingRun, result: FitResult) -> dict[str, Any]:
    details: dict[str, Any] = {
        "model_version": checkpoint.model_version,
        "images": run.num_images,
        "start": run.configuration["start"]["weights"],
        "steps": result.steps,
        "loss": round(_thin(result.losses)[-1]["loss"], 4),
    }
    best = best_look(list(result.looks))
    details |= {"kept_step": best.step, "mean_iou": round(best.mean_iou or 0.0, 4)} if best else {}
    details |= {"resumed_at": result.resumed_at} if result.resumed_at else {}
    return details | ({"problem": result.refused} if result.refused else {})


def _state_file(workspace: Workspace, run: TrainingRun) -> Path:
    return workspace.artifacts.root / "training" / f"{run.id}.safetensors"


def _remove_states(workspace: Workspace, *, keep: TrainingRun | None = None) -> None:
    """Saved states of trainings that ended or were given up; only one training is under way at a time."""
    kept = _state_file(workspace, keep) if keep else None
    for file in (workspace.artifacts.root / "training").glob("*.safetensors*"):
        if file != kept:
            file.unlink(missing_ok=True)


def _open_run(workspace: Workspace, reason: str) -> TrainingRun:
    settings = workspace.settings
    with workspace.database.write() as session:
        interrupted = checkpoints.interrupted_training(session)
        sections = {
            "training": settings.training.model_dump(mode="json"),
            "model": settings.model.model_dump(mode="json"),
        }
        if interrupted is not None and {key: interrupted.configuration.get(key) for key in sections} == sections:
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
        validation = truth.current(session, split=Split.VAL)
        run = TrainingRun(
            status=TrainingStatus.RUNNING,
            reason=reason[:200],
            configuration=sections
            | {"start": _start(settings, parent), "validation": [item.annotation_id for item in validation]},
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


def _start(settings: Settings, parent: Checkpoint | None) -> dict[str, Any]:
    """Where the weights before the first step come from: warm from a champion, or cold."""
    if parent is not None:
        return {"weights": "champion", "checkpoint": parent.model_version}
    if settings.model.weights:
        return {"weights": "imported", "sha256": settings.model.weights}
    return {"weights": "published"} if settings.model.pretrained else {"weights": "random", "seed": settings.training.seed}


def _run(workspace: Workspace, run: TrainingRun, on_progress: Progress | None) -> tuple[Checkpoint, FitResult]:
    training = TrainingSection.model_validate(run.configuration["training"])
    model = ModelSection.model_validate(run.configuration["model"])
    with workspace.database.read() as session:
        labeled = truth.current(session, annotation_ids=checkpoints.annotations_of(session, run.id))
        # Those of the run's beginning: an interrupted training is compared by the same masks to its end.
        validation = truth.current(session, annotation_ids=run.configuration.get("validation", []))
        parent = session.get(Checkpoint, run.parent_id) if run.parent_id else None
    version = f"{model.architecture}-{run.id:04d}"
    segmenter = _initial(workspace, model, parent, version, training.seed)
    planned = training.planned_steps(len(labeled))
    device = pick_device(workspace.settings.model.device)
    result = fit(
        segmenter,
        _labeled_images(workspace, labeled),
        training,
        device=device,
        precision=model.precision,
        validation=_labeled_images(workspace, validation),
        state=_state_file(workspace, run),
        on_step=(lambda done, _: on_progress(done, planned)) if on_progress else None,
    )
    ending = {
        "step": result.steps,
        "stopped": result.stopped,
        "kept_step": result.kept_step,
        "device": describe_device(device),
        "precision": pick_precision(device, model.precision),
    }
    history = [*_thin(result.losses), *({"step": look.step, "mean_iou": look.mean_iou} for look in result.looks), ending]
    return _store(workspace, run, segmenter, history, parent), result


def _labeled_images(workspace: Workspace, items: list[AnnotatedImage]) -> list[LabeledImage]:
    return [LabeledImage(item.image.image_id, partial(workspace.read_labeled, item)) for item in items]


def _initial(workspace: Workspace, model: ModelSection, parent: Checkpoint | None, version: str, seed: int) -> Segmenter:
    """The network before the first step: the champion's weights, imported or published ones, or random ones."""
    policy = InputPolicy(model.short_side, model.mean, model.std)
    spec = NetworkSpec(
        model.architecture, model.width, model.decoder_stride, workspace.label_set, policy, upsampling=model.upsampling
    )
    if parent is not None:
        data = workspace.artifacts.read(parent.location, sha256=parent.sha256)
        start = load_checkpoint(data, model_version=version, device="cpu")
        if not spec.continues(start.spec):
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
    workspace: Workspace, run: TrainingRun, segmenter: Segmenter, history: list[dict[str, Any]], parent: Checkpoint | None
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
