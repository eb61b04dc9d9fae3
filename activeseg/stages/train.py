"""annotations -> a checkpoint: trains a challenger on the masks that count today."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg import __version__
from activeseg.config import Settings
from activeseg.db import checkpoints, images, truth, unlabelled
from activeseg.db.models import Checkpoint, Split, TrainingRun, TrainingStatus
from activeseg.db.models.columns import now
from activeseg.errors import (
    CheckpointError,
    DeviceMemoryError,
    DivergedError,
    NoRoomError,
    NotReadyError,
    SourceGoneError,
)
from activeseg.evaluations import labeled_images, require_same_masks
from activeseg.initial import described_network, initial_network
from activeseg.nn.checkpoint import Segmenter, checkpoint_bytes, load_checkpoint
from activeseg.nn.data import UnlabeledImage
from activeseg.nn.device import describe_device, pick_device, pick_precision
from activeseg.nn.fit import WITHOUT_EFFECT, FitResult, fit
from activeseg.nn.snapshot import best_look
from activeseg.records import ImageRef, InputPolicy, StageReport
from activeseg.workspace import Workspace

# A curve of this many points is enough to see how a training went.
HISTORY_POINTS = 100

UNLABELLED_IMAGES = 1000
"""Images of the pool that pseudo-labels are made of, at most."""

LEFTOVER_DAYS = 14
"""Saved states this old are removed, whoever left them; several databases may share the folder."""

_OF_THE_MOMENT = (
    NoRoomError,
    SourceGoneError,
    DeviceMemoryError,
    sa.exc.OperationalError,  # with the next two: the database is away, or kept everybody waiting for too long
    sa.exc.InterfaceError,
    sa.exc.InternalError,
)
"""What says nothing about a training: it is not given up, and the next run, by day too, goes on with it."""

Progress = Callable[[int, int], None]
"""Called with (steps done, steps planned)."""


def train_challenger(workspace: Workspace, *, reason: str, on_progress: Progress | None = None) -> StageReport:
    """Train a checkpoint and store it. An interrupted training goes on from its last saved state, on its own annotations
    and configuration; so does one that failed otherwise than by diverging, where all is as it was.

    Raises NotReadyError below [training] min_train images, LabelSetMismatch for masks of other classes, DataError for an
    image or mask that cannot be read, CheckpointError for initial weights that do not fit, DivergedError. What went wrong
    also stands in the run's row, unless it was the machine's (a disk, the database, memory): then the run counts as
    interrupted.
    """
    started = time.monotonic()
    run = _interrupted(workspace) or _open_run(workspace, reason)
    _remove_leftovers(workspace, keep=run)
    try:
        checkpoint, result = _run(workspace, run, on_progress)
    except _OF_THE_MOMENT:
        raise
    except Exception as error:
        # Whatever it was (a broken image, a fault of ours): left as running it would be repeated for ever.
        with workspace.database.write() as session:
            held = session.get_one(TrainingRun, run.id)
            held.status, held.ended_at = TrainingStatus.FAILED, now()
            held.error = str(error) or type(error).__name__
        if isinstance(error, DivergedError):  # it would again; all else may be gone by the next run, see _failed
            _remove_state(workspace, run)
        raise
    _remove_state(workspace, run)
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
    details |= {"unlabelled": result.unlabelled} if result.unlabelled else {}
    details |= {"left out": len(result.left_out)} if result.left_out else {}
    details |= {"resumed_at": result.resumed_at} if result.resumed_at else {}
    return details | ({"problem": result.refused} if result.refused else {})


def _state_file(workspace: Workspace, run: TrainingRun) -> Path:
    return workspace.artifacts.root / "training" / checkpoints.state_name(run)


def _remove_state(workspace: Workspace, run: TrainingRun) -> None:
    """A run's saved state, also where a kill left it unfinished."""
    state = _state_file(workspace, run)
    for file in state.parent.glob(f"{state.name}*"):
        file.unlink(missing_ok=True)


def _remove_leftovers(workspace: Workspace, *, keep: TrainingRun) -> None:
    kept, oldest = _state_file(workspace, keep), time.time() - LEFTOVER_DAYS * 24 * 3600
    for file in kept.parent.glob("*.safetensors*"):
        with suppress(FileNotFoundError):  # another process may remove it too
            if file != kept and file.stat().st_mtime < oldest:
                file.unlink()


def _interrupted(workspace: Workspace) -> TrainingRun | None:
    """A run whose process died, to go on with. Where it cannot, it is given up, in a transaction of its own: it must not
    come back when there is no other to take its place."""
    with workspace.database.write() as session:
        run = checkpoints.interrupted_training(session)
        changed = _what_changed(workspace, session, run) if run else None
        if run is None or changed is None:
            return run
        run.status, run.ended_at = TrainingStatus.FAILED, now()
        run.error = f"given up: it was interrupted, and the {changed} changed since"
    _remove_state(workspace, run)
    return None


def _what_changed(workspace: Workspace, session: Session, run: TrainingRun) -> str | None:
    """What keeps a run from going on, or None."""
    if run.label_set_id != images.label_set_row(session, workspace.label_set).id:
        return "classes"
    sections = _sections(workspace.settings)
    begun_with = _that_matter({name: run.configuration.get(name) for name in sections})
    same = run.code_version == __version__ and begun_with == _that_matter(sections)
    return None if same else "settings or the version"


def _sections(settings: Settings) -> dict[str, Any]:
    return {"training": settings.training.model_dump(mode="json"), "model": settings.model.model_dump(mode="json")}


