"""When the loop runs. APScheduler, in memory, says when to look; the tables say what was already done.

A planned time of a job is claimed by its row in `schedule_slots`, so two schedulers on one database, a restart inside the
minute or a late wake-up run it once; what became of it stands in `job_runs`. Jobs of one process run one after another,
because they need the same lease and the same device. A job that fails is recorded, and its next planned time comes all
the same. Between planned times a job runs when somebody asked for it by a row in `requests`, as Label Studio's hints do.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from activeseg.config import ScheduleSection, Settings
from activeseg.cron import Cron
from activeseg.db import jobs, lease, requests
from activeseg.db.database import Database
from activeseg.db.models import JobOutcome
from activeseg.db.models.columns import now as utc_now
from activeseg.errors import ActivesegError, ConfigError, LeaseError
from activeseg.signals import signal_pipe, signals_interrupt, signals_kill

if TYPE_CHECKING:
    from activeseg.labelstudio.client import LabelStudioClient
    from activeseg.loop import Listener
    from activeseg.records import StageReport
    from activeseg.workspace import Workspace

LOOK_BACK_EVERY = timedelta(minutes=10)
"""Missed times are looked for at start and then this often: the database may have been away, or the machine asleep."""

LOOK_FOR_REQUESTS_EVERY = timedelta(seconds=3)

REST_BETWEEN_REQUESTS = timedelta(seconds=30)
"""From the end of one job that was asked for to the next of its kind: people who submit every few seconds would keep the
pull running without a break, and rounds, planned jobs and commands would find its lease held."""

CheckStop = Callable[[], None]
"""Raises `Stopped` when the scheduler was asked to end; a job calls it where it can stop without loss."""


class Stopped(BaseException):
    """Ends a running job from within. No error: handlers of `Exception` on the way must not record it as one."""


@dataclass(frozen=True)
class Job:
    """One thing done on a schedule. run: returns one sentence.

    catches_up: the latest missed time is made up. on_request: a waiting request of the job's name runs it at once.
    """

    name: str
    cron: Cron
    run: Callable[[CheckStop], str]
    catches_up: bool = False
    on_request: bool = False


@dataclass(frozen=True)
class JobResult:
    """What became of one run. planned_at: None where it was asked for by hand."""

    job: str
    planned_at: datetime | None
    started_at: datetime
    ended_at: datetime
    outcome: JobOutcome
    message: str

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended_at - self.started_at).total_seconds()


class Scheduler:
    """Runs jobs at their planned times, each time once whatever the number of schedulers on the database.

    database: for claims and outcomes only. Jobs open their own, so a lease one of them lost cannot keep its outcome from
    being recorded. report: called with each run's result, from the thread that ran it. now: aware current time.
    """

    def __init__(
        self,
        database: Database,
        planned: Sequence[Job],
        *,
        report: Callable[[JobResult], None] = lambda result: None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.database, self.jobs, self.report, self.now = database, {job.name: job for job in planned}, report, now
        self._stopping = threading.Event()
        self._log = logging.getLogger(__name__)

    def run(self, *, on_start: Callable[[], None] = lambda: None, on_stop: Callable[[], None] = lambda: None) -> None:
        """Run jobs until SIGINT or SIGTERM; returns once the running job has stopped. Main thread only.

        The first signal lets no job begin and ends the running one at its next progress report (a chunk of scores, a
        training step, a pushed batch), from where the next run goes on. A second signal kills the process at once; its
        run is marked abandoned at the next start.
        """
        self.recover()
        background = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(1)},
            # How late is too late is decided against the table (`Cron.latest`), not by APScheduler.
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            logger=_quiet_logger(),
        )
        background.add_job(self.catch_up, IntervalTrigger(seconds=LOOK_BACK_EVERY.total_seconds()), next_run_time=utc_now())
        if any(job.on_request for job in self.jobs.values()):
            background.add_job(self.serve_request, IntervalTrigger(seconds=LOOK_FOR_REQUESTS_EVERY.total_seconds()))
        for job in self.jobs.values():
            background.add_job(self.tick, job.cron, args=[job.name], id=job.name)
        with signal_pipe() as arrived:
            background.start()
            try:
                on_start()
                os.read(arrived, 1)
                self._stopping.set()
                signals_kill()
                on_stop()
            finally:
                background.shutdown(wait=True)

    def tick(self, name: str) -> JobResult | None:
        """Run a job for its latest planned time; None where that is claimed already or too long ago."""
        return self._run_planned(self.jobs[name], catching_up=False)

    def catch_up(self) -> list[JobResult]:
        """Make up the latest missed time of each job that wants it, unless it never ran before."""
        results = [self._run_planned(job, catching_up=True) for job in self.jobs.values() if job.catches_up]
        return [result for result in results if result is not None]

    def serve_request(self) -> JobResult | None:
        """Run the job of the oldest waiting request; None where none waits or another process is at work.

        Requests no job of this scheduler answers to are left alone. Of two schedulers one gets a request. One that comes
        within REST_BETWEEN_REQUESTS of the last waits.
        """
        names = [job.name for job in self.jobs.values() if job.on_request]
        started = self.now()
        try:
            with self.database.read() as session:
                # Asked first: taking a request only to find the lease held would write a run every few seconds.
                if self._stopping.is_set() or not requests.is_waiting(session, names) or lease.is_held(session):
                    return None
                rested = requests.rested(session, names, at=started, pause=REST_BETWEEN_REQUESTS)
                if not requests.is_waiting(session, rested):
                    return None
            with self.database.write() as session:
                request = requests.take(session, rested, at=started)
                run_id = jobs.start_run(session, request.kind, None, at=started) if request else 0
        except Exception as error:
            self._log.warning("requests could not be looked for: %s", _named(error))
            return None
        return self._work(self.jobs[request.kind], run_id, None, started, request_id=request.id) if request else None

    def run_once(self, name: str) -> JobResult:
        """Run a job now, planned or not. A signal ends it as it ends `run`."""
        self.recover()
        started = self.now()
        with self.database.write() as session:
            run_id = jobs.start_run(session, name, None, at=started)
        with signals_interrupt():
            return self._work(self.jobs[name], run_id, None, started)

    def recover(self) -> list[int]:
        """Mark runs of this host whose process is gone as abandoned; returns their ids.

        Only for a process that runs nothing yet: a run under its own number belongs to an earlier process (in a container
        every start has the same one).
        """
        with self.database.write() as session:
            dead = [row for row in jobs.running_here(session) if row.pid == os.getpid() or not _alive(row.pid)]
            for row in dead:
                message = f"process {row.pid} ended in the middle of it"
                jobs.end_run(session, row.id, JobOutcome.ABANDONED, message, at=self.now())
            return [row.id for row in dead]

    def _run_planned(self, job: Job, *, catching_up: bool) -> JobResult | None:
        started = self.now()
        planned_at = job.cron.latest(started)
        if planned_at is None or self._stopping.is_set():
            return None
        try:
            with self.database.write() as session:
                run_id = jobs.claim_slot(session, job.name, planned_at, at=started, catching_up=catching_up)
        except Exception as error:
            self._log.exception("job %s: its planned time %s could not be claimed", job.name, planned_at)
            result = JobResult(job.name, planned_at, started, self.now(), JobOutcome.FAILED, f"not begun: {_named(error)}")
            self.report(result)
            return result
        return None if run_id is None else self._work(job, run_id, planned_at, started)

    def _work(
        self, job: Job, run_id: int, planned_at: datetime | None, started: datetime, *, request_id: int | None = None
    ) -> JobResult:
        outcome, message = self._outcome(job)
        result = JobResult(job.name, planned_at, started, self.now(), outcome, message)
        try:
            with self.database.write() as session:
                jobs.end_run(session, run_id, outcome, message, at=result.ended_at)
                if outcome is JobOutcome.BUSY and job.catches_up and planned_at is not None:
                    # Somebody else was at work, perhaps on something smaller: the next look back tries again.
                    jobs.release_slot(session, job.name, planned_at)
                if outcome is JobOutcome.BUSY and request_id is not None:
                    requests.give_back(session, request_id)
        except Exception:
            self._log.exception("job %s: its outcome could not be recorded", job.name)
        self.report(result)
        return result

    def _outcome(self, job: Job) -> tuple[JobOutcome, str]:
        try:
            return JobOutcome.DONE, job.run(self._check_stop)
        except LeaseError as error:
            return JobOutcome.BUSY, str(error)
        except ActivesegError as error:
            return JobOutcome.FAILED, str(error)
        except (Stopped, KeyboardInterrupt):
            return JobOutcome.ABANDONED, "stopped by a signal; the next run goes on from here"
        except Exception as error:
            self._log.exception("job %s failed unexpectedly", job.name)
            return JobOutcome.FAILED, _named(error)

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise Stopped


def loop_jobs(settings: Settings) -> list[Job]:
    """The jobs of [schedule]. Each run opens its own workspace and client. Raises ConfigError for a bad cron string."""
    section = settings.schedule
    zone = schedule_zone(section)
    return [
        Job("round", Cron(section.round, zone, key="round"), lambda stop: _round(settings, stop), catches_up=True),
        Job("pull", Cron(section.pull, zone, key="pull"), lambda stop: _pull(settings, stop), on_request=True),
    ]


def schedule_zone(section: ScheduleSection) -> ZoneInfo:
    """The time zone of [schedule]. Raises ConfigError where it is unknown."""
    try:
        return ZoneInfo(section.timezone)
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(
            f"[schedule] timezone: expected an IANA name such as Europe/Berlin, got {section.timezone!r}"
        ) from error


def _round(settings: Settings, check_stop: CheckStop) -> str:
    from activeseg.loop import advance_round

    with _opened(settings) as (workspace, client):
        # Once a night everything is compared, not only what says that it changed.
        return _sentence(advance_round(workspace, client, full_pull=True, listener=_stopping_listener(check_stop)))


def _pull(settings: Settings, check_stop: CheckStop) -> str:
    from activeseg.loop import collect_and_train

    with _opened(settings) as (workspace, client):
        reports = collect_and_train(workspace, client, listener=_stopping_listener(check_stop))
    missing = "" if client else " (no Label Studio to pull from: [labelstudio] url is not set)"
    return _sentence(reports) + missing


@contextmanager
def _opened(settings: Settings) -> Iterator[tuple[Workspace, LabelStudioClient | None]]:
    # Here and in the jobs: torch and the SDK load with the first job, not with the scheduler.
    from activeseg.labelstudio.registration import open_client
    from activeseg.workspace import open_workspace

    with ExitStack() as stack:
        workspace = stack.enter_context(open_workspace(settings))
        client = stack.enter_context(open_client(settings)) if settings.labelstudio.url else None
        yield workspace, client


def _stopping_listener(check_stop: CheckStop) -> Listener:
    from activeseg.loop import Listener

    return Listener(report=lambda report: check_stop(), progress=lambda stage, done, planned: check_stop())


def _sentence(reports: Sequence[StageReport]) -> str:
    """'pull 3, train 1, push 12 (1 failed)'; stages that changed nothing are left out."""
    parts = [
        f"{report.stage} {report.written}" + (f" ({report.failed} failed)" if report.failed else "")
        for report in reports
        if report.written or report.failed
    ]
    return ", ".join(parts) or "nothing new"


def _named(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _quiet_logger() -> logging.Logger:
    """APScheduler's warnings about a job that is still running are no news: the table and `Cron.latest` see to that."""
    logger = logging.getLogger("activeseg.apscheduler")
    logger.setLevel(logging.ERROR)
    return logger
