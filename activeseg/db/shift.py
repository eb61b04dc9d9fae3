"""The judgement of a scoring run: what it scored against what was scored before, and how much of it could not be read.

Compared are mean entropies under one configuration: of the images that came since the configuration had last scored the
whole pool, and of the pool as it was then. Before that there is nothing to compare with: what a budget left undone was not
drawn at random, but taken by number or by an older ranking.

It costs little, however many scores there are. The run keeps a sample of its own values as it writes them.
Of those before it, up to EVERY are read; of more, rows are looked up by their primary key at DRAWS image numbers drawn at
random.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.config import DriftSection
from activeseg.core.shift import Reservoir, Shift, Values, stability_index
from activeseg.db import scores
from activeseg.db.drift import REMEDY
from activeseg.db.images import blocks
from activeseg.db.models import Score, ScoringRun
from activeseg.db.models.columns import now
from activeseg.wording import counted

SAMPLE = 5_000
"""Values compared at most, on each side: of equal distributions they come to an index of 0.004 on average."""
EVERY = 50_000
DRAWS = 4 * SAMPLE
_ENOUGH = SAMPLE // 10
_COMPLETE = 1 - 1e-9
_LONGEST = 500


@dataclass(frozen=True, slots=True)
class Judgement:
    """shift: the stability index; None where there was too little to compare. drift: the limits passed, None for none."""

    shift: float | None
    drift: str | None


def gathering(run_id: int) -> Reservoir:
    """What a run keeps of its values."""
    return Reservoir(SAMPLE, seed=run_id)


def judge(session: Session, run: ScoringRun, gathered: Reservoir, rules: DriftSection) -> Judgement:
    """Judge a run that is at its end. gathered: the mean entropies of what it scored.

    What runs before it left unfinished (killed, failed) counts as its own: those images are as new.
    """
    unfinished = _unfinished(session, run)
    done, failed = (sum(getattr(one, name) for one in (*unfinished, run)) for name in ("images_done", "images_failed"))
    shift = _shift(session, run, gathered, [one.id for one in unfinished if one.images_done], rules)
    found = [_of_shift(shift, gathered.seen, rules), _of_failures(done + failed, failed, rules)]
    passed = "; ".join(filter(None, found))
    told = f"{passed[: _LONGEST - len(REMEDY)]}{REMEDY}" if passed else None
    return Judgement(None if shift is None else shift.index, told)


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What is to be written of a run that did not come to judge itself."""

    run_id: int
    judged: Judgement
    coverage: float


def conclude(session: Session, config: int, rules: DriftSection) -> Conclusion | None:
    """Judge the last run of a configuration with nothing left to score, if it was killed before it did so itself.

    Writes nothing: see `write_conclusion`.
    """
    same = sa.select(ScoringRun).where(ScoringRun.scoring_config_id == config)
    run = session.scalar(same.order_by(ScoringRun.id.desc()).limit(1))
    if run is None or run.coverage is not None or not run.images_done:
        return None
    gathered = gathering(run.id)
    gathered.extend(_values(session, config, Score.scoring_run_id == run.id))
    judged = judge(session, run, gathered, rules)
    return Conclusion(run.id, judged, scores.coverage(session, config))


def write_conclusion(session: Session, found: Conclusion) -> None:
    """End the run, unless that was done meanwhile."""
    run = session.get_one(ScoringRun, found.run_id, with_for_update=True)
    if run.coverage is None:
        run.shift, run.drift, run.coverage, run.ended_at = found.judged.shift, found.judged.drift, found.coverage, now()


def _of_shift(shift: Shift | None, images: int, rules: DriftSection) -> str | None:
    if shift is None or not shift.exceeds(rules.max_shift):
        return None
    before, after = shift.medians
    return (
        f"the mean entropy of {counted(images, 'new image')} is not that of the pool before: population stability index "
        f"{shift.index:.2f}, [drift] max_shift is {rules.max_shift:g} (median {before:.3g} -> {after:.3g} nats)"
    )


