"""Cron strings in a time zone, as APScheduler triggers that are right across changes of the clocks."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger

from activeseg.config.operations import ScheduleSection, time_zone
from activeseg.errors import ConfigError

LONGEST_GAP = timedelta(days=1)
"""The most that a time zone ever skipped or repeated at once (Samoa skipped 30 December 2011)."""

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


class Cron(BaseTrigger):  # type: ignore[misc] # APScheduler has no types
    """A cron string (minute hour day month weekday, and its own time zone if it names one); all its times are aware UTC.

    zone: of a string that names none.

    As in cron(8): weekday 0 and 7 are Sunday; across a change of the clocks, a time that is skipped comes later by what is
    skipped, most often an hour, and one that comes twice runs the first time, where the hour is `*` or `*/n` both times.
    Unlike it, a day of the month and a weekday must both match.

    Raises ConfigError, naming `key`, for a string that is no cron string or matches no day.
    """

    def __init__(self, text: str, zone: ZoneInfo, *, key: str) -> None:
        self.text = text
        try:
            fields = text.split()
            if len(fields) not in (5, 6):
                raise ValueError(f"it has {len(fields)}")
            self.zone = time_zone(fields[5]) if fields[5:] else zone
            self._trigger = CronTrigger.from_crontab(" ".join([*fields[:4], _weekdays(fields[4])]), UTC)
        except ValueError as error:
            raise ConfigError(
                f"[schedule] {key}: expected five cron fields (minute hour day month weekday) such as '0 2 * * *', "
                f"or six with a time zone such as '0 2 * * * Europe/Berlin', got {text!r}: {error}"
            ) from error
        self._repeats = fields[1].startswith("*")
        if next(self.times(datetime(2024, 1, 1, tzinfo=UTC)), None) is None:
            raise ConfigError(f"[schedule] {key}: {text!r} matches no day of any year")

    def times(self, start: datetime) -> Iterator[datetime]:
        """Planned times at or after `start`, ascending."""
        start = start.astimezone(UTC)
        waiting: list[datetime] = []
        last = None
        for wall in self._walls(start):
            first, second = (wall.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1))
            heapq.heappush(waiting, first)
            if self._repeats and first < second:  # of a skipped time the second lies before the first: PEP 495
                heapq.heappush(waiting, second)
            # Whatever the clocks show later comes no earlier than this. A skipped time moves behind some that follow it.
            while waiting and waiting[0] <= min(first, second):
                time = heapq.heappop(waiting)
                if time >= start and time != last:
                    yield (last := time)

    def _walls(self, start: datetime) -> Iterator[datetime]:
        """What the zone's clocks would show at planned times at or after `start` if nobody ever changed them, ascending.

        APScheduler is asked as for UTC: across a change of the clocks its way from one day to the next misses a day.
        """
        near = (start + change for change in (-LONGEST_GAP, timedelta(0), LONGEST_GAP))
        # By the smallest offset: times that were skipped a moment ago, and those that come again, are still ahead of it.
        wall = start + min(moment.astimezone(self.zone).utcoffset() or timedelta(0) for moment in near)
        while (wall := self._trigger.get_next_fire_time(None, wall)) is not None:
            yield wall
            wall += timedelta(microseconds=1)

    def latest(self, now: datetime, *, within: timedelta) -> datetime | None:
        """The last planned time up to `now` that is no longer ago than `within`; None where there is none."""
        last = None
        for time in self.times(now - within):
            if time > now:
                break
            last = time
        return last

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """APScheduler's question."""
        after = previous_fire_time + timedelta(microseconds=1) if previous_fire_time else now
        return next(self.times(after), None)


def planned(section: ScheduleSection) -> dict[str, Cron]:
    """When each job of [schedule] is planned, by its name; jobs without a time are left out.

    Raises ConfigError for a bad cron string or time zone.
    """
    try:
        zone = time_zone(section.timezone)
    except ValueError as error:
        raise ConfigError(f"[schedule] timezone: {error}") from error
    texts = {name: text for name, text in section if name not in ("timezone", "catch_up_hours") and text is not None}
    return {name: Cron(text, zone, key=name) for name, text in texts.items()}


def _weekdays(field: str) -> str:
    """A crontab weekday field as names: APScheduler counts from Monday = 0, cron from Sunday = 0 or 7."""
    if field == "*":
        return field
    names: list[str] = []
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        first, dash, last = ("0-6" if span == "*" else span).partition("-")
        begin = _weekday(first)
        end = _weekday(last) if dash else 6 if step else begin
        if begin > end or (step and not (step.isdigit() and int(step))):
            raise ValueError(f"{part!r} is no range of weekdays")
        names += [WEEKDAYS[day % 7] for day in range(begin, end + 1, int(step or 1))]
    return ",".join(names)


def _weekday(word: str) -> int:
    if word in WEEKDAYS:
        return WEEKDAYS.index(word)
    if word.isdigit() and int(word) <= 7:
        return int(word)
    raise ValueError(f"{word!r} is no weekday: 0-7 (0 and 7 are Sunday) or {' '.join(WEEKDAYS)}")
