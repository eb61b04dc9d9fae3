"""The answers of both arms as the control arm's report takes them: what was asked, what came back, what does not count."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.control import Answer
from activeseg.core.findings import Counts, Findings, find
from activeseg.core.selection import CHOSEN, CONTROL
from activeseg.db import truth
from activeseg.db.images import blocks
from activeseg.db.models import (
    Annotation,
    AnnotationStatus,
    Checkpoint,
    Prediction,
    Query,
    QueryStatus,
    Round,
    Score,
    ScoringConfig,
    Task,
)

_RANK = re.compile(r"\brank (\d+) of (\d+)\b")

STAMPED = "rubber stamps"
QUARANTINED = "quarantined"
NOT_SHOWN = "without a prediction that was shown"
BOOTSTRAP = "of rounds without a model"


def findings(session: Session, *, first: int | None = None, last: int | None = None) -> Findings:
    """The report on rounds `first` to `last` (their numbers, both included; None: no limit)."""
    within = [Round.number >= first] if first is not None else []
    within += [Round.number <= last] if last is not None else []
    asked = _asked(session, within)
    drawn = _drawn(session, [row.id for row in asked])
    left_out = Counter({BOOTSTRAP: _bootstrapped(session, within)})
    shown = _shown(session, asked)
    expected = _expected(session, [row for row in asked if row.id in drawn and row.cells is None], shown)
    answers = []
    for row in asked:
        left_out.update(_unusable(drawn.get(row.id, [])))
        shares = [one.changed_share for one in drawn.get(row.id, []) if _usable(one) and one.changed_share is not None]
        if shares:  # of several annotators' the last, as in the data set
            # After a promotion the mask is the new champion's, and the rank still the former one's.
            other = shown.get(row.prediction_id, row.checkpoint_id) != row.checkpoint_id
            rank = None if other else percentile(row.rank, row.reason)
            answers.append(Answer(row.number, row.arm == CHOSEN, shares[-1], rank, expected.get(row.id)))
    chosen, control = (_counted(row.status for row in asked if row.arm == arm) for arm in (CHOSEN, CONTROL))
    rounds = len({row.number for row in asked})
    told = {why: count for why, count in left_out.items() if count}
    return find(answers, chosen, control, told, rounds=rounds, overlap=_overlaps(session, asked))


def _asked(session: Session, within: Sequence[sa.ColumnElement[bool]]) -> Sequence[Any]:
    """Queries that were chosen with a model and sent, by round."""
    columns = (Query.id, Query.image_id, Query.arm, Query.status, Query.rank, Query.reason, Query.cells, Task.prediction_id)
    of_round = (Round.number, Round.scoring_config_id, ScoringConfig.checkpoint_id)
    statement = sa.select(*columns, *of_round).join(Round, Round.id == Query.round_id)
    statement = statement.join(ScoringConfig, ScoringConfig.id == Round.scoring_config_id)
    statement = statement.outerjoin(Task, Task.query_id == Query.id).where(*within)
    sent = Query.status.not_in((QueryStatus.SELECTED, QueryStatus.WITHDRAWN))
    return session.execute(statement.where(sent).order_by(Round.number, Query.id)).all()


def _bootstrapped(session: Session, within: Sequence[sa.ColumnElement[bool]]) -> int:
    """Annotated images of rounds without a model: what was corrected there says nothing of one."""
    statement = sa.select(sa.func.count()).select_from(Query).join(Round, Round.id == Query.round_id)
    without = (Round.scoring_config_id.is_(None), Query.status == QueryStatus.ANNOTATED)
    return session.scalar(statement.where(*without, *within)) or 0


def _counted(statuses: Iterable[QueryStatus]) -> Counts:
    number = Counter(statuses)
    return Counts(number[QueryStatus.ANNOTATED], number[QueryStatus.SKIPPED], number[QueryStatus.PUSHED])


def _drawn(session: Session, query_ids: Sequence[int]) -> dict[int, list[Annotation]]:
    """query id -> what people drew, in its newest version, oldest first; skipped and deleted annotations are left out."""
    found: dict[int, list[Annotation]] = {}
    rows = truth.newest_of_queries(session, query_ids)
    for row in sorted(rows, key=lambda row: (truth.moment_of(row), row.id)):
        if row.query_id is not None and row.status in (AnnotationStatus.VALID, AnnotationStatus.QUARANTINED):
            found.setdefault(row.query_id, []).append(row)
    return found


def _usable(row: Annotation) -> bool:
    return row.status == AnnotationStatus.VALID and row.changed_share is not None and not row.rubber_stamp


def _unusable(rows: Sequence[Annotation]) -> Iterable[str]:
    """Why each of these annotations does not count."""
    for row in rows:
        if row.status == AnnotationStatus.QUARANTINED:
            yield QUARANTINED
        elif row.rubber_stamp:
            yield STAMPED
        elif row.changed_share is None:
            yield NOT_SHOWN


def percentile(rank: int | None, reason: str) -> float | None:
    """0 for the last candidate of the round, 1 for the first; what ranks were given among is told by the reason only."""
    found = _RANK.search(reason)
    if rank is None or found is None or int(found[2]) < 2:
        return None
    return 1 - (rank - 1) / (int(found[2]) - 1)


def _shown(session: Session, asked: Sequence[Any]) -> dict[int | None, int]:
    """prediction id -> the checkpoint that drew it: after a promotion, open tasks are shown the new champion's mask."""
    shown: dict[int | None, int] = {}
    for block in blocks(sorted({row.prediction_id for row in asked if row.prediction_id is not None})):
        made = sa.select(Prediction.id, Prediction.checkpoint_id).where(Prediction.id.in_(block))
        shown |= {prediction: checkpoint for prediction, checkpoint in session.execute(made) if checkpoint is not None}
    return shown


def _expected(session: Session, asked: Sequence[Any], shown: Mapping[int | None, int]) -> dict[int, float]:
    """query id -> share of wrong pixels expected by the checkpoint whose mask was shown, under the last configuration it
    scored the image with."""
    expected: dict[tuple[int, int], float] = {}
    for block in blocks(sorted({row.image_id for row in asked if row.prediction_id in shown})):
        statement = sa.select(Score.image_id, ScoringConfig.checkpoint_id, Score.least_confidence_mean)
        statement = statement.join(ScoringConfig, ScoringConfig.id == Score.scoring_config_id)
        statement = statement.where(Score.image_id.in_(block)).order_by(Score.scoring_config_id)
        expected |= {(image_id, checkpoint): share for image_id, checkpoint, share in session.execute(statement)}
    keys = ((row.id, (row.image_id, shown.get(row.prediction_id))) for row in asked)
    return {query_id: expected[key] for query_id, key in keys if key in expected}


def _overlaps(session: Session, asked: Sequence[Any]) -> bool:
    """Whether classes overlap for any checkpoint these rounds were chosen by."""
    configs = sorted({row.scoring_config_id for row in asked})
    statement = sa.select(Checkpoint.spec).join(ScoringConfig, ScoringConfig.checkpoint_id == Checkpoint.id)
    specs = [spec for block in blocks(configs) for spec in session.scalars(statement.where(ScoringConfig.id.in_(block)))]
    return any(bool(spec.get("label_set", {}).get("overlap")) for spec in specs)
