"""Checkpoints, the champion pointer, training runs and evaluations."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.labels import LabelSet
from activeseg.db.models import (
    ALL_CLASSES,
    Checkpoint,
    Decision,
    Evaluation,
    Promotion,
    Round,
    ScoringConfig,
    Split,
    TrainingRun,
    TrainingRunAnnotation,
    TrainingStatus,
)
from activeseg.db.models.columns import now
from activeseg.errors import LabelSetMismatch, NotReadyError
from activeseg.records import ClassMetric


def champion(session: Session) -> Checkpoint | None:
    """The serving checkpoint: the one the last promotion that was no refusal points to."""
    statement = (
        sa.select(Checkpoint)
        .join(Promotion, Promotion.checkpoint_id == Checkpoint.id)
        .where(Promotion.decision != Decision.REFUSED)
        .order_by(Promotion.id.desc())
        .limit(1)
    )
    return session.scalar(statement)


def of_round(session: Session, row: Round) -> Checkpoint | None:
    """The checkpoint whose scores a round was chosen by; None for a bootstrap round."""
    if row.scoring_config_id is None:
        return None
    config = session.get_one(ScoringConfig, row.scoring_config_id)
    return session.get_one(Checkpoint, config.checkpoint_id)


def require_labels(checkpoint: Checkpoint, label_set: LabelSet) -> None:
    """Raise LabelSetMismatch where a checkpoint's classes are not the configured ones."""
    theirs = LabelSet.from_dict(checkpoint.spec["label_set"])
    if not theirs.same_classes(label_set):
        raise LabelSetMismatch(
            f"checkpoint {checkpoint.model_version} knows the classes {theirs.sentence()}; "
            f"[labels] has {label_set.sentence()}: train a new checkpoint or restore {theirs.settings_unlike(label_set)}"
        )


def require_champion(session: Session) -> Checkpoint:
    """The champion. Raises NotReadyError with the way to one."""
    found = champion(session)
    if found is None:
        raise NotReadyError(
            "there is no champion yet: import labelled images (`activeseg dataset import`) and run `activeseg train`, "
            "or let `activeseg round run` ask annotators for the first ones"
        )
    return found


def by_version(session: Session, model_version: str) -> Checkpoint:
    """The checkpoint with this name. Raises NotReadyError that lists the known ones."""
    found = session.scalar(sa.select(Checkpoint).where(Checkpoint.model_version == model_version))
    if found is None:
        known = list(session.scalars(sa.select(Checkpoint.model_version).order_by(Checkpoint.id.desc()).limit(5)))
        raise NotReadyError(f"no checkpoint {model_version!r}; the latest are: {', '.join(known) or 'none'}")
    return found


def previous_champion(session: Session) -> Checkpoint | None:
    """Where a rollback without argument leads: the champion before the current one.

    A rollback takes back the promotions after its target, so a second one leads one further back, not forth again.
    """
    line = champion_line(session)
    return session.get_one(Checkpoint, line[-2]) if len(line) > 1 else None


def champion_line(session: Session) -> list[int]:
    """Ids of the champion (last) and of those it would be rolled back to, one after the other; empty without a champion."""
    statement = sa.select(Promotion.checkpoint_id, Promotion.decision).where(Promotion.decision != Decision.REFUSED)
    line: list[int] = []
    for checkpoint_id, decision in session.execute(statement.order_by(Promotion.id)):
        if decision == Decision.ROLLED_BACK and checkpoint_id in line:
            while line[-1] != checkpoint_id:
                line.pop()
        elif line[-1:] != [checkpoint_id]:
            line.append(checkpoint_id)
    return line


def champion_since(session: Session) -> datetime | None:
    """When the champion became it; None without one."""
    statement = sa.select(Promotion.created_at).where(Promotion.decision != Decision.REFUSED)
    return session.scalar(statement.order_by(Promotion.id.desc()).limit(1))


def decide(
    session: Session,
    checkpoint_id: int,
    decision: Decision,
    reason: str,
    *,
    decided_by: str,
    statistics: dict[str, Any] | None = None,
) -> Promotion:
    """Record a decision; unless it is a refusal, the champion pointer moves with it."""
    current = champion(session)
    row = Promotion(
        checkpoint_id=checkpoint_id,
        previous_id=current.id if current else None,
        decision=decision,
        reason=reason[:500],
        statistics=statistics or {},
        decided_by=decided_by,
    )
    session.add(row)
    session.flush()
    return row


def freeze_temperature(session: Session, checkpoint_id: int, temperature: float) -> None:
    """Write what a checkpoint's logits are divided by in scoring; what was written once stays, or all scores would change."""
    fresh = (Checkpoint.id == checkpoint_id, Checkpoint.temperature.is_(None))
    session.execute(sa.update(Checkpoint).where(*fresh).values(temperature=temperature))


def undecided(session: Session) -> list[Checkpoint]:
    """Challengers: trained checkpoints without any decision, oldest first."""
    decided = sa.exists().where(Promotion.checkpoint_id == Checkpoint.id)
    return list(session.scalars(sa.select(Checkpoint).where(~decided).order_by(Checkpoint.id)))


