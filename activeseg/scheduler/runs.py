"""What became of a job: its claim, its beats while it is on, its log, its outcome.

A run that is cut off, by whatever kills its process or takes the database away, is given back: its planned time may be
claimed again, its request waits again. So it goes on, a few times (`db.jobs.MOST_TRIES`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
import stamina
from sqlalchemy.orm import Session

from activeseg import logs, tracing
from activeseg.config import masked
from activeseg.db import jobs, lease, requests
from activeseg.db.database import Database
from activeseg.db.models import JobOutcome, JobRun
from activeseg.errors import NoRoomError

LAST_WORDS_SECONDS = 30.0
"""How long a process that ends tries to record the outcome of its run in a database that is away."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobResult:
    """What became of one run. planned_at: None where it was asked for. run: its row; None where there is none."""

    job: str
    planned_at: datetime | None
    started_at: datetime
    ended_at: datetime
    outcome: JobOutcome
    message: str
    run: int | None = None

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended_at - self.started_at).total_seconds()


@dataclass(frozen=True)
class Begun:
    """A run that was opened. log: the file its lines go to; None = none."""

    run: int
    job: str
    planned_at: datetime | None
    started_at: datetime
    log: Path | None

    def result(self, outcome: JobOutcome, message: str, ended_at: datetime) -> JobResult:
        """What became of it."""
        return JobResult(self.job, self.planned_at, self.started_at, ended_at, outcome, masked(message), self.run)


