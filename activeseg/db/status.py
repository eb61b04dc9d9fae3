"""Where everything stands, for `activeseg status` and the API."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.config import Settings
from activeseg.db import annotators, checkpoints, images, rounds, scores, truth
from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    Image,
    ImageStatus,
    JournalState,
    PushJournal,
    Round,
    RoundStatus,
    Split,
)
from activeseg.db.rankings import latest_scoring_config

ROUNDS_SHOWN = 10


def read_status(session: Session, settings: Settings) -> dict[str, Any]:
    """Champion, images, annotations, coverage, the last rounds, what happens next, annotators and what went wrong."""
    champion = checkpoints.champion(session)
    counts = images.count_by_status(session)
    return {
        "champion": _champion(session),
        "images": {_name(split, status): count for (split, status), count in sorted(counts.items())},
        "annotations": len(truth.current(session)),
        "new_annotations": truth.untrained(session),
        "coverage": _coverage(session, champion.id) if champion else None,
        "rounds": _rounds(session),
        "next": _next(session, settings, counts),
        "annotators": (people := annotators.overview(session)),
        "problems": [*_problems(session), *_rubber_stamps(people, settings.labelstudio.rubber_stamp_seconds)],
    }


def _name(split: Split, status: ImageStatus) -> str:
    return split.value if status is ImageStatus.ACTIVE else f"{split.value} ({status.value})"


def _champion(session: Session) -> dict[str, Any] | None:
    row = next((row for row in checkpoints.overview(session) if row["champion"]), None)
    if row is None:
        return None
    since = session.execute(sa.text("SELECT since FROM champion").columns(since=_utc())).scalar()
    return {"model_version": row["model_version"], "mean_iou": row["mean_iou"], "since": since}


def _utc() -> Any:
    from activeseg.db.models.columns import UtcDateTime

    return UtcDateTime()


def _coverage(session: Session, checkpoint_id: int) -> float:
    config = latest_scoring_config(session, checkpoint_id)
    return scores.coverage(session, config) if config is not None else 0.0


def _rounds(session: Session) -> list[dict[str, Any]]:
    view = sa.table(
        "annotation_progress",
        *(sa.column(name) for name in ("round", "status", "acquisition", "images", "annotated", "skipped", "open")),
        sa.column("opened_at", _utc()),
    )
    statement = sa.select(view).order_by(view.c.round.desc()).limit(ROUNDS_SHOWN)
    return [dict(row) for row in session.execute(statement).mappings()]


def _next(session: Session, settings: Settings, counts: dict[tuple[Split, ImageStatus], int]) -> list[str]:
    """What a person, or the next `activeseg round run`, will do."""
    lines = []
    open_tasks = rounds.open_tasks(session)
    if open_tasks:
        where = "Label Studio" if settings.labelstudio.url else "`activeseg dataset import --split query`"
        lines.append(f"{open_tasks} images wait for annotators ({where})")
    labeled = len(truth.current(session, split=Split.TRAIN))
    needed = settings.training.min_train
    if checkpoints.champion(session) is None and labeled < needed:
        lines.append(f"first training after {needed - labeled} more annotated training images ({labeled} of {needed})")
    if checkpoints.champion(session) is not None and not truth.current(session, split=Split.VAL):
        lines.append("no validation images: nothing but the first checkpoint can be promoted (`activeseg dataset import`)")
    begun = rounds.unfinished(session, RoundStatus.OPEN, RoundStatus.SELECTED)
    lines += [f"round {row.number} goes on at '{row.status.value}' with `activeseg round run`" for row in begun]
    if not lines:
        lines.append("`activeseg round run` opens a round")
    return lines


def _problems(session: Session) -> list[str]:
    lines = [f"round {row.number}: {row.error}" for row in session.scalars(sa.select(Round).where(Round.error.is_not(None)))]
    lines += _counted(session, Image, ImageStatus.QUARANTINED, "images")
    lines += _counted(session, Annotation, AnnotationStatus.QUARANTINED, "annotations")
    doubtful = sa.select(sa.func.count()).select_from(PushJournal)
    doubtful = doubtful.where(PushJournal.state.in_([JournalState.INTENDED, JournalState.DOUBT]))
    if count := session.scalar(doubtful):
        lines.append(f"{count} sending calls ended in doubt; the next push looks their tasks up")
    return lines


def _rubber_stamps(people: list[dict[str, Any]], seconds: float) -> list[str]:
    return [
        f"annotator {one['annotator'] or 'without a name'}: {one['rubber_stamps']} of {one['annotations']} masks unchanged "
        f"within {seconds:g} s on uncertain images"
        for one in people
        if one["rubber_stamps"]
    ]


def _counted(session: Session, table: Any, status: Any, what: str) -> list[str]:
    statement = sa.select(table.reason, sa.func.count()).where(table.status == status).group_by(table.reason)
    rows = session.execute(statement.order_by(sa.func.count().desc()).limit(3))
    return [f"{count} {what} quarantined: {reason}" for reason, count in rows]
