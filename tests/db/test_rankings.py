from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import combinations

import pytest
import sqlalchemy as sa

from activeseg.db import checkpoints
from activeseg.db.database import Database
from activeseg.db.models import Checkpoint, ClassScoreRow, Decision, Image, ImageStatus, Score, ScoringConfig, Split
from activeseg.db.rankings import Cursor, RankingRow, class_scores, latest_scoring_config, ranking
from activeseg.errors import ConfigError
from tests.db.rows import Rows

NUM_CLASSES = 3


class Pool:
    """Scored images whose figures are eighths, so that sums are exact in any order, with many ties."""

    def __init__(self, rows: Rows, seed: int, *, size: int = 40) -> None:
        draw = random.Random(seed)
        self.checkpoint = rows.checkpoint(decision=Decision.PROMOTED)
        self.config = rows.config(self.checkpoint)
        self.classes: dict[int, dict[int, float]] = {}
        ids = [rows.image() for _ in range(size)]
        for image in draw.sample(ids, size):
            self.classes[image] = {index: draw.randrange(24) / 8 for index in range(NUM_CLASSES)}
            rows.score(self.config, image, sum(self.classes[image].values()), self.classes[image])

    def brute_force(self, classes: Iterable[int] = range(NUM_CLASSES)) -> list[tuple[int, float]]:
        """(image, score), by hand."""
        wanted = list(classes)
        scores = {image: sum(parts[index] for index in wanted) for image, parts in self.classes.items()}
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def ask(database: Database, pool: Pool, **options: object) -> list[RankingRow]:
    with database.read() as session:
        checkpoint = session.get_one(Checkpoint, pool.checkpoint)
        return ranking(session, checkpoint, **({"limit": 1000} | options))  # type: ignore[arg-type]


def pairs(found: list[RankingRow]) -> list[tuple[int, float]]:
    return [(row.image_id, row.score) for row in found]


@pytest.mark.parametrize("seed", range(4))
def test_the_ranking_equals_brute_force(database: Database, rows: Rows, seed: int) -> None:
    pool = Pool(rows, seed)
    found = ask(database, pool)
    assert pairs(found) == pool.brute_force()
    assert len({score for _, score in pairs(found)}) < len(found), "no ties: the test proves too little"
    assert [row.rank for row in found] == list(range(1, len(found) + 1))


@pytest.mark.parametrize("classes", [c for size in (1, 2, 3) for c in combinations(range(NUM_CLASSES), size)])
def test_the_ranking_by_some_classes_equals_brute_force(database: Database, rows: Rows, classes: tuple[int, ...]) -> None:
    pool = Pool(rows, 7)
    assert pairs(ask(database, pool, class_indices=classes)) == pool.brute_force(classes)


def test_all_classes_rank_like_the_sum(database: Database, rows: Rows) -> None:
    pool = Pool(rows, 8)
    assert pairs(ask(database, pool, class_indices=range(NUM_CLASSES))) == pairs(ask(database, pool))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [(), (0,), (0, 2)])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_pages_put_together_are_the_whole(database: Database, rows: Rows, classes: tuple[int, ...], size: int) -> None:
    pool = Pool(rows, 3)
    pages: list[RankingRow] = []
    after: Cursor | None = None
    while page := ask(database, pool, limit=size, class_indices=classes, after=after):
        pages += page
        assert len(pages) <= 40, "a page repeats what a former one had"
        last = page[-1]
        after = Cursor.parse(str(Cursor(last.rank, last.score, last.image_id)))
    assert pages == ask(database, pool, class_indices=classes)


def test_a_page_goes_on_where_the_former_ended_although_images_were_scored_meanwhile(database: Database, rows: Rows) -> None:
    pool = Pool(rows, 4)
    whole = ask(database, pool)
    rows.score(pool.config, rows.image(), 1000.0)
    last = whole[9]
    assert pairs(ask(database, pool, after=Cursor(last.rank, last.score, last.image_id))) == pairs(whole[10:])