def _of_failures(images: int, failed: int, rules: DriftSection) -> str | None:
    if images < rules.min_images or failed <= rules.max_quarantined * images:
        return None
    return (
        f"{failed} of {counted(images, 'image')} could not be read ({failed / images:.0%}), [drift] max_quarantined is "
        f"{rules.max_quarantined:.0%}"
    )


def _unfinished(session: Session, run: ScoringRun) -> list[ScoringRun]:
    """Runs with the same configuration between the last one that ended and this one."""
    same = ScoringRun.scoring_config_id == run.scoring_config_id, ScoringRun.id < run.id
    ended = session.scalar(sa.select(sa.func.max(ScoringRun.id)).where(*same, ScoringRun.coverage.is_not(None))) or 0
    return list(session.scalars(sa.select(ScoringRun).where(*same, ScoringRun.id > ended).order_by(ScoringRun.id)))


def _shift(session: Session, run: ScoringRun, gathered: Reservoir, unfinished: list[int], rules: DriftSection) -> Shift | None:
    complete = sa.select(sa.func.max(ScoringRun.id)).where(
        ScoringRun.scoring_config_id == run.scoring_config_id, ScoringRun.id < run.id, ScoringRun.coverage >= _COMPLETE
    )
    if (base := session.scalar(complete)) is None:
        return None
    if unfinished:  # they have no index of their own; this is read after a kill only
        gathered.extend(_values(session, run.scoring_config_id, Score.scoring_run_id.in_(unfinished)))
    if gathered.seen < rules.min_images:
        return None
    before = _before(session, run.scoring_config_id, base)
    return None if len(before) < rules.min_images else stability_index(before, gathered.values())


def _before(session: Session, config: int, base: int) -> Values:
    """A sample of the mean entropies that runs up to `base` wrote, without those of runs whose drift nobody has accepted:
    images that are not like the pool would make those that are like it stand out.
    """
    theirs = sa.select(ScoringRun.id).where(ScoringRun.scoring_config_id == config, ScoringRun.drift.is_not(None))
    apart = list(session.scalars(theirs))
    of_pool = (ScoringRun.scoring_config_id == config, ScoringRun.id <= base, ScoringRun.id.not_in(apart))
    written = session.scalar(sa.select(sa.func.sum(ScoringRun.images_done)).where(*of_pool)) or 0
    counts = (Score.scoring_run_id <= base, Score.scoring_run_id.not_in(apart))
    drawn = np.empty(0) if written <= EVERY else _drawn(session, config, counts)
    if len(drawn) >= _ENOUGH:
        return drawn
    every = Reservoir(SAMPLE, seed=base)
    every.extend(_values(session, config, *counts))
    return every.values()


def _drawn(session: Session, config: int, counts: Iterable[sa.ColumnElement[bool]]) -> Values:
    """The scores of images drawn by number, SAMPLE at most: numbers nothing has cost a look-up and say nothing."""
    ours = Score.scoring_config_id == config
    # Two statements: SQLite finds one end at a time in the index, both together by reading everything.
    first, last = (session.scalar(sa.select(end(Score.image_id)).where(ours)) for end in (sa.func.min, sa.func.max))
    if first is None or last is None:
        return np.empty(0)
    numbers = np.random.default_rng(config).integers(first, last, size=DRAWS, endpoint=True)
    found: list[float] = []
    for block in blocks(list(dict.fromkeys(numbers.tolist()))):
        found += _values(session, config, Score.image_id.in_(block), *counts)
        if len(found) >= SAMPLE:
            break
    return np.array(found[:SAMPLE])


def _values(session: Session, config: int, *conditions: sa.ColumnElement[bool]) -> Iterable[float]:
    statement = sa.select(Score.entropy_mean).where(Score.scoring_config_id == config, *conditions)
    return session.scalars(statement, execution_options={"yield_per": 10_000})