class Runs:
    """The records of the runs of one scheduler.

    go_on: names of the jobs that are given back their planned time where they were cut off or found another process at
    work. ttl: seconds after which a run that is not heard of is abandoned. folder: for the runs' log files; None = none.
    """

    def __init__(
        self, database: Database, *, go_on: Collection[str], ttl: float = lease.TTL_SECONDS, folder: Path | None = None
    ) -> None:
        self.database, self.go_on, self.ttl, self.folder = database, frozenset(go_on), ttl, folder
        self._unrecorded: list[JobResult] = []

    def by_hand(self, job: str, *, at: datetime) -> Begun:
        """Open a run that nobody planned."""
        with self.database.write() as session:
            return self._begun(jobs.start_run(session, job, None, at=at))

    def claim(self, job: str, planned_at: datetime, *, at: datetime, catching_up: bool) -> Begun | None:
        """Open the run of a planned time; None where that is not ours to run."""
        with self.database.write() as session:
            row = jobs.claim_slot(session, job, planned_at, at=at, catching_up=catching_up)
            return None if row is None else self._begun(row)

    def take_request(self, names: Collection[str], *, at: datetime) -> Begun | None:
        """Take the oldest waiting request for one of these jobs and open its run; None without one."""
        with self.database.write() as session:
            request = requests.take(session, names, at=at)
            return None if request is None else self._begun(jobs.start_run(session, request.kind, None, at=at))

    @contextmanager
    def on(self, begun: Begun) -> Iterator[tracing.Note]:
        """While it lasts the run is heard of, its lines go to its file, and a span is around it.

        Yields what takes the outcome for the span.
        """
        planned = begun.planned_at.isoformat() if begun.planned_at else None
        with (
            logs.run_log(begun.log, run=begun.run, job=begun.job),
            tracing.run_span(begun.job, run=begun.run, planned_at=planned) as note,
            self._beating(begun),
        ):
            _log.info("run begun", extra={"planned_at": planned})
            yield note

    def end(self, result: JobResult) -> None:
        """Record how a run ended; where the database is away, `mend` does it later."""
        try:
            self._record(result)
        except Exception as error:
            _log.warning("job %s: its outcome could not be recorded yet: %s", result.job, first_line(error))
            self._unrecorded.append(result)

    def mend(self) -> None:
        """Record the outcomes that could not be recorded. Raises what the database raises."""
        while self._unrecorded:
            self._record(self._unrecorded[0])
            del self._unrecorded[0]

    def mend_before_leaving(self) -> None:
        """The same for a process that ends: it waits a while for the database. Recording again changes nothing."""
        try:
            for attempt in stamina.retry_context(on=sa.exc.DBAPIError, attempts=None, timeout=LAST_WORDS_SECONDS):
                with attempt:
                    self.mend()
        except Exception as error:
            _log.error("outcomes were not recorded; others will see these runs as abandoned: %s", first_line(error))

    def abandon_dead(self, *, at: datetime) -> list[JobResult]:
        """Mark the runs that are not heard of any more, of any host, and give them back. Each is returned to one caller."""
        with self.database.read() as session:
            if not jobs.has_dead(session, ttl=self.ttl):
                return []
        with self.database.write() as session:
            dead = jobs.abandon_dead(session, at=at, ttl=self.ttl)
            for row in dead:
                self._give_back(session, row, JobOutcome.ABANDONED)
            return [_result(row, at) for row in dead]

    def worked_since(self, result: JobResult) -> bool:
        """Whether a later run of the job ended well, before anybody saw that this one was cut off: then nobody is told."""
        with self.database.read() as session:
            return jobs.worked_since(session, result.job, result.run)

    def _begun(self, row: JobRun) -> Begun:
        """Names the run's log file in its row."""
        file = None
        if self.folder is not None:
            file = self.folder / f"{row.started_at.astimezone(UTC):%Y%m%d-%H%M%S}-{row.job}-{row.id}.jsonl"
            row.log = str(file)[-jobs.LOG_LENGTH :]
        return Begun(row.id, row.job, row.planned_at, row.started_at, file)

    def _record(self, result: JobResult) -> None:
        assert result.run is not None
        with self.database.write() as session:
            known = session.get(JobRun, result.run)
            if known is None or (known.job, known.started_at) != (result.job, result.started_at):
                # A backup was restored meanwhile: whatever has this number now is another run.
                _log.warning(
                    "run %s of %s is not in the database any more: its outcome is not recorded", result.run, result.job
                )
                return
            was_on = jobs.end_run(session, result.run, result.outcome, result.message, at=result.ended_at)
            row = session.get_one(JobRun, result.run)
            if was_on:
                self._give_back(session, row, result.outcome)
            elif row.outcome is not JobOutcome.ABANDONED and row.planned_at is not None:
                # It was taken for dead and came to its end all the same: nobody needs to do it again.
                jobs.take_slot(session, row.job, row.planned_at, at=result.ended_at)

    def _give_back(self, session: Session, row: JobRun, outcome: JobOutcome) -> None:
        """What was cut off goes on, and what found another process at work waits for it."""
        session.flush()
        cut_off = outcome is JobOutcome.ABANDONED and jobs.may_go_on(session, row.job)
        if not cut_off and outcome is not JobOutcome.BUSY:
            return
        if row.planned_at is not None and row.job in self.go_on:
            jobs.release_slot(session, row.job, row.planned_at)
        elif (request := jobs.request_of(session, row)) is not None:
            requests.give_back(session, request.id)

    @contextmanager
    def _beating(self, begun: Begun) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(begun, stop), name=f"beat-{begun.run}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _beat(self, begun: Begun, stop: threading.Event) -> None:
        while not stop.wait(self.ttl / 3):
            try:
                with self.database.write() as session:
                    if not jobs.beat(session, begun.run, begun.started_at):
                        why = f"it was not heard of for {self.ttl:.0f} s, or a backup was restored"
                        _log.warning("run %s is not on any more in the database: %s", begun.run, why)
                        return
            except (sa.exc.SQLAlchemyError, NoRoomError) as error:
                # The database is away, busy or full: the next beat may succeed.
                _log.debug("run %s could not say that it is on: %s", begun.run, first_line(error))


def first_line(error: BaseException) -> str:
    """'ValueError: what it says', without secrets, in one line."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return masked(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def _result(row: JobRun, at: datetime) -> JobResult:
    return JobResult(row.job, row.planned_at, row.started_at, at, row.outcome, row.message or "", row.id)