def _that_matter(configuration: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration without the keys that cannot change the weights."""
    without_effect = {"training": WITHOUT_EFFECT, "model": {"device"}}
    return configuration | {
        section: {key: value for key, value in (configuration.get(section) or {}).items() if key not in left_out}
        for section, left_out in without_effect.items()
    }


def _failed(session: Session, workspace: Workspace, planned: TrainingRun, annotations: list[int]) -> TrainingRun | None:
    """The latest run, if it failed and left its state, and `planned` would be the same one: it goes on from there."""
    last = checkpoints.resumable(session)
    if last is None or not _state_file(workspace, last).is_file():
        return None
    same = (
        (last.code_version, last.label_set_id) == (planned.code_version, planned.label_set_id)
        and _that_matter(last.configuration) == _that_matter(planned.configuration)
        and checkpoints.annotations_of(session, last.id) == sorted(annotations)
    )
    if not same:
        return None
    last.status, last.ended_at, last.error = TrainingStatus.RUNNING, None, None
    return last


def _open_run(workspace: Workspace, reason: str) -> TrainingRun:
    settings = workspace.settings
    learns = settings.training.unlabelled == "pseudo"
    with workspace.database.read() as session:
        # The whole pool is read for it: not while others wait.
        pool = unlabelled.draw(session, UNLABELLED_IMAGES, seed=settings.training.seed) if learns else []
    with workspace.database.write() as session:
        labeled, validation = truth.current(session, split=Split.TRAIN), truth.current(session, split=Split.VAL)
        label_set_id = images.label_set_row(session, workspace.label_set).id
        require_same_masks(session, [*labeled, *validation], workspace.label_set)
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
            configuration=_sections(settings)
            | {"start": _start(settings, parent), "validation": [item.annotation_id for item in validation]}
            | ({"unlabelled": pool} if learns else {}),
            code_version=__version__,
            label_set_id=label_set_id,
            parent_id=parent.id if parent else None,
            num_images=len(labeled),
        )
        annotations = [item.annotation_id for item in labeled]
        failed = _failed(session, workspace, run, annotations)
        return failed or checkpoints.start_training(session, run, annotations)


def _start(settings: Settings, parent: Checkpoint | None) -> dict[str, Any]:
    """Where the weights before the first step come from: warm from a champion, or cold."""
    if parent is not None:
        return {"weights": "champion", "checkpoint": parent.model_version}
    if settings.model.weights:
        return {"weights": "imported", "sha256": settings.model.weights}
    return {"weights": "published"} if settings.model.pretrained else {"weights": "random", "seed": settings.training.seed}


def _run(workspace: Workspace, run: TrainingRun, on_progress: Progress | None) -> tuple[Checkpoint, FitResult]:
    # As the run began with them, but for what has no effect on the weights.
    training, model = workspace.settings.training, workspace.settings.model
    with workspace.database.read() as session:
        labeled = truth.current(session, annotation_ids=checkpoints.annotations_of(session, run.id))
        # Those of the run's beginning: an interrupted training is compared by the same masks to its end.
        validation = truth.current(session, annotation_ids=run.configuration.get("validation", []))
        parent = session.get(Checkpoint, run.parent_id) if run.parent_id else None
        pool = unlabelled.refs(session, run.configuration.get("unlabelled", []))
    version = f"{model.architecture}-{run.id:04d}"
    segmenter = _initial(workspace, parent, version, training.seed)
    planned = training.planned_steps(len(labeled))
    device = pick_device(model.device)
    result = fit(
        segmenter,
        labeled_images(workspace, labeled, segmenter.spec.input_policy),
        training,
        device=device,
        precision=model.precision,
        validation=labeled_images(workspace, validation, segmenter.spec.input_policy),
        unlabelled=[_unlabeled(workspace, ref, segmenter.spec.input_policy) for ref in pool],
        state=_state_file(workspace, run),
        run=checkpoints.identity_of(run),
        on_step=(lambda done, _: on_progress(done, planned)) if on_progress else None,
    )
    ending = {
        "step": result.steps,
        "stopped": result.stopped,
        "kept_step": result.kept_step,
        "device": describe_device(device),
        "precision": pick_precision(device, model.precision),
    } | (_told_of_pool(segmenter, result) if result.unlabelled or result.left_out else {})
    history = [*_thin(result.losses), *({"step": look.step, "mean_iou": look.mean_iou} for look in result.looks), ending]
    return _store(workspace, run, segmenter, history, parent), result


def _unlabeled(workspace: Workspace, ref: ImageRef, policy: InputPolicy) -> UnlabeledImage:
    return UnlabeledImage(ref.image_id, partial(workspace.read_input, ref, policy), ref.uri)


def _told_of_pool(segmenter: Segmenter, result: FitResult) -> dict[str, Any]:
    """What pseudo-labels were made of, and how: for the run's row."""
    labels = segmenter.spec.label_set
    names = [labels.names[index] for index in labels.channels]
    thresholds = {name: round(value, 3) for name, value in zip(names, result.thresholds, strict=False)}
    return {
        "unlabelled": result.unlabelled,
        "left_out": {str(image_id): why[:200] for image_id, why in result.left_out.items()},
        "labelled_share": round(result.labelled_share, 4) if result.labelled_share is not None else None,
        "thresholds": thresholds,
    }


def _initial(workspace: Workspace, parent: Checkpoint | None, version: str, seed: int) -> Segmenter:
    """The network before the first step: the champion, where the training is to go on from it."""
    if parent is None:
        return initial_network(workspace, model_version=version, seed=seed)
    data = workspace.artifacts.read(parent.location, sha256=parent.sha256)
    start = load_checkpoint(data, model_version=version, device="cpu")
    if not described_network(workspace).continues(start.spec):
        raise CheckpointError(
            f"champion {parent.model_version} is another network than [model] and [labels] describe: "
            'set [training] start = "pretrained" for one training'
        )
    return start


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
