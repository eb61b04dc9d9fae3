"""A job may name a time zone of its own: it runs by the clocks of that place, once a day, whatever they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from activeseg.cli.schedule import _show_plan
from activeseg.config import ScheduleSection, Settings
from activeseg.cron import planned
from activeseg.db.database import Database
from activeseg.db.models import JobRun
from activeseg.scheduler import Job, Scheduler, loop_jobs
from tests.scheduler.conftest import Clock

SECTION = {"timezone": "America/New_York", "round": "30 2 * * *", "train": "30 2 * * * Europe/Berlin", "pull": "0 * * * * UTC"}


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("job", "start", "expected"),
    [
        # Berlin's clocks change on 30 March and 26 October, New York's on 9 March and 2 November.
        ("train", utc(2025, 3, 28, 12), [utc(2025, 3, 29, 1, 30), utc(2025, 3, 30, 1, 30), utc(2025, 3, 31, 0, 30)]),
        ("train", utc(2025, 10, 24, 12), [utc(2025, 10, 25, 0, 30), utc(2025, 10, 26, 0, 30), utc(2025, 10, 27, 1, 30)]),
        ("round", utc(2025, 10, 25, 12), [utc(2025, 10, 26, 6, 30), utc(2025, 10, 27, 6, 30), utc(2025, 10, 28, 6, 30)]),
        ("round", utc(2025, 11, 1, 12), [utc(2025, 11, 2, 7, 30), utc(2025, 11, 3, 7, 30), utc(2025, 11, 4, 7, 30)]),
    ],
)
def test_each_job_goes_by_its_own_clocks(job: str, start: datetime, expected: list[datetime]) -> None:
    [cron] = [one.cron for one in loop_jobs(Settings(schedule=SECTION)) if one.name == job]
    assert cron is not None
    assert list(islice(cron.times(start), 3)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("change", [date(2025, 3, 30), date(2025, 10, 26)])
def test_two_schedulers_run_each_job_once_a_day_of_its_place_through_a_change_of_the_clocks(
    database: Database, runs: Callable[[], list[JobRun]], change: date
) -> None:
    clock = Clock(datetime(change.year, change.month, change.day, tzinfo=UTC) - timedelta(days=2))
    times = planned(ScheduleSection(timezone="Europe/Berlin", round="30 2 * * *", pull="30 2 * * * Asia/Tokyo"))
    jobs = [Job(name, cron, lambda check_stop: "worked", catches_up=True) for name, cron in times.items()]
    schedulers = [Scheduler(database, jobs, now=clock) for _ in range(2)]
    for scheduler in schedulers:
        scheduler.catch_up()
    for _ in range(4 * 24 * 2):
        clock.move(minutes=30)
        for scheduler in schedulers:
            for job in jobs:
                scheduler.tick(job.name)
    for job, zone in (("round", "Europe/Berlin"), ("pull", "Asia/Tokyo")):
        started = [run.started_at.astimezone(ZoneInfo(zone)) for run in runs() if run.job == job]
        days = Counter(time.date() for time in started)
        assert set(days.values()) == {1}
        assert {change + timedelta(days=number) for number in (-1, 0, 1)} <= set(days)
        assert {time.strftime("%H:%M") for time in started} <= ({"02:30", "03:30"} if job == "round" else {"02:30"})


def test_the_list_of_the_scheduler_names_each_jobs_zone(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = loop_jobs(Settings(schedule=SECTION | {"pull": "0 4 * * * Asia/Tokyo"}))
    _show_plan(jobs, ZoneInfo("America/New_York"), utc(2025, 10, 26, 12), as_json=False)
    head, night, pull, train = capsys.readouterr().out.splitlines()
    assert "times in America/New_York where a job names no other" in head
    assert night.split("next ")[1].startswith("2025-10-27 02:30 EDT, ")
    assert "0 4 * * * Asia/Tokyo next 2025-10-27 04:00 JST, " in pull
    assert "30 2 * * * Europe/Berlin next 2025-10-27 02:30 CET, " in train
    _show_plan(jobs, ZoneInfo("America/New_York"), utc(2025, 10, 26, 12), as_json=True)
    assert '"timezone": "Asia/Tokyo"' in capsys.readouterr().out
