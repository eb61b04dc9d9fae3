"""Where everything stands, for `activeseg status` and the API."""

from __future__ import annotations

from dataclasses import asdict
from datetime import tzinfo
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.config import Settings
from activeseg.db import (
    alerts,
    annotators,
    candidates,
    checkpoints,
    drift,
    groups,
    images,
    jobs,
    quarantine,
    rounds,
    scores,
    splits,
    truth,
)
from activeseg.db.models import (
    Image,
    ImageStatus,
    JobOutcome,
    JournalState,
    PushJournal,
    RoundStatus,
    Split,
)
from activeseg.db.models.columns import now
from activeseg.db.rankings import latest_scoring_config
from activeseg.db.standstill import why_empty, why_no_round, why_undecided
from activeseg.wording import counted, moment

ROUNDS_SHOWN = 10
QUARANTINED_SHOWN = 5


def read_status(session: Session, settings: Settings) -> dict[str, Any]:
    """Champion, images, annotations, coverage, the last rounds, what happens next, annotators and what went wrong."""
    champion = checkpoints.champion(session)
    counts = images.count_by_status(session)
    last = jobs.last_of_each(session)
    return {
        "champion": _champion(session),
        "images": {_name(split, status): count for (split, status), count in sorted(counts.items())},
        "annotations": len(truth.current(session)),
        "annotations_by_split": {split.value: count for split, count in splits.annotated(session).items()},
        "new_annotations": truth.untrained(session),
        "coverage": _coverage(session, champion.id) if champion else None,
        "rounds": _rounds(session),
        "next": _next(session, settings),
        "quarantined": _quarantined(session),
        "jobs": [asdict(one) for one in last],
        "annotators": (people := annotators.overview(session)),
        "problems": [
            *_problems(session),
            *_cut_short(last, settings.zone, told={row.error for row in rounds.stopped(session)}),
            *_drift(session, settings),
            *_groups(session),
            *_alerts(session),
            *_rubber_stamps(people, settings.labelstudio.rubber_stamp_seconds),
        ],
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


def _quarantined(session: Session) -> dict[str, Any]:
    count, latest = quarantine.quarantined(session, limit=QUARANTINED_SHOWN)
    return {"annotations": count, "latest": [asdict(one) for one in latest]}


def _next(session: Session, settings: Settings) -> list[str]:
    """What a person, or the next `activeseg round run`, will do."""
    lines = []
    open_tasks = rounds.tasks_with_annotators(session)
    if open_tasks:
        where = "Label Studio" if settings.labelstudio.url else "`activeseg dataset import --split query`"
        lines.append(f"{counted(open_tasks, 'image')} to annotate ({where})")
    if waiting := splits.annotated(session)[Split.POOL]:
        lines.append(_division(waiting, splits.wait_ends_at(session, settings)))
    labeled = len(truth.current(session, split=Split.TRAIN))
    needed = settings.training.min_train
    if checkpoints.champion(session) is None and labeled < needed:
        more = counted(needed - labeled, "more annotated training image")
        lines.append(f"first training after {more} ({labeled} of {needed})")
    if checkpoints.champion(session) is not None and not truth.current(session, split=Split.VAL):
        lines.append("no validation images: nothing but the first checkpoint can be promoted (`activeseg dataset import`)")
    begun = rounds.unfinished(session, RoundStatus.OPEN, RoundStatus.SELECTED)
    lines += [f"round {row.number} goes on at '{row.status.value}' with `activeseg round run`" for row in begun]
    if not images.count_by_status(session):
        lines.insert(0, why_empty(settings))
    elif not open_tasks and not begun:
        left = candidates.has_candidates(session, None) and not drift.held(session, settings.drift, "push")
        opens = "`activeseg round run`, or the scheduler's next one, opens a round"
        lines.append(opens if left else why_no_round(session, settings))
    if (waits := why_undecided(session, settings)) is not None and not any(waits in line for line in lines):
        lines.append(waits)
    return lines


def _division(waiting: int, wanted: int | None) -> str:
    """What annotated images without a split wait for."""
    images_waiting = counted(waiting, "annotated image")
    if wanted is None:
        return f"{images_waiting} without a split: `activeseg round run` divides them into training and validation"
    return f"{images_waiting} of {wanted} to divide into training and validation; fewer will do when no task is open"


def _problems(session: Session) -> list[str]:
    lines = [f"round {row.number}: {row.error}" for row in rounds.stopped(session)]
    lines += _quarantined_images(session)
    total, latest = quarantine.quarantined(session, limit=QUARANTINED_SHOWN)
    lines += [f"annotation quarantined: {one.name}: {one.reason}" for one in latest]
    if total > len(latest):
        lines.append(f"{counted(total - len(latest), 'more annotation')} quarantined")
    doubtful = sa.select(sa.func.count()).select_from(PushJournal)
    doubtful = doubtful.where(PushJournal.state.in_([JournalState.INTENDED, JournalState.DOUBT]))
    if count := session.scalar(doubtful):
        lines.append(f"{counted(count, 'sending call')} ended in doubt; the next push looks the tasks up")
    return lines


def _cut_short(last: list[jobs.RunRecord], zone: tzinfo, *, told: set[str | None]) -> list[str]:
    """Jobs whose last run failed or died. told: errors of rounds, which the job that met them need not repeat."""
    bad = (JobOutcome.FAILED, JobOutcome.ABANDONED)
    return [
        f"{one.job} {one.outcome} ({moment(one.started_at, zone)}): {one.message or 'nothing is known'}"
        for one in last
        if one.outcome in bad and not (one.job in ("round", "push") and one.message in told)
    ]


def _drift(session: Session, settings: Settings) -> list[str]:
    told = drift.problem(session, settings.drift)
    return [told] if told else []


def _groups(session: Session) -> list[str]:
    """Clips and sites that leak: a person imported them into both splits, or their names came after the splits."""
    told = groups.told_in_both(session)
    return [f"{groups.IN_BOTH}: {told}; figures on the validation split flatter the model"] if told else []


def _alerts(session: Session) -> list[str]:
    """Alerts that were tried and not sent: those that are tried again, and those given up, each with the youngest's reason."""
    at, lines = now(), []
    waiting = [(row, alerts.given_up(row, at)) for row in alerts.unsent(session, at)]
    for gave_up, what in ((False, "could not be sent yet"), (True, "could not be sent for a day and will not be tried again")):
        rows = [row for row, over in waiting if over is gave_up]
        if rows:
            reason = "; ".join((rows[0].error or "").splitlines())
            lines.append(f"{counted(len(rows), 'alert')} {what} ({reason}): see `activeseg alerts`")
    return lines


def _rubber_stamps(people: list[dict[str, Any]], seconds: float) -> list[str]:
    return [
        f"annotator {one['annotator'] or 'without a name'}: {one['rubber_stamps']} of {counted(one['annotations'], 'mask')} "
        f"unchanged within {seconds:g} s on uncertain images"
        for one in people
        if one["rubber_stamps"]
    ]


def _quarantined_images(session: Session) -> list[str]:
    """The commonest reasons, each with one image."""
    statement = sa.select(Image.reason, sa.func.count(), sa.func.min(Image.uri)).group_by(Image.reason)
    statement = statement.where(Image.status == ImageStatus.QUARANTINED).order_by(sa.func.count().desc()).limit(3)
    return [
        f"{counted(count, 'image')} quarantined{f', such as {uri}' if count > 1 else f', {uri}'}: {reason}"
        for reason, count, uri in session.execute(statement)
    ]
