"""A compiled network taking over from the eager one: when that pays, and only where it gives the same numbers.

The eager network serves from the first image on. For each size that is common enough, its seconds per image are measured;
once what compiling is expected to save on the images left exceeds what it is expected to cost, it is done, compared and timed
on the images at hand, and serves all further batches of exactly that shape. Both expectations are those measured on this
machine before, where there are any. Whatever goes wrong, the eager network goes on.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from activeseg.nn.pace import Pace

MAX_SHAPES = 3
"""Shapes a pass compiles at most: landscape, portrait and one more."""

TIMED = 2
"""Batches a network is timed on, after one that warms it up."""

LEAST_GAIN = 0.03
"""Share of the time that a compiled network must save to serve."""

Compute = Callable[..., Tensor]
"""Pixels (N, 3, H, W) uint8 on the device, and whatever else a batch comes with -> statistics (N, K) float64."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What compiling takes and brings. seconds: of compiling. gain: share of the eager seconds that it saves."""

    seconds: float
    gain: float


def expected_cost(device: torch.device, precision: str) -> Cost:
    """Before anything was measured here; see docs/benchmarks.md for where the figures come from."""
    if device.type == "cuda":
        return Cost(120.0, 0.25)
    return Cost(120.0, 0.2 if precision == "float32" else 0.4)


@dataclass(slots=True)
class Ledger:
    """Costs measured before, in a JSON file. file: None keeps nothing."""

    file: Path | None

    def get(self, key: str) -> Cost | None:
        """The cost noted last under a key; None where there is none that can be read."""
        try:
            return Cost(**self._all()[key])
        except (KeyError, TypeError):
            return None

    def note(self, key: str, cost: Cost) -> None:
        """Keep a cost. Where it cannot be written nothing happens: the next pass measures again."""
        if self.file is None:
            return
        with suppress(OSError):
            unfinished = self.file.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(self._all() | {key: asdict(cost)}, indent=1), encoding="utf-8")
            unfinished.replace(self.file)

    def _all(self) -> dict[str, dict[str, float]]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8")) if self.file else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@dataclass
