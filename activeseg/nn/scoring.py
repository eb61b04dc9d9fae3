"""Batches to scores: pixels go up to the device as bytes, one or two kilobytes of statistics an image come down."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from activeseg.core.embedding import DIMENSIONS, pack_rows, project, shorten
from activeseg.core.entropy import GRID, BatchStatistics
from activeseg.core.reduction import can_compile, reduce_coarse
from activeseg.core.temperature import scaled
from activeseg.errors import NonFiniteScoreError
from activeseg.nn.batches import Loaded
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.committee import bald, class_gradients, seeds_of, tta_jsd
from activeseg.nn.compiling import Ledger, Takeover, compile_module, device_clock, expected_cost, machine_name
from activeseg.nn.data import stack_pixels, to_input
from activeseg.nn.device import autocast, pick_precision
from activeseg.nn.network import Network
from activeseg.nn.pace import Pace
from activeseg.records import ClassScore, ImageRef, ImageScore, InputPolicy

# Compiled and eager differ in the order of their sums; in 16 bits also in what is rounded.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 1e-2}

# BatchStatistics in the order in which they are packed: those with one value an image, the grid, those by channel.
_SINGLE = ("entropy_sum", "valid_pixels", "entropy_share", "margin_mean", "least_confidence_mean")
_BY_CHANNEL = ("channel_entropy_sum", "region_pixels", "region_entropy_sum", "mean_confidence")

# What may come behind them, in this order, and how many numbers it is.
_MORE = {"feature": DIMENSIONS, "bald": 1, "tta_jsd": 1, "gradient": DIMENSIONS}
NEEDS = {"bald": "bald", "tta_jsd": "tta_jsd", "gradients": "gradient"}
"""What a strategy may need besides the usual statistics (`Strategy.needs`; features always come): the field of a score."""


@dataclass(frozen=True, slots=True, eq=False)
class Submitted:
    """A batch on its way. statistics: (N, K) float64 on the host, to be read once `arrived` has happened (None: it has)."""

    batch: list[Loaded[ImageRef]]
    statistics: Tensor
    arrived: torch.cuda.Event | None


class Scorer:
    """Computes the statistics of batches with one network on one device.

    compile: 'auto', 'always' or 'never', see `compiling.Takeover`. cache: folder for what was compiled and what it cost.
    left: images the pass will still see.
    needs: keys of NEEDS to give, too. temperature: what logits are divided by before anything is summed.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        device: torch.device,
        precision: str,
        pace: Pace,
        compile: str = "never",
        cache: Path | None = None,
        left: Callable[[], float] = lambda: 0.0,
        needs: Collection[str] = (),
        temperature: float = 1.0,
    ) -> None:
        self.more = ["feature", *(field for name, field in NEEDS.items() if name in needs)]
        self.temperature = temperature
        self.spec, self.device, self.precision = segmenter.spec, device, pick_precision(device, precision)
        # Not under inference_mode: weights moved there could not be trained again.
        module = segmenter.module.to(device)
        assert isinstance(module, Network)
        self.module = module
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        network = PixelsToFeatures(self.module, self.spec.input_policy, keep=self.more != ["feature"])
        # On a CPU the reduction is built within a second, once for all runs; on a GPU it would be compiled for every shape.
        reduced = compile != "never" and device.type == "cpu" and can_compile() is None
        self._compute = Takeover(
            partial(self._statistics, network, compiled=reduced),
            partial(self._statistics, compile_module(network, cache), compiled=True) if compile != "never" else _impossible,
            compile,
            left,
            expected_cost(device, self.precision),
            pace,
            Ledger(cache / "costs.json" if cache else None),
            f"{self.spec.architecture} {self.spec.width} {self.precision} {machine_name(device)}",
            _TOLERANCE[self.precision],
            can_compile,
            device_clock(device),
        )

    def submit(self, batch: list[Loaded[ImageRef]]) -> Submitted:
        """Have a batch of one size computed. On a GPU this returns before it is."""
        with evaluating(self.module), torch.inference_mode(), autocast(self.device, self.precision):
            statistics = self._compute(self._upload(batch), seeds_of([one.tag for one in batch]).to(self.device))
        if self.device.type != "cuda":
            return Submitted(batch, statistics, None)
        host = torch.empty(statistics.shape, dtype=statistics.dtype, pin_memory=True)
        host.copy_(statistics, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(self.device))  # without it: of the current device, which may be another one
        return Submitted(batch, host, arrived)

    def scores(self, submitted: Submitted) -> list[ImageScore]:
        """The scores of a batch, once they are there. Raises NonFiniteScoreError naming the image whose score is none."""
        if submitted.arrived is not None:
            submitted.arrived.synchronize()
        images, channels = [one.tag for one in submitted.batch], self.spec.label_set.channels
        usual = submitted.statistics.shape[1] - sum(_MORE[name] for name in self.more)
        scores = list(image_scores(unpack(submitted.statistics[:, :usual], len(channels)), images, channels))
        more = submitted.statistics[:, usual:]
        _require_finite(images, more.sum(dim=1), "embedding or disagreement")
        return [replace(score, **found) for score, found in zip(scores, self._more_of(more), strict=True)]

    def seconds(self, pixels: Tensor) -> float:
        """How long this network takes for pixels (N, 3, H, W) uint8, computed eagerly."""
        clock = self._compute.clock
        with evaluating(self.module), torch.inference_mode(), autocast(self.device, self.precision):
            on_device = pixels.to(self.device), torch.zeros(len(pixels), dtype=torch.int32, device=self.device)
            self._compute.eager(*on_device)
            began = clock()
            self._compute.eager(*on_device)
            return clock() - began

    def _statistics(self, network: Callable[[Tensor], Seen], pixels: Tensor, seeds: Tensor, *, compiled: bool) -> Tensor:
        seen, size = network(pixels), pixels.shape[-2:]
        # As the eager network without a compiler does it: interpolated and summed in float32, whatever the forward ran in.
        with torch.autocast(self.device.type, enabled=False):
            enlargement = self.module.enlargement(size[0], size[1])
            logits = scaled(seen.logits.float(), self.temperature)
            usual = pack(reduce_coarse(logits, enlargement, sigmoid=self.spec.head == "sigmoid", compiled=compiled))
        more = [self._column(name, seen, pixels, seeds).double() for name in self.more]
        return torch.cat([usual, *(column.view(len(pixels), -1) for column in more)], dim=1)

    def _column(self, name: str, seen: Seen, pixels: Tensor, seeds: Tensor) -> Tensor:
        """One of what `more` asks for: (N,) or (N, DIMENSIONS)."""
        sigmoid, size = self.spec.head == "sigmoid", (pixels.shape[-2], pixels.shape[-1])
        if name == "feature":
            return project(seen.average)
        if name == "gradient":
            return shorten(class_gradients(scaled(seen.logits.float(), self.temperature), seen.features[-1], sigmoid=sigmoid))
        if name == "bald":
            return bald(self.module, seen.features, size, seeds, temperature=self.temperature, sigmoid=sigmoid)
        x = to_input(pixels, self.spec.input_policy, pixels.device)
        return tta_jsd(self.module, x, seen.logits, temperature=self.temperature, sigmoid=sigmoid)

    def _more_of(self, columns: Tensor) -> Iterator[dict[str, Any]]:
        """What stands behind the usual statistics, by field, of each image."""
        parts = dict(zip(self.more, torch.split(columns, [_MORE[name] for name in self.more], dim=1), strict=True))
        fields = {name: pack_rows(part.numpy()) if _MORE[name] > 1 else part[:, 0].tolist() for name, part in parts.items()}
        return (dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True))

    def _upload(self, batch: list[Loaded[ImageRef]]) -> Tensor:
        """Pixels (N, 3, H, W) uint8 on the device; to a GPU on a stream of their own, so that it goes on computing."""
        if self._uploads is None:
            return stack_pixels([one.pixels for one in batch]).to(self.device)
        host = stack_pixels([one.pixels for one in batch], pinned=True)
        with torch.cuda.stream(self._uploads):
            pixels = host.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._uploads)
        pixels.record_stream(computing)
        return pixels


