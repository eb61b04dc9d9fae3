"""Batches to scores: pixels go up to the device as bytes, less than a kilobyte of statistics an image comes down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from activeseg.core.entropy import GRID, BatchStatistics
from activeseg.core.reduction import can_compile, reduce_coarse
from activeseg.errors import NonFiniteScoreError
from activeseg.nn.batches import Loaded
from activeseg.nn.checkpoint import Segmenter
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
    ) -> None:
        self.spec, self.device, self.precision = segmenter.spec, device, pick_precision(device, precision)
        # Not under inference_mode: weights moved there could not be trained again.
        module = segmenter.module.to(device)
        assert isinstance(module, Network)
        self.module = module
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        network = PixelsToLogits(self.module, self.spec.input_policy)
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
            statistics = self._compute(self._upload(batch))
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
        statistics = unpack(submitted.statistics, self.spec.label_set.num_classes)
        return list(image_scores(statistics, [one.tag for one in submitted.batch], self.spec.label_set.channels))

    def seconds(self, pixels: Tensor) -> float:
        """How long this network takes for pixels (N, 3, H, W) uint8, computed eagerly."""
        clock = self._compute.clock
        with evaluating(self.module), torch.inference_mode(), autocast(self.device, self.precision):
            on_device = pixels.to(self.device)
            self._compute.eager(on_device)
            began = clock()
            self._compute.eager(on_device)
            return clock() - began

    def _statistics(self, network: Callable[[Tensor], Tensor], pixels: Tensor, *, compiled: bool) -> Tensor:
        logits, size = network(pixels), pixels.shape[-2:]
        # As the eager network without a compiler does it: interpolated and summed in float32, whatever the forward ran in.
        with torch.autocast(self.device.type, enabled=False):
            enlargement = self.module.enlargement(size[0], size[1])
            sigmoid = self.spec.head == "sigmoid"
            return pack(reduce_coarse(logits, enlargement, sigmoid=sigmoid, compiled=compiled))

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


class PixelsToLogits(nn.Module):
    """A network from the bytes of images on: (N, 3, H, W) uint8 -> coarse logits."""

    def __init__(self, network: Network, policy: InputPolicy) -> None:
        super().__init__()
        self.network, self.policy = network, policy

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised as the policy says, then `Network.coarse`."""
        return self.network.coarse(to_input(pixels, self.policy, pixels.device))


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
    finite = torch.isfinite(statistics.grid).all(dim=1) & torch.isfinite(statistics.channel_entropy_sum).all(dim=1)
    for image, is_finite, value in zip(images, finite.tolist(), statistics.entropy_sum.tolist(), strict=True):
        if not is_finite:
            raise NonFiniteScoreError(
                f"image {image.image_id} ({image.uri}) has entropy {value}: the checkpoint's weights or the precision are "
                'at fault; evaluate the checkpoint, roll back, or set [model] precision = "float32"'
            )
    classes = _class_scores(statistics, channels)
    rows = zip(*(getattr(statistics, name).tolist() for name in (*_SINGLE, "grid")), strict=True)
    for image, (total, pixels, share, margin, least, grid), per_class in zip(images, rows, classes, strict=True):
        yield ImageScore(image.image_id, total, total / pixels, pixels, share, margin, least, tuple(grid), per_class)


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


def _impossible(pixels: Tensor) -> Tensor:
    raise AssertionError("nothing is compiled where compile is 'never'")
