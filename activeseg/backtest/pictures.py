"""The pictures of a report: curves with bands, the classes of what was chosen, and what was chosen first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, ScalarFormatter
from PIL import Image

from activeseg.explain.sheet import GAP, Lettering, framed, line_up, stack, text_block, with_margin
from activeseg.imaging.sandbox import decode_image
from activeseg.imaging.thumbnails import thumbnail

_SIDE = 150
_SHOWN = 6


def curve_picture(summary: Mapping[str, Any], key: str, title: str) -> bytes:
    """PNG of a figure of the rounds over labels, a line for each strategy.

    key: 'mean_iou', with a band from the worst seed to the best and the goal, or another figure of a round.
    """

    def draw(axes: Axes) -> None:
        colors = _colors(summary)
        for name, found in summary["strategies"].items():
            rounds = found["rounds"]
            labels = [item["labels"] for item in rounds]
            values = [_number(item[key]) for item in rounds]
            axes.plot(labels, values, color=colors[name], marker="o", markersize=4, label=name)
            if key == "mean_iou" and len(found["seeds"]) > 1:
                low, high = ([_number(item[end]) for item in rounds] for end in ("low", "high"))
                axes.fill_between(labels, low, high, color=colors[name], alpha=0.15, linewidth=0)
        if summary["full"] and summary["full"].get(key) is not None:
            axes.axhline(summary["full"][key], color="0.3", linewidth=1, label="all images")
        if key == "mean_iou" and summary["goal"] is not None:
            axes.axhline(summary["goal"], color="0.3", linewidth=1, linestyle="--", label="95 % of it")
        axes.set_xlabel("labelled images")
        axes.set_ylabel(title)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.3)
        _legend(axes)

    return _png(draw, 8.0, 4.8)


def class_picture(summary: Mapping[str, Any]) -> bytes | None:
    """PNG of each class's share of the pixels, in the pool and in what each strategy chose; None where nothing was chosen."""
    chosen = {name: found["chosen_pixel_shares"] for name, found in summary["strategies"].items()}
    bars = {"pool": summary["pixel_shares"]} | {name: shares for name, shares in chosen.items() if shares}
    if len(bars) < 2:
        return None

    def draw(axes: Axes) -> None:
        places, colors = np.arange(len(summary["classes"])), _colors(summary)
        height = 0.8 / len(bars)
        for number, (name, shares) in enumerate(bars.items()):
            values = [100 * (shares[of] or 0.0) for of in summary["classes"]]
            axes.barh(places + number * height, values, height, color=colors.get(name, "0.6"), label=name)
        axes.set_yticks(places + 0.4 - height / 2, summary["classes"], parse_math=False)
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=0.5)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("per cent of the labelled pixels")
        axes.grid(alpha=0.3, axis="x")
        _legend(axes)

    return _png(draw, 8.0, 1.2 + 0.16 * len(bars) * len(summary["classes"]))


def contact_sheet(rows: Mapping[str, Sequence[tuple[Path, str]]], *, max_pixels: int) -> bytes | None:
    """PNG of images with captions, a row for each strategy; None without any."""
    letters = Lettering(12)
    blocks = []
    for name, items in rows.items():
        cells = [
            stack([framed(_small(file, max_pixels)), text_block(caption, _SIDE + 2, letters)], gap=2)
            for file, caption in items[:_SHOWN]
        ]
        if cells:
            width = _SHOWN * (_SIDE + 2) + (_SHOWN - 1) * GAP
            blocks += [text_block(name, width, Lettering(15)), line_up(cells, [_SIDE + 2] * len(cells))]
    return _encode(with_margin(stack(blocks))) if blocks else None


def _small(file: Path, max_pixels: int) -> Image.Image:
    return Image.fromarray(thumbnail(decode_image(file.read_bytes(), max_pixels=max_pixels), _SIDE))


def _colors(summary: Mapping[str, Any]) -> dict[str, str]:
    """A strategy has one colour in all pictures."""
    return {name: f"C{number}" for number, name in enumerate(summary["strategies"])}


def _legend(axes: Axes) -> None:
    for text in axes.legend(fontsize=8, frameon=False).get_texts():
        text.set_parse_math(False)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _png(draw: Callable[[Axes], None], width: float, height: float) -> bytes:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    draw(figure.add_subplot())
    stream = BytesIO()
    # Without the version and the date of who drew it, the same figures give the same bytes.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _encode(picture: Image.Image) -> bytes:
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