class Seen(NamedTuple):
    """logits: coarse (N, C, h, w). average: of each channel of the coarsest features (N, D). features: all, or none."""

    logits: Tensor
    average: Tensor
    features: tuple[Tensor, ...]


class PixelsToFeatures(nn.Module):
    """A network from the bytes of images on: (N, 3, H, W) uint8 -> what it sees. keep: hand all features out."""

    def __init__(self, network: Network, policy: InputPolicy, *, keep: bool = False) -> None:
        super().__init__()
        self.network, self.policy, self.keep = network, policy, keep

    def forward(self, pixels: Tensor) -> Seen:
        """Normalised as the policy says, then `Network.features` and `Network.scores`."""
        features = self.network.features(to_input(pixels, self.policy, pixels.device))
        average = features[-1].float().mean(dim=(2, 3))
        return Seen(self.network.scores(features), average, features if self.keep else ())


def pack(statistics: BatchStatistics) -> Tensor:
    """All statistics as one (N, 5 + GRID * GRID + 4 C) float64 tensor: one transfer instead of ten."""
    single = [getattr(statistics, name).double()[:, None] for name in _SINGLE]
    by_channel = [getattr(statistics, name).double() for name in _BY_CHANNEL]
    return torch.cat([*single, statistics.grid, *by_channel], dim=1)