def test_the_database_sorts_for_the_ranking_and_for_every_page(database: Database, rows: Rows) -> None:
    pool, statements = Pool(rows, 5, size=2), []
    sa.event.listen(database.engine, "before_cursor_execute", lambda c, cursor, text, *rest: statements.append(text))
    ask(database, pool)
    ask(database, pool, after=Cursor(1, 2.0, 1))
    ask(database, pool, class_indices=[0])
    asked = [" ".join(text.split()) for text in statements if "entropy_mean" in text]
    assert len(asked) == 3
    assert all("DESC, scores.image_id LIMIT" in text for text in asked)


def test_limit_is_the_number_of_rows(database: Database, rows: Rows) -> None:
    pool = Pool(rows, 6)
    assert pairs(ask(database, pool, limit=5)) == pool.brute_force()[:5]


def test_the_ranking_leaves_out_what_left_the_pool_and_history_keeps_it(database: Database, rows: Rows) -> None:
    config = rows.config(checkpoint := rows.checkpoint(decision=Decision.PROMOTED))
    kept = rows.image()
    gone = [
        rows.image(split=Split.TRAIN),
        rows.image(split=Split.VAL),
        rows.image(status=ImageStatus.QUARANTINED),
        rows.image(status=ImageStatus.SUPERSEDED),
        rows.image(status=ImageStatus.MISSING),
    ]
    for number, image in enumerate([kept, *gone], 1):
        rows.score(config, image, float(number))
    with database.read() as session:
        row = session.get_one(Checkpoint, checkpoint)
        assert [found.image_id for found in ranking(session, row, limit=9)] == [kept]
        history = [found.image_id for found in ranking(session, row, limit=9, pool_only=False)]
    assert history == [*reversed(gone), kept]


def test_a_checkpoint_ranks_by_the_configuration_it_was_scored_with_last(database: Database, rows: Rows) -> None:
    checkpoint, image = rows.checkpoint(), rows.image()
    old, new = rows.config(checkpoint), rows.config(checkpoint)
    rows.score(old, image, 1.0)
    rows.score(new, image, 2.0)
    with database.read() as session:
        assert latest_scoring_config(session, checkpoint) == new
    rows.run(old)
    with database.read() as session:
        assert latest_scoring_config(session, checkpoint) == old
        assert [row.score for row in ranking(session, session.get_one(Checkpoint, checkpoint), limit=2)] == [1.0]


def test_a_checkpoint_that_scored_nothing_has_an_empty_ranking(database: Database, rows: Rows) -> None:
    checkpoint = rows.checkpoint(decision=Decision.PROMOTED)
    with database.read() as session:
        assert latest_scoring_config(session, checkpoint) is None
        assert ranking(session, checkpoints.require_champion(session), limit=3) == []


def test_class_scores_come_by_class(database: Database, rows: Rows) -> None:
    config, image = rows.config(rows.checkpoint()), rows.image()
    rows.score(config, image, 6.0, {2: 3.0, 0: 1.0, 1: 2.0})
    with database.read() as session:
        found = class_scores(session, config, image)
    assert [(row.class_index, row.channel_entropy_sum) for row in found] == [(0, 1.0), (1, 2.0), (2, 3.0)]


@pytest.mark.parametrize("score", [0.0, 0.1, 1e-300, 798104.5, 2 / 3])
def test_a_cursor_survives_being_written_down(score: float) -> None:
    assert Cursor.parse(str(Cursor(3, score, 17))) == Cursor(3, score, 17)


@pytest.mark.parametrize(
    "text",
    ["", "1", "1:2", "1:2:3:4", "a:0x1p+0:1", "1:nan:1", "1:inf:1", "1:-inf:1", f"1:{1.0.hex()}:{10**30}", f"1:{1.0.hex()}:0",
     f" 1:{1.0.hex()}:1", f"1_0:{1.0.hex()}:1", "9" * 5000 + f":{1.0.hex()}:1", "1:0x1p+99999:1"],
)  # fmt: skip
def test_what_no_page_can_have_given_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="'next' value of a former page"):
        Cursor.parse(text)


