"""The sums by torch's own operations, over strips of rows that stay in a processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from activeseg.core.entropy import GRID
from activeseg.core.sums import Coarse, Sums

Part = TypeVar("Part")
Result = TypeVar("Result")
Band = tuple[Tensor, Tensor, Tensor]
"""Of a row of the grid: entropy of its columns (W), pixel sums (3), class sums (C, 4)."""

STRIP = 160 * 1024
"""Logits of a strip, though at least a row of them. Three tensors of that size are in use."""

ONE, ENTROPY, SHARE, MIXED, DOUBT, MARGIN = range(6)
"""Maps of an image, (H, W) each: 1; the entropy; the winner's p; log(1 + s) times it, see `_exclusive`; 1 - p_first;
1 - (p_first - p_second). Sigmoid heads have a use for ONE, ENTROPY, DOUBT and MARGIN only."""


def strip_sums(coarse: Coarse, class_map: Tensor | None) -> Sums:
    """The sums of a batch on the CPU, on as many threads as torch may use; fills `class_map`."""
    count = len(coarse.logits)
    inferring = torch.is_inference_mode_enabled()

    def reduce(part: tuple[int, int]) -> Band:
        with torch.inference_mode(inferring), torch.no_grad():  # modes are each thread's own
            return _band(coarse, *part, None if class_map is None else class_map[part[0]])

    bands = list(on_threads(reduce, product(range(count), range(GRID)), count * GRID))
    sums = Sums.zeros(coarse)
    for (image, band), (columns, pixels, classes) in zip(product(range(count), range(GRID)), bands, strict=True):
        sums.columns[image, band] = columns
        sums.pixels[image] += pixels
        sums.classes[image] += classes
    return sums


def on_threads(reduce: Callable[[Part], Result], parts: Iterable[Part], count: int) -> Iterator[Result]:
    """Results in order, from as many threads as torch may use, each of which runs torch's operations alone.

    An operation on a strip is over before a second core would have joined in; on a busy machine it would wait for it.
    """
    threads = torch.get_num_threads()
    if threads == 1 or count < 2:
        yield from map(reduce, parts)
        return
    try:
        with ThreadPoolExecutor(min(threads, count), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(reduce, parts)
    finally:
        torch.set_num_threads(threads)  # threads to come start with what was set last, wherever


def _band(coarse: Coarse, image: int, band: int, labels: Tensor | None) -> Band:
    start, end = coarse.bands[band : band + 2]
    channels, width = coarse.logits.shape[1], coarse.width
    classes = torch.zeros(channels, 4, dtype=torch.float64)
    strips = list(_strips(coarse, start, end, max(1, STRIP // (channels * width))))
    if not strips:
        return torch.zeros(width), torch.zeros(3), classes
    row = int(coarse.down.first[start])
    lines = _across(coarse.logits[image, :, row : int(coarse.down.second[end - 1]) + 1], coarse)
    work = torch.empty(3, channels * max(stop - start for start, stop in strips) * width)
    maps = torch.ones(6, end - start, width)
    for top, stop in strips:
        logits, *spare = (part[: channels * (stop - top) * width].view(channels, stop - top, width) for part in work)
        above, below = (lines[:, int(taps[top]) - row, None] for taps in (coarse.down.first, coarse.down.second))
        torch.lerp(above, below, coarse.down.weight[top:stop, None], out=logits)
        table, won = (_overlapping if coarse.sigmoid else _exclusive)(logits, spare, maps[:, top - start : stop - start])
        classes += table
        if labels is not None:
            labels[..., top:stop, :] = won.bool() if coarse.sigmoid else _labels(won)
    doubtful = (maps[ENTROPY] > coarse.threshold).sum()
    pixels = torch.stack([maps[MARGIN], maps[DOUBT]]).sum(dim=2).sum(dim=1, dtype=torch.float64)
    return maps[ENTROPY].sum(dim=0), torch.cat([doubtful[None], pixels]), classes


def _strips(coarse: Coarse, start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """First row and end: at most `most` rows that lie between the same two coarse rows."""
    first = coarse.down.first[start:end].tolist()
    top = 0
    for stop in range(1, len(first) + 1):
        if stop == len(first) or stop == top + most or first[stop] != first[top]:
            yield start + top, start + stop
            top = stop


def _across(lines: Tensor, coarse: Coarse) -> Tensor:
    """(C, h, w) -> (C, h, W): the columns, in one go."""
    size = (lines.shape[1], coarse.enlargement.size[1])
    if size != tuple(lines.shape[1:]):
        lines = F.interpolate(lines[None], size, mode="bilinear", align_corners=coarse.enlargement.align_corners)[0]
    return lines[..., : coarse.width]


def _exclusive(logits: Tensor, spare: list[Tensor], maps: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of a strip's logits (C, R, W) -> class sums (C, 4) and 1 where the channel wins; fills maps (6, R, W).

    With d = logit - largest logit and the winner's exp(d) = 1 left out of the sum s of the others: p = exp(d) / (1 + s),
    entropy = log(1 + s) - sum p d. No term is negative, and nothing is lost where s is small.
    """
    _, entropy, share, mixed, doubt, margin = maps
    distance = logits.sub_(logits.amax(dim=0))
    won = _winners(distance, out=spare[0])
    others = torch.exp(distance, out=spare[1]).sub_(won)
    total, second = others.sum(dim=0), others.amax(dim=0)
    terms = distance.mul_(others)
    torch.add(total, 1, out=share).reciprocal_()
    log_sum = torch.log1p(total)
    torch.addcmul(log_sum, terms.sum(dim=0), share, value=-1, out=entropy)
    torch.mul(log_sum, share, out=mixed)
    torch.mul(total, share, out=doubt)
    torch.addcmul(doubt, second, share, out=margin)
    regions = _dot(won, maps[:4])
    channel = regions[:, 3] + _dot(others, mixed) - _dot(terms, share)
    return torch.cat([channel[:, None], regions[:, :3]], dim=1), won


