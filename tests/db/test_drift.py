"""A run is judged against the pool as it was; what it blocks waits for a run within the limits or for a person."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import sqlalchemy as sa

from activeseg.config import DriftSection, Settings
from activeseg.core.shift import stability_index
from activeseg.db import alerts, drift, shift
from activeseg.db.database import Database
from activeseg.db.models import Image, ImageStatus, Score, ScoringRun, Split
from activeseg.db.models.columns import now
from activeseg.db.shift import Judgement
from activeseg.db.standstill import why_no_round
from activeseg.db.status import read_status
from tests.db.rows import Rows

RULES = DriftSection()
USUAL, MOVED = 0.3, 0.6


class Pool:
    """Scoring runs of one configuration, each over so many new images. What they find is drawn around a mean entropy."""

    def __init__(self, database: Database, rows: Rows) -> None:
        self.database, self.rows = database, rows
        self.config = rows.config(rows.checkpoint("fcn-1"))
        with database.write() as session:
            session.execute(sa.delete(ScoringRun))
        self.rng = np.random.default_rng(3)

    def scores(self, mean: float, count: int) -> list[float]:
        return self.rng.normal(mean, 0.05, count).clip(0).tolist()

    def images(self, count: int) -> list[int]:
        names = [f"{self.rows.next():064d}" for _ in range(count)]
        usual = {"size_bytes": 1, "width": 64, "height": 48, "split": Split.POOL, "status": ImageStatus.ACTIVE}
        rows = [Image(uri=name, sha256=name, **usual) for name in names]
        with self.database.write() as session:
            session.add_all(rows)
        return [row.id for row in rows]

    def run(
        self,
        values: Iterable[float],
        *,
        failed: int = 0,
        coverage: float | None = 1.0,
        killed: bool = False,
        rules: DriftSection = RULES,
    ) -> Judgement:
        """A run that wrote these mean entropies, judged as it ends unless it was killed before."""
        values = list(values)
        run = self.rows.run(self.config, images_done=len(values), images_failed=failed)
        images = self.images(len(values))
        with self.database.write() as session:
            session.add_all(self.rows.score_row(self.config, i, entropy_mean=v) for i, v in zip(images, values, strict=True))
            if killed:
                return Judgement(None, None)
            gathered = shift.gathering(run)
            gathered.extend(values)
            row = session.get_one(ScoringRun, run)
            judged = shift.judge(session, row, gathered, rules)
            row.shift, row.drift, row.coverage, row.ended_at = judged.shift, judged.drift, coverage, now()
        return judged

    def held(self, what: str, blocks: str) -> str | None:
        with self.database.read() as session:
            return drift.held(session, DriftSection(blocks=blocks), what)  # type: ignore[arg-type]


@pytest.fixture
def pool(database: Database, rows: Rows) -> Pool:
    return Pool(database, rows)


def test_new_images_like_the_pool_pass_and_others_are_told(pool: Pool) -> None:
    first = pool.scores(USUAL, 200)
    assert pool.run(first) == Judgement(None, None)  # nothing to compare with
    second, third = pool.scores(USUAL, 80), pool.scores(MOVED, 80)
    judged = pool.run(second)
    assert judged == Judgement(pytest.approx(stability_index(first, second).index), None)
    judged = pool.run(third)
    assert judged.shift == pytest.approx(stability_index(first + second, third).index)
    fourth = pool.scores(USUAL, 80)  # what nobody has accepted is no part of the pool
    assert pool.run(fourth) == Judgement(pytest.approx(stability_index(first + second, fourth).index), None)
    assert judged.drift is not None
    for part in ("80 new images", f"index {judged.shift:.2f}", "max_shift is 0.25", "(median 0.3", "`activeseg drift accept`"):
        assert part in judged.drift


def test_few_images_are_not_judged(pool: Pool) -> None:
    pool.run(pool.scores(USUAL, 200))
    assert pool.run(pool.scores(MOVED, 49), failed=0) == Judgement(None, None)
    assert pool.run([], failed=49) == Judgement(None, None)


def test_what_a_budget_left_undone_is_nothing_to_compare_with(pool: Pool) -> None:
    """The most uncertain images come first: the others are no other pool."""
    pool.run(pool.scores(MOVED, 100), coverage=0.5)
    assert pool.run(pool.scores(USUAL, 100)) == Judgement(None, None)
    assert pool.run(pool.scores(1.5, 100)).drift is not None


def test_a_run_cut_in_two_is_judged_as_one(pool: Pool) -> None:
    pool.run(pool.scores(USUAL, 200))
    before, after = pool.scores(MOVED, 90), pool.scores(MOVED, 10)
    pool.run(before, killed=True, failed=3)
    judged = pool.run(after)
    assert "100 new images" in (judged.drift or "")
    with pool.database.read() as session:
        reference = list(session.scalars(sa.select(Score.entropy_mean).order_by(Score.image_id).limit(200)))
    assert judged.shift == pytest.approx(stability_index(reference, before + after).index)


def test_a_run_killed_when_all_was_written_is_judged_by_the_next(pool: Pool) -> None:
    pool.run(pool.scores(USUAL, 200))
    pool.run(pool.scores(MOVED, 100), killed=True)
    with pool.database.read() as session:
        found = shift.conclude(session, pool.config, RULES)
    assert found is not None
    assert "100 new images" in (found.judged.drift or "")
    with pool.database.write() as session:
        shift.write_conclusion(session, found)
    with pool.database.read() as session:
        assert shift.conclude(session, pool.config, RULES) is None
        assert drift.standing(session) is not None


def test_another_configuration_has_another_pool(pool: Pool) -> None:
    pool.run(pool.scores(USUAL, 200))
    pool.config = pool.rows.config(pool.rows.checkpoint("fcn-2"))
    assert pool.run(pool.scores(MOVED, 200)) == Judgement(None, None)


def test_images_that_cannot_be_read_are_told_by_their_share(pool: Pool) -> None:
    assert pool.run(pool.scores(USUAL, 90), failed=10).drift is None
    told = pool.run(pool.scores(USUAL, 88), failed=12).drift
    assert "12 of 100 images could not be read (12%), [drift] max_quarantined is 10%" in (told or "")


@pytest.mark.slow
@pytest.mark.parametrize("moved", [False, True])
def test_a_sample_of_many_scores_says_what_all_of_them_say(pool: Pool, monkeypatch: pytest.MonkeyPatch, moved: bool) -> None:
    """As with more than 50,000 scores: rows are looked up at image numbers drawn at random, holes among them."""
    first = pool.scores(USUAL, 1500)
    for start in range(0, 1500, 500):
        pool.run(first[start : start + 500])
        pool.images(200)
    for name, value in (("EVERY", 100), ("SAMPLE", 600), ("DRAWS", 2400), ("_ENOUGH", 60)):
        monkeypatch.setattr(shift, name, value)
    looked_up: list[str] = []
    sa.event.listen(pool.database.engine, "before_cursor_execute", lambda *call: looked_up.append(call[2]))
    new = pool.scores(MOVED if moved else USUAL, 300)
    judged = pool.run(new)
    assert (judged.drift is not None) == moved
    assert judged.shift == pytest.approx(stability_index(first, new).index, rel=0.3, abs=0.08)
    assert sum("scores.image_id IN" in statement for statement in looked_up) > 0
    assert not [text for text in looked_up if "FROM scores" in text and "IN (" not in text and "image_id)" not in text]


@pytest.mark.parametrize(
    ("blocks", "push", "promotion"),
    [("nothing", False, False), ("push", True, False), ("promotion", False, True), ("both", True, True)],
)
def test_a_run_past_a_limit_blocks_what_it_is_set_to(pool: Pool, blocks: str, push: bool, promotion: bool) -> None:
    pool.run(pool.scores(USUAL, 200))
    assert pool.held("push", "both") is None
    pool.run(pool.scores(MOVED, 100))
    assert (pool.held("push", blocks) is not None, pool.held("promotion", blocks) is not None) == (push, promotion)


def test_only_a_run_that_could_be_judged_ends_it(pool: Pool) -> None:
    pool.run(pool.scores(USUAL, 400))
    pool.run(pool.scores(MOVED, 100))
    pool.run(pool.scores(USUAL, 10))
    pool.run(pool.scores(USUAL, 90), killed=True)
    assert pool.held("push", "push") is not None
    assert pool.run(pool.scores(USUAL, 400)).drift is None
    assert pool.held("push", "push") is None


def test_a_person_ends_it_the_figure_stays_and_it_is_known_who(pool: Pool) -> None:
    pool.run(pool.scores(USUAL, 400))
    figures = [pool.run(pool.scores(MOVED, 60)).shift, pool.run(pool.scores(0.8, 60), failed=20).shift]
    with pool.database.write() as session:
        said = drift.accept(session, accepted_by="ada", reason="winter")
    assert len(said) == 2
    assert pool.held("push", "both") is None
    with pool.database.read() as session:
        assert list(session.scalars(sa.select(ScoringRun.shift).order_by(ScoringRun.id)))[1:] == figures
        [alert] = alerts.newest(session)
    assert alert.message.startswith("ada accepted the drift of 2 scoring runs (winter); the last said: ")
    with pool.database.write() as session:
        assert drift.accept(session, accepted_by="ada") == []
        assert len(alerts.newest(session)) == 1


def test_status_says_what_drifted_and_what_waits(pool: Pool, tmp_path) -> None:
    settings = Settings(root=tmp_path, drift={"blocks": "push"})
    pool.run(pool.scores(USUAL, 200))
    pool.run(pool.scores(MOVED, 100))
    with pool.database.read() as session:
        told = read_status(session, settings)
        assert why_no_round(session, settings).startswith("a new round waits since scoring run ")
    [line] = told["problems"]
    assert line.startswith("drift in scoring run ")
    assert line.endswith("; push waits")
    assert any(line.startswith("a new round waits since scoring run ") for line in told["next"])
