"""Planned times: what cron(8) would do, through changes of the clocks, and clear errors for what is no cron string."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest

from activeseg.config import ScheduleSection, Settings
from activeseg.cron import Cron, planned
from activeseg.errors import ConfigError
from activeseg.scheduler import loop_jobs

BERLIN = ZoneInfo("Europe/Berlin")
SPRING, AUTUMN = datetime(2025, 3, 30, tzinfo=UTC), datetime(2025, 10, 26, tzinfo=UTC)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def times(text: str, start: datetime, count: int, zone: ZoneInfo = BERLIN) -> list[datetime]:
    return list(islice(Cron(text, zone, key="round").times(start), count))


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        # 02:30 does not exist on 30 March: it runs at 03:30 summer time.
        (utc(2025, 3, 28, 12), [utc(2025, 3, 29, 1, 30), utc(2025, 3, 30, 1, 30), utc(2025, 3, 31, 0, 30)]),
        # 02:30 comes twice on 26 October: it runs the first time.
        (utc(2025, 10, 24, 12), [utc(2025, 10, 25, 0, 30), utc(2025, 10, 26, 0, 30), utc(2025, 10, 27, 1, 30)]),
    ],
)
def test_a_night_runs_once_through_a_change_of_the_clocks(start: datetime, expected: list[datetime]) -> None:
    assert times("30 2 * * *", start, 3) == expected


@pytest.mark.parametrize("change", [SPRING, AUTUMN])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"])
def test_the_next_night_is_the_same_whenever_it_is_asked_for(change: datetime, zone: str) -> None:
    cron = Cron("30 2 * * *", ZoneInfo(zone), key="round")
    nights = list(islice(cron.times(change - timedelta(days=2)), 6))
    assert len({night.astimezone(ZoneInfo(zone)).date() for night in nights}) == 6
    for minutes in range(0, 3 * 24 * 60, 7):
        moment = change - timedelta(days=1) + timedelta(minutes=minutes)
        assert next(cron.times(moment)) == next(night for night in nights if night >= moment)


@pytest.mark.parametrize("change", [SPRING, AUTUMN])
@pytest.mark.parametrize(("text", "every"), [("*/10 * * * *", 10), ("* * * * *", 1), ("30 * * * *", 60)])
def test_frequent_jobs_go_on_by_elapsed_time_through_a_change(change: datetime, text: str, every: int) -> None:
    found = times(text, change - timedelta(hours=6), 14 * 60 // every)
    assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(minutes=every)}


@pytest.mark.parametrize(
    ("field", "days"),
    [("0", {6}), ("7", {6}), ("1-5", {0, 1, 2, 3, 4}), ("5-7", {4, 5, 6}), ("sun-tue", {6, 0, 1}), ("*/2", {6, 1, 3, 5}),
     ("Mon,4", {0, 3}), ("*", set(range(7)))],
)  # fmt: skip
def test_weekdays_are_counted_as_cron_does(field: str, days: set[int]) -> None:
    assert {time.weekday() for time in times(f"0 12 * * {field}", utc(2025, 6, 1), 30)} == days


def test_scanning_every_minute_finds_the_same_times() -> None:
    """Second implementation: every minute of a year's two changes, matched by its local clock."""
    minutes, hours = {5, 35}, {1, 2, 3, 14}
    for change in (SPRING, AUTUMN):
        start = change - timedelta(days=1)
        expected = set()
        for day in range(4):
            date = (start + timedelta(days=day)).date()
            walls = [datetime(date.year, date.month, date.day, h, m, tzinfo=BERLIN) for h in hours for m in minutes]
            expected |= {wall.astimezone(UTC) for wall in walls}
        wanted = sorted(time for time in expected if time >= start)
        assert times("5,35 1-3,14 * * *", start, len(wanted)) == wanted


def test_the_latest_time_is_the_last_one_that_is_not_too_late() -> None:
    cron = Cron("0 2 * * *", ZoneInfo("UTC"), key="round")
    planned, within = utc(2025, 6, 3, 2), timedelta(hours=6)
    assert cron.latest(planned, within=within) == planned
    assert cron.latest(planned - timedelta(seconds=1), within=within) is None
    assert cron.latest(planned + within, within=within) == planned
    assert cron.latest(planned + within + timedelta(seconds=1), within=within) is None
    pulls = Cron("*/10 * * * *", ZoneInfo("UTC"), key="pull")
    assert pulls.latest(utc(2025, 6, 3, 2, 29), within=within) == utc(2025, 6, 3, 2, 20)


@pytest.mark.parametrize(
    "text",
    ["", "0 2 * *", "0 2 * * * *", "61 * * * *", "a b c d e", "*/0 * * * *", "0 2 * * 8", "0 2 * * sat-sun", "0 2 * * */0",
     "0 2 * * 1-", "0 2 31 2 *", "@daily", "0 2 * * * Mars/Base", "0 2 * * * Europe", "0 2 * * * UTC UTC",
     "Europe/Berlin"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["round", "pull"])
def test_a_bad_cron_string_is_a_configuration_error_that_names_its_key(text: str, key: str) -> None:
    settings = Settings(schedule=ScheduleSection.model_validate({key: text}))
    with pytest.raises(ConfigError) as caught:
        loop_jobs(settings)
    assert f"[schedule] {key}:" in str(caught.value)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Europe", "Middle/Earth", "../UTC", ""])
def test_an_unknown_time_zone_is_a_configuration_error_that_names_its_key(name: str) -> None:
    with pytest.raises(ConfigError, match=r"\[schedule\] timezone"):
        planned(ScheduleSection.model_construct(timezone=name))
