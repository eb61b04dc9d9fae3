"""activeseg rankings: the uncertainty ranking."""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict, fields
from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_json, print_table, workspace_of


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(rankings)


def rankings(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Rows.")] = 20,
    class_name: Annotated[
        list[str] | None, typer.Option("--class", help="Rank by the entropy of this class; repeat to add up several.")
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            help="Rank by this acquisition function: entropy_sum, entropy_mean, entropy_count, class_balanced_entropy, "
            "margin, least_confidence, bald or tta_jsd (see selection.md).",
        ),
    ] = "entropy_sum",
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="A past model version's ranking.")] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show the images the model is least sure of, by summed entropy in nats unless told otherwise."""
    from activeseg.db import checkpoints
    from activeseg.db.rankings import RankingRow, ranking
    from activeseg.errors import ConfigError

    if as_json and as_csv:
        raise ConfigError("--json and --csv: choose one")

    with workspace_of(context) as workspace:
        indices = sorted({workspace.label_set.index_of(name) for name in class_name or ()})
        with workspace.database.read() as session:
            row = checkpoints.by_version(session, checkpoint) if checkpoint else checkpoints.require_champion(session)
            rows = ranking(session, row, limit=limit, class_indices=indices, pool_only=checkpoint is None, by=by)
    if not rows and by in ("bald", "tta_jsd"):
        typer.echo(f"no image of the pool has {by}: set [selection] acquisition = '{by}' and run `activeseg score`", err=True)
    elif not rows:
        typer.echo(f"no image of the pool is scored by {row.model_version}: run `activeseg score`", err=True)
    if as_json:
        print_json([asdict(item) for item in rows])
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(field.name for field in fields(RankingRow))
        writer.writerows(tuple(asdict(item).values()) for item in rows)
    else:
        summed = f"entropy of {', '.join(class_name) if class_name else 'all classes'}, nats"
        title = f"{row.model_version}: {summed if by == 'entropy_sum' else by}"
        lines = [(item.rank, item.image_id, item.score, item.entropy_mean, item.uri) for item in rows]
        print_table(("rank", "image", "sum" if by == "entropy_sum" else "score", "mean/pixel", "file"), lines, title=title)