def unpack(packed: Tensor, channels: int) -> BatchStatistics:
    """Inverse of `pack`, without a class map."""
    single, grid, rest = torch.split(packed, [len(_SINGLE), GRID * GRID, len(_BY_CHANNEL) * channels], dim=1)
    found = dict(zip(_SINGLE, single.unbind(dim=1), strict=True))
    found |= dict(zip(_BY_CHANNEL, torch.split(rest, channels, dim=1), strict=True))
    counts = {name: found[name].long() for name in ("valid_pixels", "region_pixels")}
    return BatchStatistics(**(found | counts), grid=grid, class_map=None)


def image_scores(statistics: BatchStatistics, images: list[ImageRef], channels: tuple[int, ...]) -> Iterator[ImageScore]:
    """One score per image. channels: class index of each network channel. Raises NonFiniteScoreError before the first."""
    # A sum is finite only where all its parts are.
    _require_finite(images, statistics.grid.sum(dim=1) + statistics.channel_entropy_sum.sum(dim=1), "entropy")
    classes = _class_scores(statistics, channels)
    rows = zip(*(getattr(statistics, name).tolist() for name in (*_SINGLE, "grid")), strict=True)
    for image, (total, pixels, share, margin, least, grid), per_class in zip(images, rows, classes, strict=True):
        yield ImageScore(image.image_id, total, total / pixels, pixels, share, margin, least, tuple(grid), per_class)


def _require_finite(images: list[ImageRef], sums: Tensor, what: str) -> None:
    for image, value in zip(images, sums.tolist(), strict=True):
        if not math.isfinite(value):
            raise NonFiniteScoreError(
                f"image {image.image_id} ({image.uri}) has {what} {value}: the checkpoint's weights or the precision are "
                'at fault; evaluate the checkpoint, roll back, or set [model] precision = "float32"'
            )


def _class_scores(statistics: BatchStatistics, channels: tuple[int, ...]) -> Iterator[tuple[ClassScore, ...]]:
    tables = [getattr(statistics, name).tolist() for name in _BY_CHANNEL]
    for rows in zip(*tables, strict=True):  # one image: a row of C values from each table
        yield tuple(
            ClassScore(index, entropy, pixels, region, confidence if pixels else None)
            for index, entropy, pixels, region, confidence in zip(channels, *rows, strict=True)
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode; its training flag is as it was afterwards."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def _impossible(pixels: Tensor, seeds: Tensor) -> Tensor:
    raise AssertionError("nothing is compiled where compile is 'never'")
