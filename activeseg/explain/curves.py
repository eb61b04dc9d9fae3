"""Curves over rounds, by matplotlib's figure objects: no pyplot, no current figure, no window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image

_WIDTH, _HEIGHT, _DPI = 8.0, 5.0, 100
_MARKERS = "osD^vPX*<>"
_LONGEST_NAME = 36

_Series = Mapping[str, Sequence[tuple[float, float]]]


def curve_figure(series: _Series, *, xlabel: str, ylabel: str, title: str) -> Image.Image:
    """One line with markers per series of (x, y) points; 800 pixels wide, 500 tall and more for a long legend.

    A y that is NaN leaves a gap. Without any point the axes say so. Two or more series get a legend below the axes.
    """
    canvas = FigureCanvasAgg(_figure(series, xlabel=xlabel, ylabel=ylabel, title=title))
    canvas.draw()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]


def _figure(series: _Series, *, xlabel: str, ylabel: str, title: str) -> Figure:
    figure = Figure(dpi=_DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    axes = figure.add_subplot()
    for number, points in enumerate(series.values()):
        x, y = zip(*points, strict=True) if points else ((), ())
        style = ("-", "--", ":")[number // len(_MARKERS) % 3]
        axes.plot(x, y, linestyle=style, marker=_MARKERS[number % len(_MARKERS)], label=str(number))
    _label(axes, xlabel, ylabel, title)
    if not any(series.values()):
        axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center", va="center")
    elif all(float(x).is_integer() for points in series.values() for x, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend_lines = _add_legend(figure, list(series)) if len(series) > 1 else 0
    figure.set_size_inches(_WIDTH, _HEIGHT + 0.2 * max(0, legend_lines - 2))
    return figure


def _label(axes: Axes, xlabel: str, ylabel: str, title: str) -> None:
    # parse_math: a '$' in a class or file name is a dollar.
    axes.set_xlabel(fill(xlabel, 80), parse_math=False)
    axes.set_ylabel(fill(ylabel, 45), parse_math=False)
    axes.set_title(fill(title, 75), parse_math=False)
    axes.grid(alpha=0.3)


def _add_legend(figure: Figure, names: Sequence[str]) -> int:
    """Number of lines of the legend below the axes."""
    shown = [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name in names]
    columns = min(len(names), 2 if max(map(len, shown)) > 20 else 3)
    legend = figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    for text, name in zip(legend.get_texts(), shown, strict=True):
        text.set_parse_math(False)
        text.set_text(name)  # only now: matplotlib leaves out a label that starts with an underscore
    return -(-len(names) // columns)
