"""A backtest's report: one HTML file with everything in it, and the same figures as JSON."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from activeseg.backtest.dataset import ReplayData
from activeseg.backtest.pictures import class_picture, contact_sheet, curve_picture
from activeseg.backtest.summary import BASELINE, CONFIDENCE
from activeseg.backtest.units import Unit
from activeseg.wording import counted

ENOUGH_SEEDS = 5
"""From here on the bootstrap over seeds is worth its name."""

_PARTS = {"train": "Measured on what was held out of train alone", "val": "Measured on val alone"}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #202020; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
h2 { margin-top: 2.2rem; }
"""


def write_report(out: Path, summary: Mapping[str, Any], units: Sequence[Unit], data: ReplayData, *, max_pixels: int) -> None:
    """`out`/report.json and `out`/report.html."""
    _write(out / "report.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    pictures = _pictures(summary, units, data, max_pixels)
    _write(out / "report.html", html(summary, pictures))


def table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The figures by strategy, as head and rows of text."""
    head = ["strategy", "seeds", *(f"{labels} images" for labels in summary["protocol"]["labels"])]
    head += ["area", f"against {BASELINE}", "rare classes, area", f"against {BASELINE}", "labels for 95 %", "labels saved"]
    return head, [[name, *_row(found, summary)] for name, found in summary["strategies"].items()]


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What the figures say, and what they do not."""
    said = [
        f"{counted(summary['pool'], 'image')} to choose from, {summary['held_out']} held out. mIoU in per cent, over all of "
        f"these at once; means over seeds. Intervals: {CONFIDENCE:.0%}, paired bootstrap over seeds and images held out "
        f"({summary['samples']} draws)."
    ]
    full = summary["full"]
    if full and full["mean_iou"] is not None:
        said.append(f"Trained on all {full['labels']} images for {full['steps']} steps: mIoU {100 * full['mean_iou']:.1f}.")
    if summary["rare"]:
        said.append(f"Rare classes: {', '.join(summary['rare'])}.")
    seeds = min((len(found["seeds"]) for found in summary["strategies"].values()), default=0)
    if seeds < ENOUGH_SEEDS:
        few = "one says nothing about another" if seeds == 1 else f"with {seeds} an interval is too narrow"
        said.append(f"Seeds are few: {few}; trust the intervals from {ENOUGH_SEEDS} on.")
    against = {name: found.get("against_baseline") for name, found in summary["strategies"].items()}
    return said + [_verdict(name, found) for name, found in against.items() if found]


def measured_on(name: str, part: Mapping[str, Any]) -> str:
    """Over which images a part's figures are, and what they come to on all images."""
    full = part["full"]
    goal = f"; trained on all images: mIoU {percent(full['mean_iou'])}" if full and full["mean_iou"] is not None else ""
    verdicts = [
        _verdict(of, found["against_baseline"]) for of, found in part["strategies"].items() if "against_baseline" in found
    ]
    return " ".join([f"{_PARTS[name]}, {counted(part['held_out'], 'image')}{goal}.", *verdicts])


def _verdict(name: str, against: Mapping[str, Any]) -> str:
    interval, seeds = against["area"], len(against["seeds"])
    if interval["low"] is None or seeds < 2:
        return f"{name}: {counted(seeds, 'seed')} beside {BASELINE}, nothing can be said."
    where = f"in area under the curve on these {seeds} seeds"
    if interval["low"] > 0:
        return f"{name} is better than {BASELINE} {where}."
    if interval["high"] < 0:
        return f"{name} is worse than {BASELINE} {where}."
    return f"{name} cannot be told from {BASELINE} {where}."


def _row(found: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    against = found.get("against_baseline")
    return [
        str(len(found["seeds"])),
        *(percent(item["mean_iou"]) for item in found["rounds"]),
        percent(found["area"]),
        points(against["area"]) if against else "-",
        percent(found["rare_area"]),
        points(against["rare_area"]) if against and "rare_area" in against else "-",
        _labels_to_goal(found, summary),
        _share(against["saved"]) if against else "-",
    ]


def _labels_to_goal(found: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    if summary["goal"] is None:
        return "-"
    if found["labels_to_goal"] is None:
        return "not reached"
    first = "at most " if found["labels_to_goal"] == summary["protocol"]["labels"][0] else ""
    return f"{first}{found['labels_to_goal']:.0f} ({found['share_to_goal']:.0%})"


def percent(value: float | None) -> str:
    """mIoU in per cent."""
    return "-" if value is None else f"{100 * value:.1f}"


def points(interval: Mapping[str, float | None]) -> str:
    """A difference in points of mIoU, with its interval."""
    if interval["difference"] is None:
        return "-"
    ends = (interval["low"], interval["high"])
    shown = " .. ".join("?" if end is None else f"{100 * end:+.1f}" for end in ends)
    return f"{100 * interval['difference']:+.1f} ({shown})"


def _share(interval: Mapping[str, float | None]) -> str:
    if interval["difference"] is None:
        return "-"
    shown = " .. ".join("?" if end is None else f"{end:+.0%}" for end in (interval["low"], interval["high"]))
    return f"{interval['difference']:+.0%} ({shown})"


def _pictures(summary: Mapping[str, Any], units: Sequence[Unit], data: ReplayData, max_pixels: int) -> dict[str, bytes | None]:
    first_seed = min(summary["protocol"]["seeds"])
    folder = data.folder / "pool" / "images"
    rows = {
        unit.strategy: [(folder / item.name, Path(item.name).name) for item in unit.chosen]
        for unit in units
        if unit.seed == first_seed and unit.round == 0 and unit.chosen
    }
    return {
        "mIoU over labelled images": curve_picture(summary, "mean_iou", "mIoU"),
        "Rare classes": curve_picture(summary, "rare_mean_iou", "mIoU of the rare classes") if summary["rare"] else None,
        "Calibration": curve_picture(summary, "ece", "expected calibration error"),
        "Classes of what was chosen": class_picture(summary),
        f"Chosen first (seed {first_seed})": contact_sheet(rows, max_pixels=max_pixels),
    }


def html(summary: Mapping[str, Any], pictures: Mapping[str, bytes | None]) -> str:
    """The page."""
    parts = ["<h1>Backtest</h1>", *(f"<p>{escape(text)}</p>" for text in sentences(summary)), _html_table(*table(summary))]
    for title, picture in pictures.items():
        if picture is not None:
            source = b64encode(picture).decode()
            parts.append(f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="data:image/png;base64,{source}">')
    for name, part in summary["parts"].items():
        parts += [f"<h2>{escape(_PARTS[name])}</h2>", f"<p>{escape(measured_on(name, part))}</p>", _html_table(*table(part))]
    parts += ["<h2>Each round</h2>", _html_table(*_rounds_table(summary))]
    parts += ["<h2>Classes</h2>", _html_table(*_classes_table(summary))]
    parts += ["<h2>Cost</h2>", _html_table(*_cost_table(summary))]
    machines = "; ".join(", ".join(f"{key} {value}" for key, value in item.items()) for item in summary["machines"])
    parts.append(f"<p>Computed on: {escape(machines)}</p>")
    title = "<title>Backtest</title>"
    return f'<!doctype html><html lang="en"><meta charset="utf-8">{title}<style>{_STYLE}</style>{"".join(parts)}</html>\n'


def _rounds_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["strategy", "images", "mIoU", "worst seed", "best seed", f"against {BASELINE}", "rare classes", "NLL", "ECE"]
    rows = []
    for name, found in summary["strategies"].items():
        differences = found.get("against_baseline", {}).get("rounds", [None] * len(found["rounds"]))
        for item, difference in zip(found["rounds"], differences, strict=True):
            row = [name, str(item["labels"]), *(percent(item[key]) for key in ("mean_iou", "low", "high"))]
            row.append("-" if difference is None else points(difference))
            row += [
                percent(item["rare_mean_iou"]),
                *("-" if item[key] is None else f"{item[key]:.3f}" for key in ("nll", "ece")),
            ]
            rows.append(row)
    return head, rows


def _classes_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """IoU after the last round."""
    names = list(summary["strategies"])
    head = ["class", "share of the pool", *names, *(["all images"] if summary["full"] else [])]
    rows = []
    for of in summary["classes"]:
        row = [of, percent(summary["pixel_shares"][of])]
        row += [percent(summary["strategies"][name]["rounds"][-1]["iou"][of]) for name in names]
        rows.append(row + ([percent(summary["full"]["iou"][of])] if summary["full"] else []))
    return head, rows


def _cost_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["strategy", "training (s)", "scoring (s an image)", "selection (s)", "selection of scoring", "spread of a query"]
    rows = []
    for name, found in summary["strategies"].items():
        seconds, spread = found["seconds"], found["spread"]
        row = [name]
        for key, form in (("training", ".0f"), ("scoring_per_image", ".3f"), ("selection", ".2f"), ("selection_share", ".1%")):
            row.append("-" if seconds[key] is None else format(seconds[key], form))
        rows.append([*row, "-" if spread is None else f"{spread:.3f}"])
    return head, rows


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
