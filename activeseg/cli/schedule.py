"""activeseg schedule: the loop on a timetable."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from activeseg.cli.output import AsJson, print_json, workspace_of

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from activeseg.scheduler import Job, JobResult

NEXT_TIMES = 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(schedule)


def schedule(
    context: typer.Context,
    once: Annotated[Literal["round", "pull"] | None, typer.Option("--once", help="Run this job now, then exit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the loop on the timetable of [schedule], in the foreground.

    `round` (nightly) does what `activeseg round run` does; `pull` (every few minutes) collects annotations and trains when
    enough came in; it runs at once, too, when Label Studio's webhook says that annotations changed. Ctrl-C or SIGTERM ends
    it: the running job stops at its next chunk, a second signal kills it.
    """
    from activeseg.scheduler import Scheduler, loop_jobs, schedule_zone

    with workspace_of(context) as workspace:
        zone = schedule_zone(workspace.settings.schedule)
        planned = loop_jobs(workspace.settings)
        scheduler = Scheduler(workspace.database, planned, report=lambda result: _show(result, zone, as_json))
        if once:
            if scheduler.run_once(once).outcome != "done":
                raise typer.Exit(1)
            return
        scheduler.run(
            on_start=lambda: _show_plan(planned, zone, scheduler.now(), as_json),
            on_stop=lambda: typer.echo("stopping: a running job ends at its next chunk; a second signal kills it", err=True),
        )


def _show_plan(planned: list[Job], zone: ZoneInfo, now: datetime, as_json: bool) -> None:
    times = {job.name: list(islice(job.cron.times(now), NEXT_TIMES)) for job in planned}
    if as_json:
        _print_document([{"job": job.name, "cron": job.cron.text, "next": times[job.name]} for job in planned])
        return
    typer.echo(f"scheduler started, times in {zone.key}; Ctrl-C stops it")
    for job in planned:
        next_times = ", ".join(_local(time, zone) for time in times[job.name])
        typer.echo(f"  {job.name:<6} {job.cron.text:<14} next {next_times}")


def _show(result: JobResult, zone: ZoneInfo, as_json: bool) -> None:
    if as_json:
        _print_document(asdict(result))
        return
    when = _local(result.planned_at or result.started_at, zone)
    typer.echo(f"{when}  {result.job} {result.outcome}: {result.message} ({result.seconds:.1f} s)")


def _print_document(data: Any) -> None:
    print_json(data)
    # A reader at the other end of a pipe waits for this line, not for a full buffer.
    sys.stdout.flush()


def _local(time: datetime, zone: ZoneInfo) -> str:
    return f"{time.astimezone(zone):%Y-%m-%d %H:%M %Z}"
