"""Checkpoints and labelled images -> stored figures, and how checkpoints compare on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from activeseg.core.bootstrap import BootstrapResult, paired_bootstrap
from activeseg.db import checkpoints, truth
from activeseg.db.checkpoints import EvaluationFigures
from activeseg.db.models import Checkpoint, Split
from activeseg.db.truth import AnnotatedImage
from activeseg.errors import ConfigError, NotReadyError
from activeseg.nn.checkpoint import load_checkpoint
from activeseg.nn.data import LabeledImage
from activeseg.nn.device import pick_device
from activeseg.nn.evaluate import Evaluation, evaluate
from activeseg.workspace import Workspace

BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """A checkpoint's figures, and how they differ from those of the first of the comparison (None for that one)."""

    model_version: str
    evaluation: Evaluation
    difference: BootstrapResult | None


def evaluate_checkpoint(workspace: Workspace, checkpoint: Checkpoint, split: Split = Split.VAL) -> Evaluation:
    """Measure a checkpoint on the current masks of a split and store the figures in place of older ones.

    Stored for class '*': what `Evaluation.overall` names. For each class: iou, dice, accuracy, truth_pixels, smoothed_iou,
    smoothed_dice. Raises NotReadyError for a split without annotated images, LabelSetMismatch where the checkpoint knows
    other classes.
    """
    checkpoints.require_labels(checkpoint, workspace.label_set)
    return _measure(workspace, checkpoint, split, _labeled(workspace, split))


def compare_checkpoints(
    workspace: Workspace, versions: Sequence[str], split: Split = Split.VAL, *, confidence: float = 0.95
) -> tuple[Compared, ...]:
    """Measure and store checkpoints as `evaluate_checkpoint`, all on the same masks, in the order given.

    Differences are to the first, with paired bootstrap intervals over the images at `confidence`. Raises ConfigError for
    fewer than two names or one given twice, NotReadyError for an unknown one, and what `evaluate_checkpoint` raises,
    before any is measured.
    """
    if len(versions) < 2 or len(set(versions)) != len(versions):
        raise ConfigError(f"expected two or more different checkpoints to compare; got {', '.join(versions) or 'none'}")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence: expected a share between 0 and 1, such as 0.95; got {confidence}")
    with workspace.database.read() as session:
        rows = [checkpoints.by_version(session, version) for version in versions]
    for row in rows:
        checkpoints.require_labels(row, workspace.label_set)
    labeled = _labeled(workspace, split)
    measured = [_measure(workspace, row, split, labeled) for row in rows]
    differences = [
        paired_bootstrap(measured[0].counts, other.counts, samples=BOOTSTRAP_SAMPLES, confidence=confidence, seed=0)
        for other in measured[1:]
    ]
    return tuple(map(Compared, versions, measured, [None, *differences]))


def _labeled(workspace: Workspace, split: Split) -> list[AnnotatedImage]:
    with workspace.database.read() as session:
        labeled = truth.current(session, split=split)
    if not labeled:
        raise NotReadyError(
            f"the {split.value} split has no annotated images: `activeseg dataset import --split {split.value}`, "
            "or let the first rounds fill it"
        )
    return labeled


def _measure(workspace: Workspace, checkpoint: Checkpoint, split: Split, labeled: Sequence[AnnotatedImage]) -> Evaluation:
    data = workspace.artifacts.read(checkpoint.location, sha256=checkpoint.sha256)
    device = pick_device(workspace.settings.model.device)
    segmenter = load_checkpoint(data, model_version=checkpoint.model_version, device=device)
    result = evaluate(
        segmenter,
        [LabeledImage(item.image.image_id, partial(workspace.read_labeled, item)) for item in labeled],
        device=device,
        precision=workspace.settings.model.precision,
        batch_size=workspace.settings.scoring.batch_size,
    )
    figures = EvaluationFigures(result.overall(), result.by_class(segmenter.spec.label_set), len(labeled))
    with workspace.database.write() as session:
        checkpoints.store_evaluation(session, checkpoint.id, split, figures)
    return result
