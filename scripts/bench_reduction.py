"""What upsampling, softmax, all statistics and the class map cost, beside the source documents' formula and the forward pass.

    python scripts/bench_reduction.py [--repeats N] [--network NAME] [--clock wall|processor] [--json FILE]

The documents' formula is interpolate, softmax, p * log(p + 1e-6), sum, argmax in torch eager. It gives one number and the class
map; ours gives all that is stored. They take turns, so that a busy machine slows both; the figures are medians, in milliseconds
of one image. Every result is compared with float64. The forward pass is the network's without its last interpolation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from activeseg.core.enlarging import Enlargement
from activeseg.core.entropy import BatchStatistics, reduce_logits
from activeseg.core.reduction import can_compile, reduce_coarse
from activeseg.core.sums import as_statistics, made_ready
from activeseg.core.whole import whole_sums
from activeseg.nn.zoo import build_model

Clock = Callable[[], float]
Measure = dict[str, Any]

SHIPPED = 21 * 512 * 512 * 4
"""Bytes of the probabilities of a 512x512 image, which peers take to the CPU."""


def formula(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The documents' entropy and class map."""
    large = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    p = torch.softmax(large, dim=1)
    return -(p * torch.log(p + 1e-6)).sum(dim=(1, 2, 3)), large.argmax(dim=1)


def sigmoid_formula(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same for classes that overlap."""
    large = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    p = torch.sigmoid(large)
    return -(p * torch.log(p + 1e-6) + (1 - p) * torch.log(1 - p + 1e-6)).sum(dim=(1, 2, 3)), large > 0


def medians(calls: dict[str, Callable[[], Any]], repeats: int, clock: Clock) -> dict[str, float]:
    """Milliseconds of each call; they take turns, once before it counts."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            started = clock()
            call()
            seconds[name].append(clock() - started)
    return {name: statistics.median(taken[1:]) * 1e3 for name, taken in seconds.items()}


def ways(logits: Tensor, large: Enlargement, *, sigmoid: bool) -> dict[str, Callable[[], Any]]:
    """What is compared, the documents' formula first."""
    documents = sigmoid_formula if sigmoid else formula
    calls: dict[str, Callable[[], Any]] = {
        "formula": lambda: documents(logits, large.size),
        "full logits": lambda: reduce_logits(large.apply(logits), sigmoid=sigmoid),
        "strips": lambda: reduce_coarse(logits, large, sigmoid=sigmoid, class_map=True),
    }
    if can_compile() is None:
        calls["kernel"] = lambda: reduce_coarse(logits, large, sigmoid=sigmoid, compiled=True, class_map=True)
    return calls


def difference(found: BatchStatistics, logits: Tensor, large: Enlargement, *, sigmoid: bool) -> float:
    """The largest relative difference of a sum of entropies from float64's."""
    exact = reduce_logits(large.apply(logits.double()), sigmoid=sigmoid)
    pairs = [(getattr(found, name), getattr(exact, name)) for name in ("entropy_sum", "grid", "channel_entropy_sum")]
    return max(float(((one - other).abs() / other).max()) for one, other in pairs)


def measure(
    channels: int, coarse: tuple[int, int], stride: int, *, sigmoid: bool, repeats: int, clock: Clock
) -> tuple[str, dict[str, float]]:
    """Milliseconds of each way for one size, checked first; also says how far they are from float64."""
    size = (coarse[0] * stride, coarse[1] * stride)
    large = Enlargement(size, False, *size)
    logits = torch.randn(1, channels, *coarse, generator=torch.Generator().manual_seed(0)) * 3
    calls = ways(logits, large, sigmoid=sigmoid)
    found = [calls[name]() for name in ("strips", "kernel") if name in calls]
    off = max(difference(one, logits, large, sigmoid=sigmoid) for one in found)
    assert off < 1e-4, f"the sums are off by {off:.1e}"
    name = f"{channels} x {size[0]} x {size[1]}{', sigmoid' if sigmoid else ''}"
    return name, medians(calls, repeats, clock) | {"off": off}


def compiled_by_torch(repeats: int, clock: Clock) -> dict[str, float]:
    """What runs on a GPU, compiled, here on the CPU: milliseconds, and the seconds that compiling took."""
    logits = torch.randn(1, 21, 80, 120, generator=torch.Generator().manual_seed(0)) * 3
    large = Enlargement((640, 960), False, 640, 960)

    def run() -> BatchStatistics:
        coarse = made_ready(logits, large, sigmoid=False)
        labels = coarse.empty_class_map()
        return as_statistics(whole_sums(coarse, labels, compiled=True), coarse, labels)

    began = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - began} | medians({"ms": run}, repeats, clock)


