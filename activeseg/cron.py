"""Cron strings in a time zone, as APScheduler triggers that are right across changes of the clocks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger

from activeseg.errors import ConfigError

LONGEST_GAP = timedelta(hours=3)
"""More than any time zone ever skips or repeats at once."""

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


class Cron(BaseTrigger):  # type: ignore[misc] # APScheduler has no types
    """A five-field cron string (minute hour day month weekday) in a time zone; all its times are aware UTC.

    As in cron(8): weekday 0 and 7 are Sunday; across a change of the clocks, a fixed time that is skipped runs an hour
    later and one that comes twice runs the first time, while `*` and `*/n` hours go on by elapsed time. Unlike it, a day
    of the month and a weekday must both match.

    Raises ConfigError, naming `key`, for a string that is no cron string or matches no day.
    """

    def __init__(self, text: str, zone: ZoneInfo, *, key: str) -> None:
        self.text, self.zone = text, zone
        try:
            fields = text.split()
            if len(fields) != 5:
                raise ValueError(f"it has {len(fields)}")
            self._trigger = CronTrigger.from_crontab(" ".join([*fields[:4], _weekdays(fields[4])]), zone)
        except ValueError as error:
            raise ConfigError(
                f"[schedule] {key}: expected five cron fields (minute hour day month weekday) "
                f"such as '0 2 * * *', got {text!r}: {error}"
            ) from error
        self._repeats = fields[1].startswith("*")
        if next(self.times(datetime(2024, 1, 1, tzinfo=UTC)), None) is None:
            raise ConfigError(f"[schedule] {key}: {text!r} matches no day of any year")

    def times(self, start: datetime) -> Iterator[datetime]:
        """Planned times at or after `start`, ascending."""
        # Begun earlier, so that a time moved out of a skipped hour is found whatever moment the question is asked at.
        moment = start.astimezone(UTC) - LONGEST_GAP
        while (found := self._trigger.get_next_fire_time(None, moment)) is not None:
            found = found.astimezone(UTC)
            moment = found + timedelta(microseconds=1)
            second_time = found.astimezone(self.zone).fold == 1
            if found >= start and (self._repeats or not second_time):
                yield found

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
