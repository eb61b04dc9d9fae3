"""What a person wants to see in the morning, read in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from activeseg.config import Settings
from activeseg.db import checkpoints, history, jobs
from activeseg.db.history import DecisionRow, WaitingRequest
from activeseg.db.jobs import RunRecord
from activeseg.db.rankings import RankingRow, ranking
from activeseg.db.status import read_status

IMAGES = 12
RUNS = 10
TRAININGS = 30
REQUESTS = 5


@dataclass(frozen=True, slots=True)
class Morning:
    """status: as `read_status` tells it. night: the last round's run. curve: (training images, mIoU), oldest first."""

    status: dict[str, Any]
    night: RunRecord | None
    decision: DecisionRow | None
    curve: list[tuple[int, float]]
    ranking: list[RankingRow]
    runs: list[RunRecord]
    requests: list[WaitingRequest]


def read_morning(session: Session, settings: Settings) -> Morning:
    """All of the page. Few rows each, whatever the pool's size."""
    champion = checkpoints.champion(session)
    return Morning(
        status=read_status(session, settings),
        night=next((run for run in jobs.last_of_each(session) if run.job == "round"), None),
        decision=history.last_decision(session),
        curve=history.learning_curve(session, limit=TRAININGS),
        ranking=ranking(session, champion, limit=IMAGES) if champion else [],
        runs=jobs.history(session, limit=RUNS),
        requests=history.waiting_requests(session, limit=REQUESTS),
    )