class Takeover:
    """Computes batches, eagerly at first.

    eager, compiled: the same computation twice; the first call of `compiled` with a shape compiles for it, or raises.
    mode: 'auto' as told above, 'always' compiles for the first shape, 'never'. left: images the pass will still see.
    hinders: why nothing can be compiled here; None = it can. tolerance: largest relative difference between the two.
    clock: seconds, after all that was asked of the device is done.
    """

    eager: Compute
    compiled: Compute
    mode: str
    left: Callable[[], float]
    expected: Cost
    pace: Pace
    ledger: Ledger = field(default_factory=lambda: Ledger(None))
    name: str = ""
    tolerance: float = 1e-4
    hinders: Callable[[], str | None] = lambda: None
    clock: Callable[[], float] = time.perf_counter
    _seen: Counter[torch.Size] = field(default_factory=Counter)
    _seconds: dict[torch.Size, list[float]] = field(default_factory=dict)
    _serving: set[torch.Size] = field(default_factory=set)
    _tried: set[torch.Size] = field(default_factory=set)

    def __call__(self, pixels: Tensor, *more: Tensor) -> Tensor:
        """The statistics of a batch."""
        shape = pixels.shape
        compiled = shape in self._serving or (self._worth_trying(shape) and self._compile(pixels, *more))
        if compiled:
            statistics = self.compiled(pixels, *more)
            self.pace.compiled_images += len(pixels)
        elif self.mode == "auto" and shape not in self._tried and len(self._seconds.get(shape, ())) <= TIMED:
            seconds, statistics = self._timed(self.eager, pixels, *more)
            self._seconds.setdefault(shape, []).append(seconds / len(pixels))
        else:
            statistics = self.eager(pixels, *more)
        # Not before, because what does not fit into memory comes again in parts.
        self._seen[shape] += len(pixels)
        self.pace.images += len(pixels)
        self.pace.batch_size = max(self.pace.batch_size, len(pixels))
        return statistics

    def _worth_trying(self, shape: torch.Size) -> bool:
        if self.mode == "never" or shape in self._tried or len(self._tried) >= MAX_SHAPES or self.pace.not_compiled:
            return False
        if self.mode == "always":
            return True
        timed = self._seconds.get(shape, [])[1:]
        if len(timed) < TIMED:
            return False
        left = self.left() * self._seen[shape] / self._seen.total()
        cost = self.ledger.get(self._key(shape)) or self.expected
        return left * median(timed) * cost.gain > cost.seconds

    def _compile(self, pixels: Tensor, *more: Tensor) -> bool:
        """Whether the compiled network serves the shape from now on: unless it cannot, is no faster or says something else."""
        self._tried.add(pixels.shape)
        if (hindrance := self.hinders()) is not None:
            return self._refuse(hindrance)
        began = self.clock()
        try:
            statistics = self.compiled(pixels, *more)
            # What the compiler leaves behind takes half a second to collect: now, not in the midst of the batches timed below.
            gc.collect()
            compiling = self.clock() - began
            faster = min(self._timed(self.compiled, pixels, *more)[0] for _ in range(TIMED))
            slower, expected = self._timed(self.eager, pixels, *more)
        except Exception as error:  # the compiler is a large program that calls others: it raises anything
            said = str(error).strip().partition("\n")[0][:200]
            return self._refuse(f"{type(error).__name__}: {said}")
        finally:
            self.pace.compile_seconds += self.clock() - began
        gain, key = 1 - faster / slower, self._key(pixels.shape)
        if not agree(statistics, expected, self.tolerance):
            self.ledger.note(key, Cost(compiling, 0.0))
            return self._refuse("the compiled network gives other numbers")
        # Half of it is what was believed before: one second in which others took the cores must not forbid compiling for ever.
        believed = (self.ledger.get(key) or self.expected).gain
        self.ledger.note(key, Cost(compiling, (gain + believed) / 2))
        if gain < LEAST_GAIN and self.mode == "auto":
            return self._refuse(f"the compiled network is no faster ({gain:+.0%})")
        self._serving.add(pixels.shape)
        return True

    def _refuse(self, reason: str) -> bool:
        self.pace.not_compiled = reason
        logging.getLogger(__name__).warning("scoring goes on without a compiled network: %s", reason)
        return False

    def _timed(self, compute: Compute, pixels: Tensor, *more: Tensor) -> tuple[float, Tensor]:
        began = self.clock()
        statistics = compute(pixels, *more)
        return self.clock() - began, statistics

    def _key(self, shape: torch.Size) -> str:
        return f"{self.name} {'x'.join(map(str, shape))}"


def agree(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether the first statistic of each image, its summed entropy, is the same but for a share of `tolerance`."""
    # NaN agrees with NaN: it is the score check that raises.
    return bool(torch.allclose(one[:, 0], other[:, 0], rtol=tolerance, atol=1e-6, equal_nan=True))


def compile_module(module: nn.Module, cache: Path | None) -> Callable[[Tensor], Any]:
    """The module, compiled at its first call with a shape, its weights taken as constants (inductor's `freezing`).

    cache: folder in which what was compiled is kept for the next process.
    Freezing folds batch norms into convolutions and packs weights once instead of at every call; it works without gradients
    only, and the module's weights must not change afterwards.
    """
    if cache is not None:
        with suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    from torch._inductor import config

    def network(pixels: Tensor) -> Any:
        return module(pixels)

    # Graphs are kept with a function's code, at most eight of them: with a code of its own each pass has eight, and what a
    # long-lived process compiled for earlier networks goes with them.
    own = FunctionType(network.__code__.replace(), network.__globals__, closure=network.__closure__)
    compiled: Callable[[Tensor], Any] = torch.compile(own, fullgraph=True, dynamic=False)

    def frozen(pixels: Tensor) -> Any:
        # As an option of torch.compile it would not be known yet when the graph is traced, and nothing would be frozen.
        with config.patch(freezing=True):
            return compiled(pixels)

    return frozen


def machine_name(device: torch.device) -> str:
    """What measured seconds belong to: the processor or GPU, its threads, the version of torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} torch {torch.__version__}"
    units = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {units} x{torch.get_num_threads()} torch {torch.__version__}"


def device_clock(device: torch.device) -> Callable[[], float]:
    """Seconds, read when the device has done all that was asked of it."""
    if device.type != "cuda":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read
