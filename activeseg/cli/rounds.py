"""activeseg round, status: how far everything is."""

from __future__ import annotations

import getpass
from datetime import tzinfo
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from activeseg.cli.output import AsJson, as_size, client_of, listening, print_json, print_reports, print_table, workspace_of
from activeseg.errors import ConfigError
from activeseg.wording import moment

if TYPE_CHECKING:
    from activeseg.config import Settings

group = typer.Typer(help="Advance the loop.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group and the command."""
    app.add_typer(group, name="round")
    app.command()(status)


@group.callback()
def round_() -> None:
    """Advance the loop."""


@group.command()
def run(
    context: typer.Context,
    open_new: Annotated[bool, typer.Option("--open/--no-open", help="Open a new round if one is due.")] = True,
    as_json: AsJson = False,
) -> None:
    """Do all that can be done now: sync, pull, train and promote if due, score, push."""
    from activeseg.loop import advance_round

    with workspace_of(context) as workspace, client_of(workspace) as client, listening(quiet=as_json) as listener:
        reports = advance_round(workspace, client, open_new=open_new, listener=listener)
    print_reports(reports, as_json)


@group.command()
def request(
    context: typer.Context,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; it stands in the request's row.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the running scheduler for a round now; this only writes a row, which it finds within a second."""
    from activeseg.db import requests

    with workspace_of(context) as workspace, workspace.database.write() as session:
        told = None if reason is None else reason[: requests.REASON_LENGTH]
        written = requests.ask(session, requests.ROUND, requested_by=f"command line: {getpass.getuser()}"[:100], reason=told)
    if as_json:
        print_json({"kind": requests.ROUND, "written": written})
    else:
        typer.echo("asked for; `activeseg schedule` does it" if written else "a round was asked for already and waits")


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Where everything stands, and what happens next."""
    from activeseg.db.status import read_status
    from activeseg.housekeeping.room import shortage
    from activeseg.housekeeping.usage import disk_use

    with workspace_of(context) as workspace:
        with workspace.database.read() as session:
            data = read_status(session, workspace.settings)
        data["disk"] = disk_use(workspace)
        if (problem := shortage(workspace)) is not None:
            data["problems"].append(problem)
        data["planned"] = _planned(workspace.settings, data["problems"])
    if as_json:
        print_json(data)
    else:
        _print_status(data, workspace.settings.zone)


def _planned(settings: Settings, problems: list[str]) -> list[dict[str, Any]]:
    """The next time of each planned job. A cron string that is none is a problem: all the rest of the status is as true."""
    from activeseg.cron import planned
    from activeseg.db.models.columns import now

    try:
        found = {name: (cron, next(cron.times(now()))) for name, cron in planned(settings.schedule).items()}
    except ConfigError as error:
        problems.append(str(error))
        return []
    return [{"job": name, "cron": cron.text, "timezone": cron.zone.key, "next": time} for name, (cron, time) in found.items()]


def _print_status(data: dict[str, Any], zone: tzinfo) -> None:
    champion = data["champion"]
    if champion:
        quality = f", val mIoU {champion['mean_iou']:.3f}" if champion["mean_iou"] is not None else ""
        typer.echo(f"champion     {champion['model_version']}{quality}, since {moment(champion['since'], zone)}")
    else:
        typer.echo("champion     none yet")
    images = ", ".join(f"{name} {count}" for name, count in data["images"].items())
    typer.echo(f"images       {images or 'none'}")
    typer.echo(f"annotations  {_annotations(data)}")
    typer.echo(f"coverage     {data['coverage']:.0%} of the pool scored" if data["coverage"] is not None else "coverage     -")
    for run in data["jobs"]:
        said = f": {run['message']}" if run["message"] else ""
        typer.echo(f"last {run['job']:<7} {run['outcome']} {moment(run['started_at'], zone)}{said}")
    for job in data["planned"]:
        typer.echo(f"plan {job['job']:<7} {moment(job['next'], ZoneInfo(job['timezone']))} ({job['cron']})")
    typer.echo(f"disk         {', '.join(f'{kind} {as_size(size)}' for kind, size in data['disk'].items() if size)}")
    for line in data["next"]:
        typer.echo(f"next         {line}")
    for problem in data["problems"]:
        typer.echo(f"problem      {problem}")
    if data["rounds"]:
        columns = ("round", "status", "acquisition", "images", "annotated", "skipped", "open", "opened")
        rows = [[row[name if name != "opened" else "opened_at"] for name in columns] for row in data["rounds"]]
        print_table(columns, rows, zone=zone)


def _annotations(data: dict[str, Any]) -> str:
    """'12 that count: 8 for training (3 not trained on yet), 4 without a split yet'."""
    uses = {
        "train": f"for training ({data['new_annotations']} not trained on yet)",
        "val": "for validation",
        "test": "for testing",
        "pool": "without a split yet",
    }
    counts = data["annotations_by_split"]
    told = ", ".join(f"{counts[split]} {use}" for split, use in uses.items() if counts[split])
    return f"{data['annotations']} that count: {told}" if told else "none"
