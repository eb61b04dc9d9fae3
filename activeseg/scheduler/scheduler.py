"""When jobs run. APScheduler, in memory, says when to look; the tables say what was already done.

A planned time of a job is claimed by its row in `schedule_slots`, so two schedulers on one database, a restart inside the
minute or a late wake-up run it once; what became of it stands in `job_runs`. Jobs of one process run one after another,
because they need the same lease and the same device. A job that fails is recorded, and its next planned time comes all
the same; one that is cut off goes on. Between planned times a job runs when somebody asked for it by a row in `requests`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from activeseg.db import jobs, lease, requests
from activeseg.db.database import Database, was_ended
from activeseg.db.models import JobOutcome
from activeseg.db.models.columns import now as utc_now
from activeseg.errors import ActivesegError, LeaseError
from activeseg.scheduler.jobs import Job, Stopped
from activeseg.scheduler.runs import Begun, JobResult, Runs, first_line
from activeseg.signals import signal_pipe, signals_interrupt, signals_kill

LOOK_BACK_EVERY = timedelta(minutes=10)
"""Missed times are looked for at start and then this often: the database may have been away, or the machine asleep."""

LOOK_EVERY = timedelta(seconds=1)
"""Requests, and runs of processes that died, are looked for this often: one transaction that reads."""

REST_BETWEEN_REQUESTS = timedelta(seconds=30)
"""From the end of one job that was asked for to the next of its kind: people who submit every few seconds would keep the
pull running without a break, and rounds, planned jobs and commands would find its lease held."""

CATCH_UP = timedelta(hours=6)
"""A planned time is still worth running this late unless [schedule] says otherwise: a night missed by an outage is made up
before the working day, and no later, so that it does not compete with people for the machine."""

Watch = Callable[[str | None, str | None, str | None], None]
"""Called with (job, outcome, message) of a run that ended, and with three None at each look back."""


class Scheduler:
    """Runs jobs at their planned times, each time once whatever the number of schedulers on the database.

    database: for claims and outcomes only. Jobs open their own, so a lease one of them lost cannot keep its outcome from
    being recorded. report: called with each run's result, from the thread that ran it. watch: tells people; what it raises
    is logged. catch_up: how late a planned time is still run. ttl: seconds after which a run that is not heard of is
    abandoned. logs: folder for a file of each run; None = none. now: aware current time.
    """

    def __init__(
        self,
        database: Database,
        planned: Sequence[Job],
        *,
        report: Callable[[JobResult], None] = lambda result: None,
        watch: Watch = lambda job, outcome, message: None,
        catch_up: timedelta = CATCH_UP,
        ttl: float = lease.TTL_SECONDS,
        logs: Path | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.database, self.jobs, self.report, self.now = database, {job.name: job for job in planned}, report, now
        self.within = catch_up
        self.runs = Runs(database, go_on=[job.name for job in planned if job.catches_up], ttl=ttl, folder=logs)
        self._watch = watch
        self._stopping = threading.Event()
        self._known_as_planned: set[str] = set()
        self._owed: set[str] = set()
        self._away = False
        self._log = logging.getLogger(__name__)

    def run(self, *, on_start: Callable[[], None] = lambda: None, on_stop: Callable[[], None] = lambda: None) -> None:
        """Run jobs until SIGINT or SIGTERM; returns once the running job has stopped. Main thread only.

        The first signal lets no job begin and ends the running one at its next progress report (a chunk of scores, a
        training step, a pushed batch), from where it goes on at the next start. A second signal kills the process at once;
        its run is seen as abandoned.
        """
        background = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(1)},
            # How late is too late is decided against the table (`Cron.latest`), not by APScheduler.
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            logger=_quiet_logger(),
        )
        background.add_job(self.catch_up, IntervalTrigger(seconds=LOOK_BACK_EVERY.total_seconds()), next_run_time=utc_now())
        background.add_job(self.look, IntervalTrigger(seconds=LOOK_EVERY.total_seconds()))
        for job in self.jobs.values():
            if job.cron is not None:
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
                self.runs.mend_before_leaving()

    def tick(self, name: str) -> JobResult | None:
        """Run a job for its latest planned time; None where that is claimed already or too long ago."""
        return self._run_planned(self.jobs[name], catching_up=False)

    def catch_up(self) -> list[JobResult]:
        """Make up the latest missed time of each job that wants it, unless it lies before the job was first planned."""
        try:
            self.runs.mend()
            self.recover()
            self._write_down_plans()
        except Exception as error:
            self._lost(error)
        made_up = [self._run_planned(job, catching_up=True) for job in self.jobs.values() if job.catches_up]
        self._tell(None, None, None)
        return [result for result in made_up if result is not None]

    def look(self) -> list[JobResult]:
        """What cannot wait for the next look back: outcomes not recorded yet, runs whose process died, what is owed since
        another process was at work, and requests. Where the database is away the next look does it."""
        if self._stopping.is_set():
            return []
        try:
            self.runs.mend()
            self.recover()
            owed = self._run_owed()
        except Exception as error:
            self._lost(error)
            return []
        self._found()
        served = self.serve_request()
        return owed if served is None else [*owed, served]

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
            begun = self.runs.take_request(rested, at=started)
        except Exception as error:
            self._log.warning("requests could not be looked for: %s", first_line(error))
            return None
        return None if begun is None else self._work(begun)

    def run_once(self, name: str) -> JobResult:
        """Run a job now, planned or not. A signal ends it as it ends `run`."""
        self.recover()
        begun = self.runs.by_hand(name, at=self.now())
        with signals_interrupt():
            # The command tells by itself how its one run ended.
            result = self._work(begun, trouble=logging.INFO)
            self.runs.mend_before_leaving()
        return result

    def recover(self) -> list[int]:
        """Mark runs that were not heard of for their time to live as abandoned, of any host; returns their ids."""
        dead = self.runs.abandon_dead(at=self.now())
        for result in dead:
            self._log.warning("run %s of %s is abandoned: %s", result.run, result.job, result.message)
            if not self.runs.worked_since(result):
                self._tell(result.job, result.outcome, result.message)
        self._owed.update(result.job for result in dead if result.planned_at is not None)
        return [result.run for result in dead if result.run is not None]

    def _write_down_plans(self) -> None:
        """So that the first night can be missed: it is known from when on the job was planned."""
        planned = [job.name for job in self.jobs.values() if job.catches_up and job.cron is not None]
        for name in planned:
            if name not in self._known_as_planned:
                with self.database.write() as session:
                    jobs.plan_from(session, name, at=self.now())
                self._known_as_planned.add(name)

    def _run_owed(self) -> list[JobResult]:
        """Make up what was given back, as soon as nobody is at work."""
        owed = [self.jobs[name] for name in self._owed if name in self.jobs and self.jobs[name].catches_up]
        if not owed:
            self._owed.clear()
            return []
        with self.database.read() as session:
            held = {name for job in owed for name in job.leases if lease.is_held(session, name)}
        # One that would only find its lease taken would do so every second, with a row and a log file each time.
        names = [job.name for job in owed if not held.intersection(job.leases)]
        self._owed.difference_update(names)
        made_up = [self._run_planned(self.jobs[name], catching_up=True) for name in names]
        return [result for result in made_up if result is not None]

    def _run_planned(self, job: Job, *, catching_up: bool) -> JobResult | None:
        started = self.now()
        planned_at = None if job.cron is None else job.cron.latest(started, within=self.within)
        if planned_at is None or self._stopping.is_set():
            return None
        try:
            begun = self.runs.claim(job.name, planned_at, at=started, catching_up=catching_up)
        except Exception as error:
            self._log.exception("job %s: its planned time %s could not be claimed", job.name, planned_at)
            if not catching_up:
                # Tried again as soon as the database can be read; if that fails too, with the next look back.
                self._owed.add(job.name)
            message = f"not begun: {first_line(error)}"
            result = JobResult(job.name, planned_at, started, self.now(), JobOutcome.FAILED, message)
            self.report(result)
            return result
        return None if begun is None else self._work(begun)

    def _work(self, begun: Begun, *, trouble: int = logging.WARNING) -> JobResult:
        """Run a job. trouble: level of the log line that tells it went wrong."""
        with self.runs.on(begun) as note:
            outcome, message = self._outcome(self.jobs[begun.job])
            result = begun.result(outcome, message, self.now())
            note(outcome.value, result.message)
            extra = {"outcome": outcome.value, "seconds": result.seconds}
            bad = outcome in (JobOutcome.FAILED, JobOutcome.ABANDONED)
            self._log.log(trouble if bad else logging.INFO, "run %s: %s", outcome.value, result.message, extra=extra)
            self.runs.end(result)
        if begun.planned_at is not None and outcome in (JobOutcome.BUSY, JobOutcome.ABANDONED):
            self._owed.add(begun.job)
        self.report(result)
        self._tell(result.job, result.outcome, result.message)
        return result

    def _outcome(self, job: Job) -> tuple[JobOutcome, str]:
        try:
            return JobOutcome.DONE, job.run(self._check_stop)
        except LeaseError as error:
            return JobOutcome.BUSY, str(error)
        except ActivesegError as error:
            return JobOutcome.FAILED, str(error)
        except (Stopped, KeyboardInterrupt):
            return JobOutcome.ABANDONED, jobs.STOPPED
        except Exception as error:
            if _database_went_away(error):
                self._log.warning("job %s: the database went away in the middle of it", job.name, exc_info=True)
                return JobOutcome.ABANDONED, f"the database went away in the middle of it: {first_line(error)}"
            self._log.exception("job %s failed unexpectedly", job.name)
            return JobOutcome.FAILED, first_line(error)

    def _tell(self, job: str | None, outcome: JobOutcome | None, message: str | None) -> None:
        try:
            self._watch(job, None if outcome is None else outcome.value, message)
        except Exception as error:
            self._log.warning("nobody could be told: %s", first_line(error), exc_info=True)

    def _lost(self, error: Exception) -> None:
        """Said once, not every second."""
        level = logging.DEBUG if self._away else logging.WARNING
        self._away = True
        away = isinstance(error, sa.exc.SQLAlchemyError)
        what = "the database cannot be read" if away else "a look failed"
        # Anything else is a fault of this program, of which the trace is wanted.
        self._log.log(level, "%s; looking again every second: %s", what, first_line(error), exc_info=not away)

    def _found(self) -> None:
        if self._away:
            self._away = False
            self._log.warning("the database is back")

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise Stopped


def _database_went_away(error: Exception) -> bool:
    """Also where it sent this process away, which was paused in the middle of a write: see `lease.HeldLease.check`."""
    return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError) or was_ended(error)


def _quiet_logger() -> logging.Logger:
    """APScheduler's warnings about a job that is still running are no news: the table and `Cron.latest` see to that."""
    logger = logging.getLogger("activeseg.apscheduler")
    logger.setLevel(logging.ERROR)
    return logger
