"""activeseg evaluate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from activeseg.cli.output import AsJson, print_json, print_table, workspace_of
from activeseg.wording import counted

if TYPE_CHECKING:
    from activeseg.core.bootstrap import BootstrapResult, Interval
    from activeseg.core.labels import LabelSet
    from activeseg.db.models import Split
    from activeseg.evaluations import Compared
    from activeseg.workspace import Workspace

OVERALL = {
    "mean_iou": "mIoU",
    "mean_dice": "mean Dice",
    "pixel_accuracy": "pixel accuracy",
    "smoothed_iou": "smoothed IoU",
    "smoothed_dice": "smoothed Dice",
    "nll": "NLL (nats)",
    "ece": "ECE (15 bins)",
}
SCALED = {"temperature": "temperature of scores", "nll_scaled": "NLL with it", "ece_scaled": "ECE with it"}
NOTE = (
    "smoothed: (I + s) / (U + s) and 2 (I + s) / (areas + s) of each image, s = 1e-5, then the mean over images;\n"
    "a class that an image neither shows nor is predicted to show has 1 and 2 there"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


def evaluate(
    context: typer.Context,
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="Model version; the champion if left out. Two or more with --compare.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="val, train or test.")] = "val",
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the checkpoints side by side and their differences from the first.")
    ] = False,
    confusion: Annotated[
        bool,
        typer.Option("--confusion", help="Add the confusion matrix: pixels, a row a true class, a column a predicted one."),
    ] = False,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the bootstrap intervals of --compare.")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Measure checkpoints: IoU, Dice and accuracy per class, mIoU, likelihood and calibration."""
    from activeseg.db.models import Split
    from activeseg.errors import ConfigError

    versions = checkpoints or []
    if split not in ("val", "train", "test"):
        raise ConfigError(f"--split: expected val, train or test; got {split!r}")
    if len(versions) > 1 and not compare:
        raise ConfigError(f"expected one checkpoint, got {len(versions)}: add --compare to see them side by side")
    with workspace_of(context) as workspace:
        label_set = workspace.label_set
        if confusion and label_set.overlap:
            raise ConfigError("--confusion: classes that overlap have no confusion matrix; leave it out")
        if compare:
            results = _compare(workspace, versions, Split(split), confidence)
        else:
            results = _measure(workspace, versions, Split(split))
    if as_json:
        print_json(_document(results, label_set, split, confidence=confidence if compare else None, confusion=confusion))
        return
    where = f"on {split}, {counted(len(results[0].evaluation.image_ids), 'image')}"
    if compare:
        _print_side_by_side(results, label_set, where, confidence)
    else:
        _print_one(results[0], label_set, where)
    typer.echo(f"\n{NOTE}")
    if confusion:
        _print_confusion(results, label_set)


def _measure(workspace: Workspace, versions: Sequence[str], split: Split) -> tuple[Compared, ...]:
    """One checkpoint, the champion where none is named, as a comparison of one."""
    from activeseg.db import checkpoints as rows
    from activeseg.evaluations import Compared, evaluate_checkpoint

    with workspace.database.read() as session:
        row = rows.by_version(session, versions[0]) if versions else rows.require_champion(session)
    return (Compared(row.model_version, evaluate_checkpoint(workspace, row, split), None),)


def _compare(workspace: Workspace, versions: Sequence[str], split: Split, confidence: float) -> tuple[Compared, ...]:
    from activeseg.evaluations import compare_checkpoints

    return compare_checkpoints(workspace, versions, split, confidence=confidence)


def _print_one(result: Compared, label_set: LabelSet, where: str) -> None:
    columns = ("class", "IoU", "Dice", "accuracy", "pixels", "smoothed IoU", "smoothed Dice")
    rows = [
        (item.name, item.iou, item.dice, item.accuracy, item.truth_pixels, item.smoothed_iou, item.smoothed_dice)
        for item in result.evaluation.by_class(label_set)
    ]
    print_table(columns, rows, title=f"{result.model_version} {where}")
    typer.echo()
    _print_overall([result])


