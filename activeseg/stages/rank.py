"""scores -> queries: chooses the images of a round."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.orm import Session

from activeseg.core.acquisition import rank_images
from activeseg.core.selection import select_bootstrap, select_query
from activeseg.db import rounds, scores
from activeseg.db.models import Round, RoundStatus
from activeseg.records import QueryItem, StageReport
from activeseg.workspace import Workspace


def rank_round(workspace: Workspace, round_id: int) -> StageReport:
    """Choose the images of an open round and write its queries; a round that has them already is left alone.

    Where no image may be asked about any more, the round is closed.
    """
    started = time.monotonic()
    with workspace.database.write() as session:
        row = session.get_one(Round, round_id)
        details: dict[str, Any] = {"round": row.number, "acquisition": row.acquisition}
        if row.status != RoundStatus.OPEN:
            return StageReport("rank", seconds=time.monotonic() - started, details=details)
        items = choose_images(session, row)
        if items:
            rounds.insert_queries(session, row, items)
        else:
            rounds.close_empty(session, row.id)
            details["closed"] = True
    return StageReport("rank", len(items), 0, time.monotonic() - started, details)


def choose_images(session: Session, row: Round) -> list[QueryItem]:
    """A round's images in shown order: by summed entropy, or at random where there is no model yet (bootstrap)."""
    if row.scoring_config_id is None:
        groups = scores.unscored_candidates(session)
        return select_bootstrap(groups, row.query_size, seed=row.seed, groups=groups) if groups else []
    ranking = rank_images((item.image_id, item.score) for item in scores.candidates(session, row.scoring_config_id))
    return select_query(ranking, row.query_size, control_share=row.control_share, seed=row.seed) if ranking else []