def start_training(session: Session, run: TrainingRun, annotation_ids: Iterable[int]) -> TrainingRun:
    """Write a run and exactly which annotations it sees."""
    session.add(run)
    session.flush()
    session.add_all(TrainingRunAnnotation(training_run_id=run.id, annotation_id=item) for item in annotation_ids)
    session.flush()
    return run


def interrupted_training(session: Session) -> TrainingRun | None:
    """A run whose process died: its row still says running."""
    statement = sa.select(TrainingRun).where(TrainingRun.status == TrainingStatus.RUNNING).order_by(TrainingRun.id)
    return session.scalar(statement.limit(1))


def resumable(session: Session) -> TrainingRun | None:
    """The youngest run, where it failed: if it left its saved state it may go on from there."""
    last = session.scalar(sa.select(TrainingRun).order_by(TrainingRun.id.desc()).limit(1))
    return last if last is not None and last.status == TrainingStatus.FAILED else None


def identity_of(run: TrainingRun) -> str:
    """What tells a run from all others: numbers begin again in every database."""
    return f"{run.id} {run.started_at.isoformat()}"


def state_name(run: TrainingRun) -> str:
    """Name of the file of a run's saved state, in the artifacts folder's `training/`."""
    return f"{run.id}-{hashlib.sha256(identity_of(run).encode()).hexdigest()[:8]}.safetensors"


def latest_training(session: Session) -> TrainingRun | None:
    """The youngest run that ended well."""
    statement = sa.select(TrainingRun).where(TrainingRun.status == TrainingStatus.DONE).order_by(TrainingRun.id.desc())
    return session.scalar(statement.limit(1))


def annotations_of(session: Session, training_run_id: int) -> list[int]:
    """Ids of the annotations a run was given, ascending."""
    statement = sa.select(TrainingRunAnnotation.annotation_id).where(TrainingRunAnnotation.training_run_id == training_run_id)
    return sorted(session.scalars(statement))


@dataclass(frozen=True, slots=True)
class EvaluationFigures:
    """Figures over all classes and per class, as stored in `evaluations`."""

    overall: dict[str, float]
    classes: Sequence[ClassMetric]
    num_images: int


def store_evaluation(session: Session, checkpoint_id: int, split: Split, figures: EvaluationFigures) -> None:
    """Replace a checkpoint's figures on a split. Figures that do not exist (absent classes) or are not finite get no row.

    Whoever stores figures of the same checkpoint meanwhile waits until the transaction ends.
    """
    # Two that delete what they see and then insert would write the same keys. SQLite knows no row locks and needs none:
    # a write transaction locks the whole database.
    session.execute(sa.select(Checkpoint.id).where(Checkpoint.id == checkpoint_id).with_for_update(key_share=True))
    session.execute(sa.delete(Evaluation).where(Evaluation.checkpoint_id == checkpoint_id, Evaluation.split == split))
    rows = [(metric, ALL_CLASSES, value) for metric, value in figures.overall.items()]
    for item in figures.classes:
        pairs = {
            "iou": item.iou,
            "dice": item.dice,
            "accuracy": item.accuracy,
            "truth_pixels": float(item.truth_pixels),
            "smoothed_iou": item.smoothed_iou,
            "smoothed_dice": item.smoothed_dice,
        }
        rows += [(metric, item.name, value) for metric, value in pairs.items() if value is not None]
    when = now()
    for metric, class_name, value in filter(lambda row: math.isfinite(row[2]), rows):
        session.add(
            Evaluation(
                checkpoint_id=checkpoint_id,
                split=split,
                metric=metric,
                class_name=class_name,
                value=value,
                num_images=figures.num_images,
                evaluated_at=when,
            )
        )
    session.flush()


def evaluations(session: Session, checkpoint_id: int, split: Split) -> list[Evaluation]:
    """The stored figures of a checkpoint on a split."""
    statement = sa.select(Evaluation).where(Evaluation.checkpoint_id == checkpoint_id, Evaluation.split == split)
    return list(session.scalars(statement))


def overview(session: Session) -> list[dict[str, Any]]:
    """Every checkpoint with its training size, validation mIoU, last decision and description, newest first."""
    current = champion(session)
    iou = sa.select(Evaluation.value).where(
        Evaluation.checkpoint_id == Checkpoint.id,
        Evaluation.split == Split.VAL,
        Evaluation.metric == "mean_iou",
        Evaluation.class_name == ALL_CLASSES,
    )
    trained = sa.select(sa.func.max(TrainingRun.num_images)).where(TrainingRun.checkpoint_id == Checkpoint.id)
    last = sa.select(sa.func.max(Promotion.id)).where(Promotion.checkpoint_id == Checkpoint.id).correlate(Checkpoint)
    statement = (
        sa.select(
            Checkpoint.id,
            Checkpoint.model_version,
            Checkpoint.location,
            trained.scalar_subquery().label("num_images"),
            iou.scalar_subquery().label("mean_iou"),
            Promotion.decision,
            Promotion.reason,
            Checkpoint.created_at,
            Checkpoint.spec,
        )
        .outerjoin(Promotion, Promotion.id == last.scalar_subquery())
        .order_by(Checkpoint.id.desc())
    )
    rows = [row._asdict() for row in session.execute(statement)]
    return [row | {"champion": current is not None and row["id"] == current.id} for row in rows]