def _print_overall(results: Sequence[Compared]) -> None:
    figures = [result.evaluation.overall() for result in results]
    rows = [(label, *(_finite(one[name]) for one in figures)) for name, label in OVERALL.items()]
    scaled = [_scaled(result) for result in results]
    if any(one["temperature"] != 1.0 for one in scaled):
        rows += [(label, *(one[name] for one in scaled)) for name, label in SCALED.items()]
    print_table(("overall", *(result.model_version for result in results)), rows)


def _scaled(result: Compared) -> dict[str, float | None]:
    """What the temperature that scores are made with changes; nothing where it is 1."""
    measured = result.evaluation
    after = measured.scaled or measured.calibration
    return {"temperature": measured.temperature, "nll_scaled": _finite(after.nll), "ece_scaled": _finite(after.ece)}


def _print_side_by_side(results: Sequence[Compared], label_set: LabelSet, where: str, confidence: float) -> None:
    versions = [result.model_version for result in results]
    by_checkpoint = [result.evaluation.by_class(label_set) for result in results]
    names = [item.name for item in by_checkpoint[0]]
    typer.echo(f"{where}\n")
    for title, figure in (("IoU", "iou"), ("Dice", "dice")):
        columns = [[getattr(item, figure) for item in classes] for classes in by_checkpoint]
        print_table((title, *versions), list(zip(names, *columns, strict=True)))
        typer.echo()
    _print_overall(results)
    typer.echo()
    differences = [result.difference for result in results if result.difference is not None]
    rows = [("mIoU", *(_signed(item.mean_iou) for item in differences))]
    rows += [(name, *(_signed(item.iou[k]) for item in differences)) for k, name in enumerate(names)]
    typer.echo(f"IoU minus that of {versions[0]}, with {100 * confidence:.4g} % bootstrap intervals over images")
    print_table(("difference", *versions[1:]), rows)


def _print_confusion(results: Sequence[Compared], label_set: LabelSet) -> None:
    names = [label_set.names[index] for index in label_set.channels]
    for result in results:
        matrix = result.evaluation.confusion
        if matrix is None:
            continue
        rows = [(name, *counts) for name, counts in zip(names, matrix.tolist(), strict=True)]
        typer.echo()
        print_table(("truth \\ predicted", *names), rows, title=f"{result.model_version}: pixels")


def _document(
    results: Sequence[Compared], label_set: LabelSet, split: str, *, confidence: float | None, confusion: bool
) -> dict[str, Any]:
    """All figures for a program; confidence: of the intervals of a comparison, None for a single checkpoint."""
    records = [_record(result, label_set, confusion=confusion) for result in results]
    document: dict[str, Any] = {"split": split, "images": len(results[0].evaluation.image_ids)}
    return document | (records[0] if confidence is None else {"confidence": confidence, "checkpoints": records})


def _record(result: Compared, label_set: LabelSet, *, confusion: bool) -> dict[str, Any]:
    """A checkpoint's figures for a program; what does not exist is null."""
    measured = result.evaluation
    record: dict[str, Any] = {"model_version": result.model_version}
    record |= {name: _finite(value) for name, value in measured.overall().items()} | _scaled(result)
    record["classes"] = [asdict(item) for item in measured.by_class(label_set)]
    record["reliability"] = [{key: _finite(value) for key, value in asdict(one).items()} for one in measured.calibration.bins]
    if result.difference is not None:
        record["difference"] = _difference(result.difference, [item["name"] for item in record["classes"]])
    if confusion and measured.confusion is not None:
        record["confusion"] = measured.confusion.tolist()
    return record


def _difference(difference: BootstrapResult, names: Sequence[str]) -> dict[str, Any]:
    def plain(interval: Interval) -> dict[str, float | None]:
        return {key: _finite(value) for key, value in asdict(interval).items()}

    return {
        "mean_iou": plain(difference.mean_iou),
        "iou": {name: plain(interval) for name, interval in zip(names, difference.iou, strict=True)},
    }


def _signed(interval: Interval) -> str | None:
    """'+0.012 (-0.003 .. +0.030)'."""
    if math.isnan(interval.difference):
        return None
    return f"{interval.difference:+.3f} ({interval.low:+.3f} .. {interval.high:+.3f})"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
