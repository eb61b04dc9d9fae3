"""How long greedy k-center takes, and what memory it needs besides the features: random, clustered and correlated features.

    python scripts/bench_kcenter.py [--rows N] [--columns N] [--chosen N] [--threads N] [--json FILE]

The plain way beside it computes the differences to every center for all rows; it is timed on the first centers only, and
its time for all of them is that times their number, as every center costs it the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from activeseg.core.kcenter import greedy_k_center

AIM_SECONDS = 8.0
PLAIN_CENTERS = 5


def features(kind: str, rows: int, columns: int) -> Tensor:
    """(rows, columns) float32, the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if kind == "random":
        return normal(rows, columns)
    if kind == "clustered":
        return (normal(200, columns) * 3)[torch.randint(200, (rows,), generator=generator)] + normal(rows, columns)
    return (normal(rows, 20) @ normal(20, columns)).relu_()


def plain(rows: Tensor, k: int) -> list[int]:
    """The textbook's loop."""
    distances = torch.full((len(rows),), torch.inf)
    chosen = [0]
    while len(chosen) < k:
        distances = torch.minimum(distances, (rows - rows[chosen[-1]]).square_().sum(1))
        chosen.append(int(distances.argmax()))
    return chosen


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """(wall, processor) seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def peak_megabytes() -> float:
    """The largest memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times of one kind of features."""
    data = features(kind, options.rows, options.columns)
    greedy_k_center(data[:2000], 20)
    before = peak_megabytes()
    wall, processor = timed(lambda: greedy_k_center(data, options.chosen))
    memory = peak_megabytes() - before
    plainly, _ = timed(lambda: plain(data, PLAIN_CENTERS + 1))
    return {
        "measure": f"k-center, {kind}",
        "wall_seconds": wall,
        "processor_seconds": processor,
        "plain_seconds": plainly / PLAIN_CENTERS * options.chosen,
        "more_megabytes": memory,
        "ratio": wall / AIM_SECONDS,
        "reach": 1.0,
    }


def main() -> None:
    """Print a line for each kind of features."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--chosen", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the figures here, too; a ratio is at best at most its reach")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"{machine}; {options.rows} x {options.columns}, {options.chosen} chosen, {options.threads} threads")
    measures = [measure(kind, options) for kind in ("random", "clustered", "correlated")]
    for row in measures:
        print(
            f"{row['measure']:<22} {row['wall_seconds']:6.1f} s wall {row['processor_seconds']:6.1f} s processor, "
            f"the plain way {row['plain_seconds']:6.1f} s wall, {row['more_megabytes']:4.0f} MB more at the peak"
            + ("" if row["ratio"] <= 1 else f"  above the aim of {AIM_SECONDS:g} s")
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "measures": measures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
