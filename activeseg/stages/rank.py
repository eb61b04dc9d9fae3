"""scores -> queries: chooses the images of a round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from activeseg.config.strategies import Strategy
from activeseg.core.acquisition import acquisition_values
from activeseg.core.cells import doubtful_cells
from activeseg.core.clips import NONE, ClipLimits, frame_number
from activeseg.core.cold_start import select_spread
from activeseg.core.diversity import Load, Vectors, k_center, k_means_plus_plus
from activeseg.core.ranking import Limits, Picker, Ranking, power, softrank, top
from activeseg.core.selection import Selection, select_bootstrap, select_query
from activeseg.db import candidates, embeddings, rounds, scores
from activeseg.db.models import Round, RoundStatus
from activeseg.db.statistics import statistics
from activeseg.records import QueryItem, StageReport
from activeseg.workspace import Workspace

CHOICE = ("noise_beta", "min_frame_gap", "max_per_group", "partial_cells")
"""Keys of [selection] that a round keeps, beside those it has columns for: what is set later does not change it."""


def rank_round(workspace: Workspace, round_id: int) -> StageReport:
    """Choose the images of an open round and write its queries; a round that has them already is left alone.

    Where no image may be asked about any more, the round is closed. The report says how many images are there in spite of
    `min_frame_gap` and `max_per_group`.
    """
    started = time.monotonic()
    while True:
        # Worked out while nobody waits for it: a large pool takes seconds, and who is stopped in here holds nothing.
        with workspace.database.read() as session:
            row = session.get_one(Round, round_id)
            details: dict[str, Any] = {"round": row.number, "acquisition": row.acquisition}
            if row.status != RoundStatus.OPEN:
                return StageReport("rank", seconds=time.monotonic() - started, details=details)
            selection = _choose(session, row)
            cells = _cells(session, row, selection.items)
            if row.scoring_config_id is not None and _limited(row.selection or {}) and not candidates.any_grouped(session):
                details["gap and cap bind nothing"] = "no image has a clip or site, see [pool] group_pattern"
        # Else once more: each time an image has left the pool or the round is another, so this ends.
        if _written(workspace, row, selection.items, cells):
            break
    if not selection.items:
        details["closed"] = True
    if selection.filled:
        details["in spite of gap or cap"] = selection.filled
    return StageReport("rank", len(selection.items), 0, time.monotonic() - started, details)


def _written(workspace: Workspace, row: Round, items: Sequence[QueryItem], cells: Mapping[int, Sequence[int]]) -> bool:
    """Write a round's query, or close it without one; False, and nothing written, where what it was chosen by has changed."""
    with workspace.database.write() as session:
        held = session.get_one(Round, row.id, with_for_update=True)
        if _asked_for(held) != _asked_for(row) or not candidates.all_free(session, [item.image_id for item in items]):
            return False
        if items:
            rounds.insert_queries(session, held, items, cells)
        else:
            rounds.close_empty(session, held.id)
    return True


def _asked_for(row: Round) -> tuple[Any, ...]:
    """All of a round that its choice follows from."""
    how = row.scoring_config_id, row.acquisition, row.query_size, row.control_share, row.seed, row.selection
    return row.status, *how


def _limited(parameters: Mapping[str, Any]) -> bool:
    return bool(parameters.get("min_frame_gap") or parameters.get("max_per_group"))


def _cells(session: Session, row: Round, items: Sequence[QueryItem]) -> dict[int, list[int]]:
    """image id -> the cells that are asked about, in both arms alike; empty where the whole image is."""
    count = int((row.selection or {}).get("partial_cells", 0))
    if not count or row.scoring_config_id is None:
        return {}
    grids = scores.grids(session, row.scoring_config_id, [item.image_id for item in items])
    return {image_id: doubtful_cells(grid, count) for image_id, grid in grids.items()}


