"""What the demo shows: the ranking, how a round went, the picture, the curve and where to go on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from activeseg.db import checkpoints, rounds, truth
from activeseg.db.models import Query, Round, Split
from activeseg.db.rankings import ranking
from activeseg.explain.curves import curve_figure
from activeseg.explain.explanation import explain_pixels
from activeseg.explain.figures import PanelRow, panel_figure
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.registration import open_project
from activeseg.labelstudio.server import RunningServer
from activeseg.nn.checkpoint import load_checkpoint
from activeseg.nn.device import pick_device
from activeseg.wording import counted
from activeseg.workspace import Workspace

RANKS_SHOWN = 5
PICTURE_ROWS = 4

QUERY = "SELECT rank, round(entropy_sum) AS nats, uri FROM uncertainty_ranking ORDER BY rank LIMIT 5;"


def print_ranking(console: Console, workspace: Workspace, row: Round) -> None:
    """The top of the ranking the round was chosen from, and what of it was asked."""
    with workspace.database.read() as session:
        champion = checkpoints.require_champion(session)
        top = ranking(session, champion, limit=RANKS_SHOWN)
        arms = {query.image_id: query.arm.value for query, _ in rounds.queries(session, row.id)}
    table = _table("rank", "image", "entropy sum (nats)", "mean per pixel", "in this round")
    for item in top:
        arm = arms.get(item.image_id, "-")
        table.add_row(str(item.rank), Path(item.uri).name, f"{item.score:,.0f}", f"{item.entropy_mean:.3f}", arm)
    console.print(table)
    control = sum(arm == "control" for arm in arms.values())
    console.print(
        f"  asked for: {counted(len(arms) - control, 'most uncertain image')} and {control} drawn at random", highlight=False
    )


def print_round(console: Console, workspace: Workspace, row: Round) -> None:
    """What came back, and what the gate said of the new checkpoint."""
    with workspace.database.read() as session:
        statuses = session.scalars(sa.select(Query.status).where(Query.round_id == row.id)).all()
        counts = {status.value: statuses.count(status) for status in dict.fromkeys(statuses)}
        newest = checkpoints.overview(session)[0]
    came = ", ".join(f"{count} {name}" for name, count in counts.items())
    console.print(f"  round {row.number}: {came}", highlight=False)
    console.print(
        f"  {newest['model_version']} {newest['decision']}: {newest['reason']}", highlight=False, markup=False, soft_wrap=True
    )


def learning_curve(workspace: Workspace) -> list[dict[str, Any]]:
    """Every trained checkpoint, oldest first: its training size, validation mIoU and the decision about it."""
    with workspace.database.read() as session:
        return [row for row in reversed(checkpoints.overview(session)) if row["mean_iou"] is not None]


def print_curve(console: Console, workspace: Workspace, state: Path) -> None:
    """mIoU by round as a table, the curve and the picture as PNG files."""
    rows = learning_curve(workspace)
    console.print("\nValidation mIoU by round", highlight=False)
    table = _table("round", "training images", "mIoU", "", "decision")
    for number, row in enumerate(rows):
        bar = "#" * round(40 * row["mean_iou"])
        table.add_row(str(number), str(row["num_images"]), f"{row['mean_iou']:.3f}", bar, str(row["decision"] or "-"))
    console.print(table)
    points = [(float(row["num_images"]), row["mean_iou"]) for row in rows]
    title = "Validation mIoU by annotated images"
    curve = curve_figure({title: points}, xlabel="annotated training images", ylabel="validation mIoU", title=title)
    curve.save(state / "curve.png")
    picture(workspace).save(state / "picture.png")
    console.print(f"  wrote {state / 'curve.png'}", soft_wrap=True, highlight=False)
    console.print(f"  wrote {state / 'picture.png'} (image | prediction | truth | entropy)", soft_wrap=True, highlight=False)


def picture(workspace: Workspace) -> Any:
    """The champion on a few validation images, evenly spread from its surest to its least sure."""
    with workspace.database.read() as session:
        champion = checkpoints.require_champion(session)
        labelled = truth.current(session, split=Split.VAL)
    data = workspace.artifacts.read(champion.location, sha256=champion.sha256)
    device = pick_device(workspace.settings.model.device)
    segmenter = load_checkpoint(data, model_version=champion.model_version, device=device)
    seen = []
    for item in labelled:
        image, mask = workspace.read_labeled(item)
        explanation = explain_pixels(segmenter, image)
        total = float(explanation.entropy.sum(dtype=np.float64))
        caption = f"{Path(item.image.uri).name}: {total:,.0f} nats"
        seen.append((total, PanelRow(image, explanation.mask, mask, explanation.entropy, caption)))
    seen.sort(key=lambda pair: pair[0])
    places = np.linspace(0, len(seen) - 1, min(PICTURE_ROWS, len(seen))).round().astype(int)
    upper = float(np.log(workspace.label_set.num_classes))
    return panel_figure([seen[place][1] for place in places], workspace.label_set, upper=upper)


def print_ending(
    console: Console,
    workspace: Workspace,
    state: Path,
    seconds: dict[str, float],
    server: RunningServer | None,
    client: LabelStudioClient | None,
) -> None:
    """Seconds per stage, where Label Studio is and how to log in, and what to type next."""
    console.print("\nSeconds per stage", highlight=False)
    table = _table("stage", "seconds")
    for stage, spent in seconds.items():
        if spent >= 0.05:
            table.add_row(stage, f"{spent:.1f}")
    console.print(table)
    if server is not None and client is not None:
        project = open_project(workspace, client).external_project_id
        _lines(
            console,
            f"\nLabel Studio   {server.url}/projects/{project}/data",
            f"log in as      {server.email}",
            f"password       {server.password}",
        )
    folder = shlex.quote(str(state))
    _lines(
        console,
        "\nGo on from here:",
        f"  cd {folder}",
        "  activeseg status",
        "  activeseg rankings --class pedestrian --class bicyclist" if "bicyclist" in workspace.label_set.names else "",
        f'  python -m sqlite3 activeseg.db "{QUERY}"' if _has_sqlite_shell() else f'  sqlite3 activeseg.db "{QUERY}"',
    )


def _has_sqlite_shell() -> bool:
    import sys

    return sys.version_info >= (3, 12)


def _lines(console: Console, *lines: str) -> None:
    for line in lines:
        if line:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=True, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMERIC else "left")
    return table


_NUMERIC: Sequence[str] = ("rank", "entropy sum (nats)", "mean per pixel", "round", "training images", "mIoU", "seconds")
