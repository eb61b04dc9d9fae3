"""Through every change of the clocks nothing planned is lost or done twice, wherever the zone puts the skipped hour.

The second implementation knows nothing of folds or steps: it looks at the wall clock every minute.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise, product, takewhile
from zoneinfo import ZoneInfo

import pytest

from activeseg.cron import Cron

FIRST, LAST = datetime(2025, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
# Where midnight is skipped (Cairo, Santiago, Havana, the Azores), half an hour is (Lord Howe), and nothing ever.
ZONES = ("Europe/Berlin", "America/New_York", "Africa/Cairo", "America/Santiago", "America/Havana", "Australia/Lord_Howe",
         "Atlantic/Azores", "UTC", "Asia/Kolkata")  # fmt: skip
DAILY = [f"{minute} {hour} * * *" for hour, minute in product((0, 1, 2, 3, 23), (0, 30))]
OTHERS = ("0 0 * * 1", "30 0 * * 0,5", "0 0 1 * *", "15 2 25-31 3-4 *", "*/10 * * * *", "7 * * * *", "0 */2 * * *",
          "0 */12 * * *", "0,45 0-3 * * *", "*/20 1-3 * * 0", "30 23,0 * * *", "* 0 * * *")  # fmt: skip


def offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta(0)


def windows(zone: ZoneInfo) -> Iterator[tuple[datetime, datetime]]:
    """Three days on each side of each change; where there is none, of a turn of the year."""
    days = [FIRST + number * DAY for number in range((LAST - FIRST).days)]
    changes = [day for day, next_day in pairwise(days) if offset(day, zone) != offset(next_day, zone)]
    for day in changes or [datetime(2026, 1, 1, tzinfo=UTC)]:
        yield day - 3 * DAY, day + 4 * DAY


def values(field: str, first: int, last: int) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        low, dash, high = (f"{first}-{last}" if span == "*" else span).partition("-")
        found |= set(range(int(low), int(high if dash else low) + 1, int(step or 1)))
    return found


Shown = dict[datetime, list[datetime]]
"""When the clock on the wall showed a minute: once, or twice; what is missing was skipped."""


def look_at(zone: ZoneInfo, start: datetime, end: datetime) -> Shown:
    shown: Shown = {}
    for number in range(int((end - start + 2 * DAY) / MINUTE)):
        moment = start - DAY + number * MINUTE
        shown.setdefault(moment.astimezone(zone).replace(tzinfo=None), []).append(moment)
    return shown


def every_minute(text: str, shown: Shown, start: datetime, end: datetime) -> list[datetime]:
    """What is planned in [start, end), found at each minute that the clock showed, and at those that it never did."""
    bounds = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
    minutes, hours, days, months, weekdays = (values(field, *ends) for field, ends in zip(text.split(), bounds, strict=True))
    wall, last_wall, planned, before = min(shown), max(shown), set(), datetime.min
    while wall <= last_wall:
        before = wall if wall in shown else before
        if wall.minute in minutes and wall.hour in hours and wall.day in days and wall.month in months:
            # Never shown: as much later as the clock would have shown it, had nobody touched it.
            found = shown.get(wall) or [shown[before][0] + (wall - before)]
            if wall.isoweekday() % 7 in weekdays:
                planned |= set(found if text.split()[1].startswith("*") else found[:1])
        wall += MINUTE
    return sorted(moment for moment in planned if start <= moment < end)


def times(cron: Cron, start: datetime, end: datetime) -> list[datetime]:
    return list(takewhile(lambda time: time < end, cron.times(start)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ZONES, "America/Nuuk"])  # Nuuk skips the hour before midnight
def test_what_looking_at_the_wall_clock_every_minute_finds_is_planned(name: str) -> None:
    zone = ZoneInfo(name)
    for start, end in list(windows(zone))[:2]:
        shown = look_at(zone, start, end)
        for text in (*DAILY[::3], *OTHERS):
            cron, expected = Cron(text, zone, key="round"), every_minute(text, shown, start, end)
            assert times(cron, start, end) == expected, text
            for hours in range(12, 144, 11):
                now = start + timedelta(hours=hours, minutes=hours)
                passed = expected[: bisect_right(expected, now)]
                wanted = passed[-1] if passed and passed[-1] >= now - timedelta(hours=10) else None
                assert cron.latest(now, within=timedelta(hours=10)) == wanted, (text, now)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZONES)
def test_a_daily_job_runs_once_on_each_day_of_three_years(name: str) -> None:
    zone = ZoneInfo(name)
    start, end = (datetime(year, 1, 1, tzinfo=zone).astimezone(UTC) for year in (2025, 2028))
    dates = [date(2025, 1, 1) + number * DAY for number in range((date(2028, 1, 1) - date(2025, 1, 1)).days)]
    for text in DAILY:
        found = times(Cron(text, zone, key="round"), start, end)
        assert all(earlier < later for earlier, later in pairwise(found)), text
        assert [time.astimezone(zone).date() for time in found] == dates, text


@pytest.mark.parametrize("name", ZONES)
def test_apscheduler_is_told_the_same_times_one_by_one(name: str) -> None:
    zone = ZoneInfo(name)
    for start, end in list(windows(zone))[:2]:
        for text in (*DAILY[::2], "0,45 0-3 * * *", "0 * * * *"):
            cron, told = Cron(text, zone, key="round"), [start]
            while (asked := cron.get_next_fire_time(told[-1], start)) is not None and asked < end:
                told.append(asked)
            assert told[1:] == times(cron, start + timedelta(microseconds=1), end), text


def test_a_night_at_a_skipped_midnight_is_found_late_by_who_looks_back() -> None:
    cairo = Cron("0 0 * * *", ZoneInfo("Africa/Cairo"), key="round")
    night = datetime(2026, 4, 23, 22, tzinfo=UTC)  # 01:00 of 24 April: midnight was skipped
    assert cairo.latest(night + timedelta(hours=5), within=timedelta(hours=6)) == night
    assert cairo.latest(night - timedelta(seconds=1), within=timedelta(hours=6)) is None


def test_a_day_that_a_zone_skipped_does_not_run_twice_on_the_next() -> None:
    """Samoa moved across the date line: 30 December 2011 never came there."""
    apia = Cron("0 2 * * *", ZoneInfo("Pacific/Apia"), key="round")
    found = times(apia, datetime(2011, 12, 28, tzinfo=UTC), datetime(2012, 1, 3, tzinfo=UTC))
    assert {later - earlier for earlier, later in pairwise(found)} == {DAY}