def _overlapping(logits: Tensor, spare: list[Tensor], maps: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmoid of the same -> the same. With e = exp(-|logit|) the less likely answer has q = e / (1 + e), its odds are e,
    and the binary entropy is log(1 + e) + |logit| q. The likeliest outcome of all has the product of the 1 - q, whose
    logarithms are -log(1 + e).
    """
    one, entropy, _, _, doubt, margin = maps
    members = torch.gt(logits, 0, out=spare[0])
    away = logits.abs_()
    odds = torch.exp(torch.neg(away, out=spare[1]), out=spare[1])
    largest = odds.amax(dim=0)
    terms = away.mul_(odds)
    log_sum = torch.log1p(odds)
    surer = odds.add_(1).reciprocal_()
    torch.expm1(log_sum.sum(dim=0).neg_(), out=doubt).neg_()
    torch.addcmul(doubt, 1 - doubt, largest, out=margin)
    binary = terms.mul_(surer).add_(log_sum)
    torch.sum(binary, dim=0, out=entropy)
    columns = [_dot(binary, one)[:, None], _dot(members, maps[:2]), _dot(surer.mul_(members), one)[:, None]]
    return torch.cat(columns, dim=1), members


def _winners(distance: Tensor, out: Tensor) -> Tensor:
    """(C, R, W) logits less their largest -> 1 at each pixel's winner, the first of those that tie, and 0 elsewhere."""
    won = torch.ge(distance, 0, out=out)  # to find the winner's number takes twenty times as long
    if won.sum().item() == distance[0].numel():
        return won
    return out.zero_().scatter_(0, distance.argmax(dim=0, keepdim=True), 1.0)


def _labels(won: Tensor) -> Tensor:
    """1 where a channel wins, (C, R, W) -> its number, (R, W)."""
    numbers = torch.arange(len(won), dtype=won.dtype)
    return (numbers @ won.flatten(1)).view(won.shape[1:])


def _dot(values: Tensor, weights: Tensor) -> Tensor:
    """(C, R, W) and (R, W) or (K, R, W) -> (C) or (C, K): sums over pixels of the products."""
    return values.flatten(1) @ (weights.flatten() if weights.ndim == 2 else weights.flatten(1).t())
