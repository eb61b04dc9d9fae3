from __future__ import annotations

import random
from itertools import chain

import pytest
import sqlalchemy as sa

from activeseg.db import images
from activeseg.db.database import Database
from activeseg.db.models import ImageStatus, ScoringRun, Split
from activeseg.db.scores import count_unscored, previous_config, work_pages
from tests.db.rows import Rows


class Pool:
    """Images of every kind, some scored by a former configuration (with ties), a few by the present one."""

    def __init__(self, rows: Rows, size: int = 30) -> None:
        draw = random.Random(size)
        checkpoint = rows.checkpoint()
        self.previous, self.config = rows.config(checkpoint), rows.config(checkpoint)
        for split, status in ((Split.TRAIN, ImageStatus.ACTIVE), (Split.POOL, ImageStatus.QUARANTINED)):
            rows.score(self.previous, rows.image(split=split, status=status), 99.0)
        self.ids = [rows.image() for _ in range(size)]
        self.entropies = {image: draw.randrange(6) / 4 for image in draw.sample(self.ids, size * 2 // 3)}
        for image, entropy in self.entropies.items():
            rows.score(self.previous, image, entropy)
        self.done = set(draw.sample(self.ids, size // 5))
        for image in self.done:
            rows.score(self.config, image, 1.0)

    def brute_force(self, *, ranked: bool) -> list[int]:
        """The order, by hand."""
        left = [image for image in self.ids if image not in self.done]
        if not ranked:
            return left
        new = [image for image in left if image not in self.entropies]
        return new + sorted((i for i in left if i in self.entropies), key=lambda i: (-self.entropies[i], i))


def ids(database: Database, pool: Pool, *, ranked: bool = True, page: int = 7) -> list[list[int]]:
    previous = pool.previous if ranked else None
    return [[ref.image_id for ref in refs] for refs in work_pages(database, pool.config, previous=previous, page=page)]


@pytest.mark.parametrize("ranked", [False, True])
def test_pages_put_together_are_the_work_in_its_order(database: Database, rows: Rows, ranked: bool) -> None:
    pool = Pool(rows)
    for page in (1, 7, 1024):
        pages = ids(database, pool, ranked=ranked, page=page)
        assert list(chain.from_iterable(pages)) == pool.brute_force(ranked=ranked)
        assert all(0 < len(part) <= page for part in pages)
    with database.read() as session:
        assert count_unscored(session, pool.config) == len(pool.brute_force(ranked=False))


def test_work_names_file_and_checksum(database: Database, rows: Rows) -> None:
    config, image = rows.config(rows.checkpoint()), rows.image()
    ((ref,),) = work_pages(database, config)
    with database.read() as session:
        assert images.refs(session, [image]) == {image: ref}


def test_what_was_scored_or_set_aside_meanwhile_is_left_out_and_nothing_comes_twice(database: Database, rows: Rows) -> None:
    pool = Pool(rows)
    expected = pool.brute_force(ranked=True)
    new = [image for image in expected if image not in pool.entropies]
    pages = work_pages(database, pool.config, previous=pool.previous, page=2)
    found = [ref.image_id for ref in next(pages)]
    assert found == expected[:2]
    late_new, scored, aside, labelled = rows.image(), expected[3], expected[-1], expected[-2]
    rows.score(pool.config, scored, 1.0)
    rows.score(pool.previous, found[0], 0.5)  # handed out as new, and known to the other configuration by now
    with database.write() as session:
        images.quarantine(session, {aside: "broken"})
        images.set_split(session, [labelled], Split.TRAIN)
    found += [ref.image_id for refs in pages for ref in refs]
    left = [image for image in expected if image not in (scored, aside, labelled)]
    assert found == [*left[: len(new) - 1], late_new, *left[len(new) - 1 :]]


def test_the_writer_may_commit_between_pages(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    rows = Rows(database)
    pool, found = Pool(rows), []
    for refs in work_pages(database, pool.config, previous=pool.previous, page=4):
        for ref in refs:
            rows.score(pool.config, ref.image_id, 2.0)
            found.append(ref.image_id)
    assert found == pool.brute_force(ranked=True)
    assert ids(database, pool) == []
    database.close()


def test_the_previous_configuration_is_the_one_scored_with_last_that_has_scores(database: Database, rows: Rows) -> None:
    first, second = rows.checkpoint(), rows.checkpoint()
    old, other, empty, mine = rows.config(first), rows.config(second), rows.config(second), rows.config(second)
    with database.read() as session:
        assert previous_config(session, mine) is None
    for config in (old, other, mine):
        rows.score(config, rows.image(), 1.0)
    with database.read() as session:
        assert [previous_config(session, config) for config in (mine, other, empty)] == [other, mine, mine]
    rows.run(old)
    with database.read() as session:
        assert previous_config(session, mine) == old


def test_a_night_that_a_budget_cut_short_makes_no_previous_ranking(database: Database, rows: Rows) -> None:
    whole, cut, mine = (rows.config(rows.checkpoint()) for _ in range(3))
    for config, coverage in ((whole, 1.0), (cut, 0.05)):
        rows.score(config, rows.image(), 1.0)
        with database.write() as session:
            run = session.scalars(sa.select(ScoringRun).where(ScoringRun.scoring_config_id == config)).one()
            run.coverage = coverage
    with database.read() as session:
        assert previous_config(session, mine) == whole
    with database.write() as session:
        session.execute(sa.update(ScoringRun).where(ScoringRun.scoring_config_id == cut).values(coverage=0.6))
    with database.read() as session:
        assert previous_config(session, mine) == cut
    with database.write() as session:
        session.execute(sa.update(ScoringRun).values(coverage=0.2))
        session.execute(sa.update(ScoringRun).where(ScoringRun.scoring_config_id == whole).values(coverage=0.3))
    with database.read() as session:
        assert previous_config(session, mine) == whole
