"""The tables and curves of docs/label-efficiency.md, from the report.json of a backtest.

    python scripts/study_figures.py --report label-efficiency/report.json --out docs/label-efficiency

For each part of the images held out: prints its tables as Markdown, and writes curves-PART.png into the folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from activeseg.backtest.pictures import curve_picture
from activeseg.backtest.report import measured_on, percent, points, sentences, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, required=True, help="report.json of `activeseg backtest`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    given = parser.parse_args()
    summary = json.loads(given.report.read_text(encoding="utf-8"))
    print(*sentences(summary)[:1], sep="\n")
    for name, part in summary["parts"].items():
        print(f"\n{measured_on(name, part)}\n", *markdown(*table(part)), "", *markdown(*at_the_end(part)), sep="\n")
        (given.out / f"curves-{name}.png").write_bytes(curve_picture(part, "mean_iou", f"mIoU, {part['held_out']} images"))
    print("", *markdown(*costs(summary)), sep="\n")


def at_the_end(part: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """After the last round: all classes, the rare ones, and each of these."""
    head = ["after the last round", "mIoU", "against random", "rare classes", "against random", *part["rare"]]
    rows = []
    for name, found in part["strategies"].items():
        last, against = found["rounds"][-1], found.get("against_baseline")
        differences = [points(against[key][-1]) if against else "" for key in ("rounds", "rare_rounds")]
        rare = [percent(last["iou"][of]) for of in part["rare"]]
        rows.append([name, percent(last["mean_iou"]), differences[0], percent(last["rare_mean_iou"]), differences[1], *rare])
    return head, rows


def costs(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What choosing takes beside scoring, and how alike the images of a query are."""
    head = ["strategy", "scoring, ms an image", "choosing, s", "choosing / scoring", "spread of a query"]
    rows = []
    for name, found in summary["strategies"].items():
        seconds = found["seconds"]
        ways = [1000 * seconds["scoring_per_image"], seconds["selection"], seconds["selection_share"], found["spread"]]
        rows.append([name, *(f"{way:{shown}}" for way, shown in zip(ways, (".0f", ".2f", ".2%", ".2f"), strict=True))])
    return head, rows


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line each."""
    yield from (f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    main()
