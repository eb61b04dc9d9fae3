"""activeseg round, status: how far everything is."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from activeseg.cli.output import AsJson, client_of, listening, print_json, print_reports, print_table, workspace_of

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


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Where everything stands, and what happens next."""
    from activeseg.db.status import read_status

    with workspace_of(context) as workspace, workspace.database.read() as session:
        data = read_status(session, workspace.settings)
    if as_json:
        print_json(data)
    else:
        _print_status(data)


def _print_status(data: dict[str, Any]) -> None:
    champion = data["champion"]
    if champion:
        quality = f", val mIoU {champion['mean_iou']:.3f}" if champion["mean_iou"] is not None else ""
        typer.echo(f"champion     {champion['model_version']}{quality}, since {champion['since']:%Y-%m-%d %H:%M} UTC")
    else:
        typer.echo("champion     none yet")
    images = ", ".join(f"{name} {count}" for name, count in data["images"].items())
    typer.echo(f"images       {images or 'none'}")
    typer.echo(f"annotations  {_annotations(data)}")
    typer.echo(f"coverage     {data['coverage']:.0%} of the pool scored" if data["coverage"] is not None else "coverage     -")
    for line in data["next"]:
        typer.echo(f"next         {line}")
    for problem in data["problems"]:
        typer.echo(f"problem      {problem}")
    if data["rounds"]:
        columns = ("round", "status", "acquisition", "images", "annotated", "skipped", "open", "opened")
        print_table(columns, [[row[name if name != "opened" else "opened_at"] for name in columns] for row in data["rounds"]])


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