# --- by other functions ----------------------------------------------------------------------------------------------


def test_the_ranking_by_a_stored_statistic_equals_brute_force_and_has_pages(database: Database, rows: Rows) -> None:
    """An image without the statistic, which only some scoring passes take, is no part of it, nor is one that left the pool."""
    pool = Pool(rows, 5)
    draw = random.Random(1)
    values = {image: draw.randrange(8) / 8 for image in pool.classes}
    gone, unasked, *_ = values
    with database.write() as session:
        for image, value in values.items():
            change = sa.update(Score).where(Score.image_id == image)
            session.execute(change.values(bald=None if image == unasked else value, margin_mean=value))
        session.get_one(Image, gone).split = Split.TRAIN
    for by, absent in (("bald", {gone, unasked}), ("margin", {gone})):
        expected = sorted(((i, v) for i, v in values.items() if i not in absent), key=lambda pair: (-pair[1], pair[0]))
        assert pairs(ask(database, pool, by=by)) == expected
        first = ask(database, pool, by=by, limit=11)
        last = first[-1]
        assert pairs(ask(database, pool, by=by, after=Cursor(last.rank, last.score, last.image_id))) == expected[11:]
    assert gone in dict(pairs(ask(database, pool, by="margin", pool_only=False)))
    assert pairs(ask(database, pool, by="tta_jsd")) == []


def test_a_statistic_that_was_taken_once_is_found_behind_a_later_configuration_without_it(
    database: Database, rows: Rows
) -> None:
    """Set back to a strategy whose scores are all there, a scoring run is not begun: the last one was another's."""
    checkpoint, image = rows.checkpoint(), rows.image()
    with_bald, later = rows.config(checkpoint), rows.config(checkpoint)
    with database.write() as session:
        session.get_one(ScoringConfig, with_bald).definition = {"bald": {"passes": 8}}
        session.add_all([rows.score_row(with_bald, image, bald=0.25), rows.score_row(later, image)])
    with database.read() as session:
        row = session.get_one(Checkpoint, checkpoint)
        assert [found.score for found in ranking(session, row, limit=3, by="bald")] == [0.25]
        assert ranking(session, row, limit=3, by="tta_jsd") == []


def test_the_ranking_by_balanced_classes_is_worked_out_of_the_whole_pool(database: Database, rows: Rows) -> None:
    pool = Pool(rows, 6)
    draw = random.Random(2)
    regions = {image: [draw.randrange(1, 900) for _ in range(NUM_CLASSES)] for image in pool.classes}
    with database.write() as session:
        for image, pixels in regions.items():
            for index, count in enumerate(pixels):
                part = session.get_one(ClassScoreRow, (pool.config, image, index))
                part.region_pixels, part.region_entropy_sum = count, count * index / 4
    share = [sum(pixels[c] for pixels in regions.values()) / (3072 * len(regions)) for c in range(NUM_CLASSES)]
    weights = [(f + 0.001) ** -0.5 for f in share]
    mean = sum(weights) / NUM_CLASSES
    scores = {i: sum(weights[c] / mean * n * c / 4 for c, n in enumerate(p)) / 3072 for i, p in regions.items()}
    expected = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    found = ask(database, pool, by="class_balanced_entropy", limit=12)
    assert [row.image_id for row in found] == [image for image, _ in expected[:12]]
    assert [row.score for row in found] == pytest.approx([score for _, score in expected[:12]])
    assert [row.rank for row in found] == list(range(1, 13))
    with pytest.raises(ConfigError, match="no pages"):
        ask(database, pool, by="class_balanced_entropy", after=Cursor(1, 1.0, 1))


def test_what_no_ranking_can_be_made_by_is_refused(database: Database, rows: Rows) -> None:
    pool = Pool(rows, 6)
    with pytest.raises(ConfigError, match="unknown acquisition function 'kcenter'; known: entropy_sum"):
        ask(database, pool, by="kcenter")
    with pytest.raises(ConfigError, match="margin has no value for a class"):
        ask(database, pool, by="margin", class_indices=[0])
