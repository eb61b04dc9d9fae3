"""A pool that is used up is told once, weekly while nothing comes, and once when there is something to do again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from activeseg.alerts import watch
from activeseg.alerts.watching import note_idleness, note_nothing_to_do
from activeseg.config import Settings
from activeseg.db import alerts
from activeseg.db.database import Database
from activeseg.db.models import Alert, Image, ImageStatus, Query, QueryStatus, RoundStatus, Split
from activeseg.db.status import read_status
from tests.db.rows import MORNING, Rows

Make = Callable[..., Settings]
LONG_AGO = MORNING - timedelta(days=100)


def day(number: float) -> datetime:
    """So many days after a hundred days ago."""
    return LONG_AGO + timedelta(days=number)


class UsedUpPool:
    """A pool of one image that came on day 0, was asked about on day 1 and annotated on day 2, when its round was closed."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings, self.rows = database, settings, Rows(database)
        self.image = self.rows.image(created_at=day(0))
        round_id = self.rows.round(RoundStatus.CLOSED, opened_at=day(1), pushed_at=day(1), closed_at=day(2))
        self.query = self.rows.query(round_id, self.image, QueryStatus.ANNOTATED)
        self.rows.annotation(self.image, query_id=self.query, at=(day(2) - MORNING) / timedelta(minutes=1))

    def look(self, number: float) -> list[tuple[str, str]]:
        """Kind and subject of all alerts after a look on that day, oldest first."""
        with self.database.write() as session:
            note_idleness(session, self.settings, at=day(number))
            note_nothing_to_do(session, self.settings, at=day(number))
        return [(row.kind, row.about) for row in self.told()]

    def told(self) -> list[Alert]:
        with self.database.read() as session:
            return alerts.newest(session)[::-1]


@pytest.fixture
def pool(database: Database, make_settings: Make) -> UsedUpPool:
    return UsedUpPool(database, make_settings(schedule={"timezone": "Asia/Tokyo"}))


IDLE, RECOVERY = ("idle", "pool"), ("recovery", "pool")


def test_a_pool_that_is_used_up_is_told_after_a_week_then_weekly_and_once_when_images_come(pool: UsedUpPool) -> None:
    assert [len(pool.look(number)) for number in (2, 8.9, 9.1, 9.2, 16, 16.2)] == [0, 0, 1, 1, 1, 2]
    [first, _] = pool.told()
    assert first.message == (
        f"nothing to do since {day(2) + timedelta(hours=9):%Y-%m-%d} 15:00 JST ([alerts] idle_days = 7): "
        "no image is left to ask about (1 annotated): add images to the pool and run `activeseg pool sync`"
    )
    pool.rows.image(created_at=day(17))
    assert pool.look(17.1) == [IDLE, IDLE, RECOVERY]
    assert pool.told()[-1].message == "there is something to do again: images to ask about"
    assert pool.look(60) == [IDLE, IDLE, RECOVERY]


def test_open_tasks_that_nobody_annotates_are_another_matter(pool: UsedUpPool) -> None:
    pool.look(9.1)
    round_id = pool.rows.round(opened_at=day(10), pushed_at=day(10))
    pool.rows.query(round_id, pool.rows.image(created_at=day(10)), QueryStatus.PUSHED)
    assert pool.look(10.1) == [IDLE, RECOVERY]
    assert pool.told()[-1].message == "there is something to do again: 1 open task"
    assert pool.look(17.1) == [IDLE, RECOVERY, ("idle", "annotations")]
    assert pool.look(17.2) == [IDLE, RECOVERY, ("idle", "annotations")]


def test_tasks_that_nobody_annotates_and_then_nothing_to_do_are_both_told(pool: UsedUpPool) -> None:
    image = pool.rows.image(created_at=day(3))
    query = pool.rows.query(pool.rows.round(opened_at=day(3), pushed_at=day(3)), image, QueryStatus.PUSHED)
    assert pool.look(10.1) == [("idle", "annotations")]
    with pool.database.write() as session:
        session.get_one(Query, query).status = QueryStatus.WITHDRAWN
        session.get_one(Image, image).status = ImageStatus.MISSING
    assert pool.look(10.2) == [("idle", "annotations"), IDLE]


@pytest.mark.parametrize("what", ["image", "round", "skipped", "annotation"])
def test_whatever_happens_begins_the_wait_anew(pool: UsedUpPool, what: str) -> None:
    if what == "image":  # and it cannot be used: it was imported as a validation image
        pool.rows.image(created_at=day(5), split=Split.VAL)
    elif what == "round":
        pool.rows.round(RoundStatus.CLOSED, opened_at=day(5))
    elif what == "skipped":
        pool.rows.round(RoundStatus.CLOSED, opened_at=day(1), pushed_at=day(1), closed_at=day(5))
    else:
        pool.rows.annotation(pool.image, at=(day(5) - MORNING) / timedelta(minutes=1))
    assert (pool.look(11.9), pool.look(12.1)) == ([], [IDLE])


@pytest.mark.parametrize("status", [RoundStatus.OPEN, RoundStatus.SELECTED])
def test_a_begun_round_is_something_to_do(pool: UsedUpPool, status: RoundStatus) -> None:
    pool.rows.round(status, opened_at=day(1))
    assert pool.look(50) == []


def test_images_left_to_ask_about_are_something_to_do(pool: UsedUpPool) -> None:
    pool.rows.image(created_at=day(0))
    assert pool.look(50) == []


def test_an_image_that_comes_and_goes_tells_no_more_than_weekly(pool: UsedUpPool) -> None:
    pool.look(9.1)
    again = pool.rows.image(created_at=day(0))
    told = []
    for hours in range(24):
        with pool.database.write() as session:
            session.get_one(Image, again).status = ImageStatus.ACTIVE if hours % 2 else ImageStatus.MISSING
        told.append(len(pool.look(10 + hours / 24)))
    assert told[-1] == 2, "it was told that it was over, and not again within the week"


def test_an_image_whose_query_was_withdrawn_may_be_asked_about_again(pool: UsedUpPool) -> None:
    with pool.database.write() as session:
        session.get_one(Query, pool.query).status = QueryStatus.WITHDRAWN
    assert pool.look(50) == []


def test_zero_days_is_never(pool: UsedUpPool, make_settings: Make) -> None:
    pool.settings = make_settings(alerts={"idle_days": 0})
    assert pool.look(50) == []


def test_a_new_database_tells_nothing(database: Database, make_settings: Make) -> None:
    watch(make_settings(alerts={"idle_days": 0.001}), database)
    with database.read() as session:
        assert alerts.newest(session) == []


def test_a_checkpoint_that_waits_for_the_planned_promote_is_named_once(pool: UsedUpPool, make_settings: Make) -> None:
    pool.settings = make_settings(schedule={"promote": "0 8 * * *"})
    pool.rows.checkpoint("fcn-7")
    sentence = 'fcn-7 waits for `promote` ([schedule] promote = "0 8 * * *"; `activeseg promote` judges at once)'
    pool.look(9.1)
    assert pool.told()[0].message.endswith(f"`activeseg pool sync`; {sentence}")
    with pool.database.read() as session:
        lines = read_status(session, pool.settings)["next"]
    assert [line.endswith(sentence) for line in lines if "fcn-7" in line] == [True]
    pool.settings = make_settings()
    with pool.database.read() as session:
        assert not any("fcn-7" in line for line in read_status(session, pool.settings)["next"])


def test_the_scheduler_looks_for_it(pool: UsedUpPool) -> None:
    watch(pool.settings, pool.database)
    assert [(row.kind, row.about) for row in pool.told()] == [IDLE]
