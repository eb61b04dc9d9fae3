"""Checkpoints and labelled images -> stored figures, and how checkpoints compare on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from activeseg.core.bootstrap import BootstrapResult, paired_bootstrap
from activeseg.core.labels import LabelSet, Mask
from activeseg.core.temperature import serving
from activeseg.db import checkpoints, truth
from activeseg.db.checkpoints import EvaluationFigures
from activeseg.db.models import Checkpoint, LabelSetRow, Split
from activeseg.db.truth import AnnotatedImage
from activeseg.errors import ConfigError, ImageError, LabelSetMismatch, NotReadyError
from activeseg.imaging.decode import Decoded
from activeseg.nn.batches import BATCH_SIZE
from activeseg.nn.checkpoint import load_checkpoint
from activeseg.nn.data import LabeledImage
from activeseg.nn.device import pick_device
from activeseg.nn.evaluate import Evaluation, evaluate
from activeseg.records import InputPolicy
from activeseg.workspace import Workspace

BOOTSTRAP_SAMPLES = 1000

_SYNC = "run `activeseg pool sync`"


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """A checkpoint's figures, and how they differ from those of the first of the comparison (None for that one)."""

    model_version: str
    evaluation: Evaluation
    difference: BootstrapResult | None


def evaluate_checkpoint(
    workspace: Workspace, checkpoint: Checkpoint, split: Split = Split.VAL, *, fit_temperature: bool = False
) -> Evaluation:
    """Measure a checkpoint on the current masks of a split and store the figures in place of older ones.

    Stored for class '*': what `Evaluation.overall` names. For each class: iou, dice, accuracy, truth_pixels, smoothed_iou,
    smoothed_dice. Not stored: calibration with the temperature the checkpoint scores with; with `fit_temperature`, the one
    that suits the split. Raises NotReadyError for a split without annotated images, LabelSetMismatch where the checkpoint knows
    other classes or masks were drawn for others.
    """
    checkpoints.require_labels(checkpoint, workspace.label_set)
    return _measure(workspace, checkpoint, split, _labeled(workspace, split), fit_temperature=fit_temperature)


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
        require_same_masks(session, labeled, workspace.label_set)
    if not labeled:
        raise NotReadyError(
            f"the {split.value} split has no annotated images: `activeseg dataset import --split {split.value}`, "
            "or let the first rounds fill it"
        )
    return labeled


def require_same_masks(session: Session, labeled: Sequence[AnnotatedImage], label_set: LabelSet) -> None:
    """Raise LabelSetMismatch where masks were drawn for other classes.

    They hold class numbers: they would teach and measure the wrong ones without a sound. Which class is ignored does not
    matter: its pixels were drawn all the same.
    """
    for row_id in {item.label_set_id for item in labeled}:
        drawn_for = LabelSet.from_dict(session.get_one(LabelSetRow, row_id).definition)
        if not drawn_for.same_masks(label_set):
            number = sum(item.label_set_id == row_id for item in labeled)
            raise LabelSetMismatch(
                f"{number} annotations were drawn for the classes {drawn_for.sentence()}, [labels] has "
                f"{label_set.sentence()}: restore {drawn_for.settings_unlike(label_set)}, or start a new database and "
                "import the masks again"
            )


def labeled_images(workspace: Workspace, items: Sequence[AnnotatedImage], policy: InputPolicy) -> list[LabeledImage]:
    """Annotated images as networks with this input policy are trained and measured on them."""
    return [
        LabeledImage(
            item.image.image_id,
            partial(_read, workspace, item, policy),
            uri=item.image.uri,
            truth=f"{item.annotation_id} {item.mask_sha256}",
        )
        for item in items
    ]


def _read(workspace: Workspace, item: AnnotatedImage, policy: InputPolicy) -> tuple[Decoded, Mask]:
    try:
        return workspace.read_sample(item, policy)
    except ImageError as error:
        if item.image.uri.startswith(workspace.settings.images_uri.rstrip("/") + "/"):
            raise
        # A sync looks at the pool only.
        problem = str(error).removesuffix(_SYNC).rstrip(" ;:")
        raise ImageError(f"{problem}; restore the file, or import the data set again") from error


def _measure(
    workspace: Workspace,
    checkpoint: Checkpoint,
    split: Split,
    labeled: Sequence[AnnotatedImage],
    *,
    fit_temperature: bool = False,
) -> Evaluation:
    data = workspace.artifacts.read(checkpoint.location, sha256=checkpoint.sha256)
    device = pick_device(workspace.settings.model.device)
    segmenter = load_checkpoint(data, model_version=checkpoint.model_version, device=device)
    result = evaluate(
        segmenter,
        labeled_images(workspace, labeled, segmenter.spec.input_policy),
        device=device,
        precision=workspace.settings.model.precision,
        batch_size=workspace.settings.scoring.batch_size or BATCH_SIZE,
        temperature=serving(checkpoint.temperature, workspace.settings.scoring.temperature),
        fit_temperature=fit_temperature,
    )
    figures = EvaluationFigures(result.overall(), result.by_class(segmenter.spec.label_set), len(labeled))
    with workspace.database.write() as session:
        checkpoints.store_evaluation(session, checkpoint.id, split, figures)
    return result
