"""What runs: the jobs of [schedule]. Each run has its own workspace, fence and client, and takes the lease where it writes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from activeseg import tracing
from activeseg.config import Settings
from activeseg.cron import Cron, planned
from activeseg.db import lease

if TYPE_CHECKING:
    from activeseg.db.database import Database
    from activeseg.labelstudio.client import LabelStudioClient
    from activeseg.loop import Listener
    from activeseg.records import StageReport
    from activeseg.workspace import Workspace

CheckStop = Callable[[], None]
"""Raises `Stopped` when the scheduler was asked to end; a job calls it where it can stop without loss."""

Work = Callable[["Workspace", "LabelStudioClient | None", "Listener"], Sequence["StageReport"]]
"""What a job does with an opened workspace; None is no Label Studio."""

_log = logging.getLogger(__name__)


class Stopped(BaseException):
    """Ends a running job from within. No error: handlers of `Exception` on the way must not record it as one."""


@dataclass(frozen=True)
class Job:
    """One thing done on a schedule. run: returns one sentence. cron: None where it is not planned, only asked for.

    catches_up: the latest missed time is made up, and a run that was cut off goes on. on_request: a waiting request of the
    job's name runs it at once. leases: those without which it cannot begin.
    """

    name: str
    cron: Cron | None
    run: Callable[[CheckStop], str]
    catches_up: bool = False
    on_request: bool = False
    leases: Collection[str] = (lease.LOOP,)


def loop_jobs(settings: Settings, database: Database | None = None) -> list[Job]:
    """The jobs of [schedule], also those without a time of their own. Raises ConfigError for a bad cron string.

    database: that of the settings, on whose engine they all work; None: each run opens one of its own. What the next run of
    a job would do as well is not made up: only the night, and what comes once a day or a week.
    """
    times = planned(settings.schedule)

    def job(name: str, run: Callable[[CheckStop], str], **how: Any) -> Job:
        return Job(name, times.get(name), run, **how)

    def works(work: Work) -> Callable[[CheckStop], str]:
        return partial(_work, settings, database, work)

    return [
        job("round", works(_round), catches_up=True, on_request=True),
        job("pull", partial(_pull, settings, database), on_request=True),
        job("sync", works(_sync)),
        job("score", works(_score)),
        job("push", works(_push)),
        job("train", works(_train), catches_up=True),
        job("promote", works(_promote), catches_up=True),
        job("report", partial(_report, settings, database), catches_up=True, leases=()),
        job("gc", works(_collect_garbage), catches_up=True, leases=(lease.LOOP, lease.FILES)),
    ]


def watcher(settings: Settings, database: Database) -> Callable[[str | None, str | None, str | None], None]:
    """Tells people: called with (job, outcome, message) of a run that ended, with three None at each look back."""

    def watch(job: str | None, outcome: str | None, message: str | None) -> None:
        from activeseg import alerts

        alerts.watch(settings, database, job=job, outcome=outcome, message=message)

    return watch


def _work(settings: Settings, database: Database | None, work: Work, check_stop: CheckStop) -> str:
    with _opened(settings, database) as (workspace, client):
        return _sentence(work(workspace, client, _stopping_listener(check_stop)))


def _round(workspace: Workspace, client: LabelStudioClient | None, listener: Listener) -> Sequence[StageReport]:
    from activeseg.loop import advance_round

    # Once a night everything is compared, not only what says that it changed.
    return advance_round(workspace, client, full_pull=True, listener=listener)


def _pull(settings: Settings, database: Database | None, check_stop: CheckStop) -> str:
    missing = "" if settings.labelstudio.url else " (no Label Studio to pull from: [labelstudio] url is not set)"
    return _work(settings, database, _collect_and_train, check_stop) + missing


def _collect_and_train(workspace: Workspace, client: LabelStudioClient | None, listener: Listener) -> Sequence[StageReport]:
    from activeseg.loop import collect_and_train

    return collect_and_train(workspace, client, listener=listener)


def _sync(workspace: Workspace, client: LabelStudioClient | None, listener: Listener) -> Sequence[StageReport]:
    from activeseg.housekeeping import with_room
    from activeseg.stages.pool import sync_pool

    with lease.holding(workspace.database), with_room(workspace):
        return [_told(listener, sync_pool(workspace))]


def _score(workspace: Workspace, client: LabelStudioClient | None, listener: Listener) -> Sequence[StageReport]:
    from activeseg.housekeeping import with_room
    from activeseg.stages.score import score_pool

    with lease.holding(workspace.database), with_room(workspace):
        return [_told(listener, score_pool(workspace, on_progress=listener.of("score")))]


def _push(workspace: Workspace, client: LabelStudioClient | None, listener: Listener) -> Sequence[StageReport]:
    from activeseg.loop import finish_begun

    return finish_begun(workspace, client, listener=listener)


def _train(workspace: Workspace, client: LabelStudioClient | None, listener: Listener) -> Sequence[StageReport]:
    from activeseg.loop import train_if_due

    return train_if_due(workspace, client, listener=listener)


def _promote(workspace: Workspace, client: LabelStudioClient | None, listener: Listener) -> Sequence[StageReport]:
    from activeseg.loop import promote_waiting

    return promote_waiting(workspace, client, listener=listener)


def _collect_garbage(workspace: Workspace, client: LabelStudioClient | None, listener: Listener) -> Sequence[StageReport]:
    from activeseg.housekeeping import collect_garbage

    with lease.holding(workspace.database):
        return [_told(listener, collect_garbage(workspace))]


def _report(settings: Settings, database: Database | None, check_stop: CheckStop) -> str:
    from activeseg.alerts import morning_report
    from activeseg.workspace import open_workspace

    with open_workspace(settings, beside=database) as workspace:
        return morning_report(settings, workspace.database)


def _told(listener: Listener, report: StageReport) -> StageReport:
    listener.report(report)
    return report


@contextmanager
def _opened(settings: Settings, database: Database | None) -> Iterator[tuple[Workspace, LabelStudioClient | None]]:
    # Here and in the jobs: torch and the SDK load with the first job, not with the scheduler.
    from activeseg.labelstudio.registration import open_client
    from activeseg.workspace import open_workspace

    with ExitStack() as stack:
        workspace = stack.enter_context(open_workspace(settings, beside=database))
        client = stack.enter_context(open_client(settings)) if settings.labelstudio.url else None
        yield workspace, client


def _stopping_listener(check_stop: CheckStop) -> Listener:
    from activeseg.loop import Listener

    def report(done: StageReport) -> None:
        _log.info("%s", done.sentence(), extra={"stage": done.stage, "written": done.written, "failed": done.failed})
        tracing.stage_span(done)
        check_stop()

    return Listener(report=report, progress=lambda stage, done, planned, note: check_stop())


def _sentence(reports: Sequence[StageReport]) -> str:
    """'pull 3, train 1, push 12 (1 failed)'; stages that changed nothing are left out, but for those that are held."""
    parts = [
        f"{report.stage} {report.written}" + (f" ({report.failed} failed)" if report.failed else "")
        for report in reports
        if report.written or report.failed
    ]
    parts += [f"{report.stage} waits (see `activeseg status`)" for report in reports if report.details.get("held")]
    return ", ".join(parts) or "nothing new"
