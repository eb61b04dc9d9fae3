"""activeseg schedule, runs: the loop on a timetable, and what became of it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from activeseg.cli.output import AsJson, print_json, print_table, workspace_of
from activeseg.wording import moment

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from activeseg.db.jobs import RunRecord
    from activeseg.scheduler import Job, JobResult

NEXT_TIMES = 3
RUNS_SHOWN = 20

JobName = Literal["round", "pull", "sync", "score", "push", "train", "promote", "report", "gc"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(schedule)
    app.command()(runs)


def schedule(
    context: typer.Context,
    once: Annotated[JobName | None, typer.Option("--once", help="Run this job now, then exit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the loop on the timetable of [schedule], in the foreground.

    `round` (nightly) does what `activeseg round run` does; `pull` (every few minutes) collects annotations and trains when
    enough came in. Both run at once, too, when they are asked for: by `activeseg round request`, or by Label Studio's webhook.
    `sync`, `score`, `push`, `train`, `promote`, `report` and `gc` run where [schedule] has a time for them. Ctrl-C or SIGTERM
    ends it: the running job stops at its next chunk, a second signal kills it.
    """
    from activeseg.nn.heap import share_heap

    share_heap()  # jobs run in a thread
    from activeseg.scheduler import Scheduler, loop_jobs, watcher

    with workspace_of(context) as workspace:
        settings = workspace.settings
        zone = settings.zone
        planned = loop_jobs(settings, workspace.database)
        scheduler = Scheduler(
            workspace.database,
            planned,
            report=lambda result: _show(result, zone, as_json),
            watch=watcher(settings, workspace.database),
            catch_up=timedelta(hours=settings.schedule.catch_up_hours),
            logs=None if settings.log.dir is None else settings.path(settings.log.dir),
        )
        if once:
            if scheduler.run_once(once).outcome != "done":
                raise typer.Exit(1)
            return
        scheduler.run(
            on_start=lambda: _show_plan(planned, zone, scheduler.now(), as_json),
            on_stop=lambda: typer.echo("stopping: a running job ends at its next chunk; a second signal kills it", err=True),
        )


def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, youngest first.")] = RUNS_SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show what the scheduler ran: when, who asked for it, how it ended, and the file of its log lines."""
    from activeseg.db import jobs

    with workspace_of(context) as workspace, workspace.database.read() as session:
        found = jobs.history(session, limit=limit)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    columns = ("run", "job", "planned", "asked for by", "started", "ended", "outcome", "what", "host", "log")
    print_table(columns, [_cells(one) for one in found], zone=workspace.settings.zone)


def _cells(one: RunRecord) -> tuple[object, ...]:
    when = (one.planned_at, one.asked_by, one.started_at, one.ended_at)
    return (one.run, one.job, *when, one.outcome, one.message, one.host, one.log)


def _show_plan(planned: list[Job], zone: ZoneInfo, now: datetime, as_json: bool) -> None:
    plan = [(job.name, job.cron, list(islice(job.cron.times(now), NEXT_TIMES))) for job in planned if job.cron]
    if as_json:
        fields = [{"job": name, "cron": cron.text, "timezone": cron.zone.key, "next": times} for name, cron, times in plan]
        _print_document(fields)
        return
    typer.echo(f"scheduler started, times in {zone.key} where a job names no other; Ctrl-C stops it")
    for name, cron, times in plan:
        typer.echo(f"  {name:<7} {cron.text:<14} next {', '.join(moment(time, cron.zone) for time in times)}")


def _show(result: JobResult, zone: ZoneInfo, as_json: bool) -> None:
    if as_json:
        _print_document(asdict(result))
        return
    when = moment(result.planned_at or result.started_at, zone)
    typer.echo(f"{when}  {result.job} {result.outcome}: {result.message} ({result.seconds:.1f} s)")


def _print_document(data: Any) -> None:
    print_json(data)
    # A reader at the other end of a pipe waits for this line, not for a full buffer.
    sys.stdout.flush()