def forward(network: str, repeats: int, clock: Clock) -> float:
    """Milliseconds of the network's bare forward pass of a 640x960 image, float32, eager."""
    module = build_model(network, 21, aux=False).eval()
    image = torch.rand(1, 3, 640, 960).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return medians({"forward": lambda: module.coarse(image)}, repeats, clock)["forward"]


def bytes_of(found: BatchStatistics) -> int:
    """What leaves the device for one image without a class map."""
    values = (getattr(found, name) for name in BatchStatistics.__slots__)
    return sum(value.nbytes for value in values if value is not None)


def judged(name: str, value: float, anchor: float, ratio: float, reach: float | None, *, at_most: bool = False) -> Measure:
    """A measure as JSON. reach: what the ratio should be at least, or at most; None where nothing was set."""
    return {"name": name, "value": value, "anchor": anchor, "ratio": ratio, "reach": reach, "at_most": at_most}


def measures(options: argparse.Namespace) -> list[Measure]:
    """All of them, printed as they are there."""
    clock = time.process_time if options.clock == "processor" else time.perf_counter
    rows = []
    heads = f"{'formula':>9} {'full logits':>12} {'strips':>8} {'kernel':>8} {'ratio':>7} {'off by':>9}"
    print(f"\n{'milliseconds an image':<28} {heads}")
    first: dict[str, float] = {}
    for channels, coarse, stride, sigmoid in (
        (21, (80, 120), 8, False),
        (21, (80, 120), 8, True),
        (12, (45, 60), 8, False),
        (19, (32, 64), 32, False),
    ):
        name, taken = measure(channels, coarse, stride, sigmoid=sigmoid, repeats=options.repeats, clock=clock)
        first = first or taken
        best = taken.get("kernel", taken["strips"])
        ratio = taken["formula"] / best
        figures = f"{taken['formula']:>9.1f} {taken['full logits']:>12.1f} {taken['strips']:>8.1f} {best:>8.1f} {ratio:>7.1f}"
        print(f"{name:<28} {figures} {taken['off']:>9.1e}", flush=True)
        rows.append(judged(f"reduction, {name}", best, taken["formula"], ratio, 10.0))
        strips = taken["formula"] / taken["strips"]
        rows.append(judged(f"relative difference from float64, {name}", taken["off"], 1.0, taken["off"], 1e-4, at_most=True))
        rows.append(judged(f"reduction without a compiler, {name}", taken["strips"], taken["formula"], strips, None))
    best = first.get("kernel", first["strips"])
    passing = forward(options.network, max(1, options.repeats // 4), clock)
    print(f"\nforward pass of {options.network}: {passing:.0f} ms; the reduction is {best / passing:.2%} of it")
    rows.append(judged(f"share of the forward pass of {options.network}", best, passing, best / passing, 0.03, at_most=True))
    kept = bytes_of(reduce_coarse(torch.zeros(1, 21, 64, 64), Enlargement((512, 512), False, 512, 512)))
    print(f"bytes that leave the device for an image of 21 classes: {kept} (its probabilities at 512x512: {SHIPPED})")
    rows.append(judged("bytes an image, beside its probabilities", kept, SHIPPED, kept, 1000.0, at_most=True))
    if options.torch_compile:
        torchs = compiled_by_torch(options.repeats, clock)
        print(f"by torch.compile: {torchs['ms']:.1f} ms, after {torchs['seconds']:.0f} s of compiling")
        rows.append(judged("reduction by torch.compile", torchs["ms"], first["formula"], first["formula"] / torchs["ms"], None))
    return rows


def machine() -> str:
    """What the figures depend on besides the processor's name."""
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return (
        f"{threads}, {torch.backends.cpu.get_cpu_capability()}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--network", default="fcn_resnet50")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--torch-compile", action="store_true", help="measure what a GPU would run, compiled for this CPU, too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    print(f"{machine()}; medians of {options.repeats} turns, {options.clock} ms")
    if (hindrance := can_compile()) is not None:
        print(f"without the kernel: {hindrance}")
    rows = measures(options)
    if options.json:
        found = {"machine": machine(), "repeats": options.repeats, "clock": options.clock, "measures": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