def choose_images(session: Session, row: Round) -> list[QueryItem]:
    """A round's images in shown order: by its strategy, or at random where there is no model yet (bootstrap).

    Raises ConfigError for a strategy this version does not know, NonFiniteScoreError for one whose statistic is missing.
    """
    return _choose(session, row).items


def _choose(session: Session, row: Round) -> Selection:
    if row.scoring_config_id is None:
        return Selection(_first_query(session, row))
    strategy, parameters = Strategy.parse(row.acquisition), row.selection or {}
    # A random query is ranked too: its control arm tells what the ranking would have been worth.
    base = "entropy_sum" if strategy.base == "random" else strategy.base
    pool = statistics(session, row.scoring_config_id, base)
    ranking = Ranking.of(pool.image_ids, acquisition_values(base, pool), base)
    if not len(ranking):
        return Selection([])
    return select_query(
        ranking,
        row.query_size,
        # Whoever opened the round: a random query is a control arm altogether.
        control_share=1.0 if strategy.base == "random" else row.control_share,
        seed=row.seed,
        pick=_picker(session, row, strategy, parameters, ranking),
        limits=_limits(session, parameters, ranking),
    )


def _first_query(session: Session, row: Round) -> list[QueryItem]:
    groups, parameters = candidates.unscored_candidates(session), row.selection or {}
    if groups and "embedder" in parameters:  # the stage embed has prepared the round
        embedder = embeddings.embedder(session, parameters["embedder"])
        embedded, features = embeddings.load(session, embedder, list(groups))
        validation = int(parameters.get("val_size", 0))
        return select_spread(groups, embedded, features, row.query_size, validation=validation, seed=row.seed)
    return select_bootstrap(groups, row.query_size, seed=row.seed, groups=groups) if groups else []


def _picker(session: Session, row: Round, strategy: Strategy, parameters: Mapping[str, Any], ranking: Ranking) -> Picker:
    beta = float(parameters.get("noise_beta", 1.0))
    if strategy.noise == "power":
        return power(ranking, beta=beta, seed=row.seed)
    if strategy.noise == "softrank":
        return softrank(ranking, beta=beta, seed=row.seed)
    if strategy.diversity == "kcenter":
        known = [place.image_id for place in candidates.asked(session)]
        return k_center(ranking, _loader(session, row, embeddings.FEATURES), known, weighted=strategy.weighted)
    if strategy.diversity == "badge":
        return k_means_plus_plus(ranking, _loader(session, row, embeddings.GRADIENTS), seed=row.seed)
    return top(ranking)


def _loader(session: Session, row: Round, name: str) -> Load:
    """Embeddings the round's scoring configuration gave; where an older version scored there are none."""
    found = embeddings.find_embedder(session, name.format(row.scoring_config_id))
    return _nothing if found is None else partial(embeddings.load, session, found)


def _nothing(image_ids: Sequence[int]) -> tuple[list[int], Vectors]:
    return [], np.empty((0, 1), dtype=np.float32)


def _limits(session: Session, parameters: Mapping[str, Any], ranking: Ranking) -> Limits:
    gap, most = int(parameters.get("min_frame_gap", 0)), int(parameters.get("max_per_group", 0))
    if not gap and not most:
        return Limits(len(ranking))
    numbers: dict[str, int] = {}
    clips, frames = np.full((2, len(ranking)), NONE, dtype=np.int64)
    place_of = {image_id: place for place, image_id in enumerate(ranking.image_ids.tolist())}
    for image_id, uri, group in candidates.places(session, place_of):
        if group is not None:
            clips[place_of[image_id]] = numbers.setdefault(group, len(numbers))
            frames[place_of[image_id]] = _frame(uri)
    asked: dict[int, list[int]] = {}
    for _, uri, group in candidates.asked(session) if gap else ():
        if group in numbers and (frame := _frame(uri)) != NONE:
            asked.setdefault(numbers[group], []).append(frame)
    return ClipLimits(clips, frames, min_frame_gap=gap, max_per_group=most, asked=asked)


def _frame(uri: str) -> int:
    number = frame_number(uri)
    return NONE if number is None else number
