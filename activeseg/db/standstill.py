"""Why no round can be opened, and why a checkpoint is not judged yet."""

from __future__ import annotations

import os
from itertools import islice

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.config import Settings
from activeseg.db import candidates, checkpoints, drift, images, rounds
from activeseg.db.models import Image, ImageStatus, Query, QueryStatus, Split
from activeseg.wording import counted

_LOOKED_INTO = 1000


def why_no_round(session: Session, settings: Settings) -> str:
    """The reason that holds, what to do, and which checkpoints wait meanwhile. Ask where no round could be opened."""
    waits = why_undecided(session, settings)
    return _reason(session, settings) + ("" if waits is None else f"; {waits}")


def why_undecided(session: Session, settings: Settings) -> str | None:
    """Which checkpoints wait for the planned `promote`; None where none does, or where they are judged after training."""
    if (planned := settings.schedule.promote) is None or not (waiting := checkpoints.undecided(session)):
        return None
    names, verb = [row.model_version for row in waiting], "waits" if len(waiting) == 1 else "wait"
    return f'{", ".join(names)} {verb} for `promote` ([schedule] promote = "{planned}"; `activeseg promote` judges at once)'


def _reason(session: Session, settings: Settings) -> str:
    if (held := drift.held(session, settings.drift, "push")) is not None:
        return f"a new round {held}"
    open_tasks, limit = rounds.open_tasks(session), settings.selection.max_open_tasks
    if open_tasks >= limit:
        return (
            f"{counted(open_tasks, 'task')} open, and [selection] max_open_tasks allows {limit}: annotate some and run "
            "`activeseg pull`, or raise it"
        )
    if free := len(candidates.unscored_candidates(session)):
        return f"the champion has not scored the {counted(free, 'image')} left to ask about: run `activeseg score`"
    told = [f"{count} {what}" for what, count in _whereabouts(session).items() if count]
    if not told:
        return why_empty(settings)
    return f"no image is left to ask about ({', '.join(told)}): add images to the pool and run `activeseg pool sync`"


def why_empty(settings: Settings) -> str:
    """What to do where no image of the pool is known: a sync that finds none leaves no row, so what lies there decides."""
    place = settings.images_uri
    if "://" in place:
        return f"nothing of {place} was read yet: run `activeseg pool sync`, which says where it is empty"
    if _holds_files(place):
        return f"what lies in {place} was not read yet: run `activeseg pool sync` or `activeseg round run`"
    return f"the pool is empty: put images into {place} and run `activeseg pool sync`"


def _holds_files(folder: str) -> bool:
    """Whether a file that is not hidden lies in one of the first folders that are met; only a sync looks at them all."""
    met = islice(os.walk(folder), _LOOKED_INTO)
    return any(not name.startswith(".") for _, _, names in met for name in names)


def _whereabouts(session: Session) -> dict[str, int]:
    """What became of the pool's images where none may be asked about."""
    statement = sa.select(Query.status, sa.func.count()).group_by(Query.status)
    asked = {row[0]: row[1] for row in session.execute(statement)}
    pool = {status: count for (split, status), count in images.count_by_status(session).items() if split == Split.POOL}
    taken = sa.exists().where(Query.image_id == Image.id, Query.status != QueryStatus.WITHDRAWN)
    idle = sa.select(sa.func.count()).where(Image.split == Split.POOL, Image.status == ImageStatus.ACTIVE, ~taken)
    return {
        "annotated": asked.get(QueryStatus.ANNOTATED, 0),
        "skipped": asked.get(QueryStatus.SKIPPED, 0),
        "waiting for annotators": sum(asked.get(status, 0) for status in rounds.OPEN),
        "quarantined": pool.get(ImageStatus.QUARANTINED, 0),
        "missing": pool.get(ImageStatus.MISSING, 0),
        "kept back because their clip or a copy validates": session.scalar(idle) or 0,
    }
