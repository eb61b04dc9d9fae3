"""The sums of a whole batch at once, in operations that torch.compile can fuse: for GPUs, where strips would only wait.

On a CPU it is slower than either other way, compiled too: docs/decisions.md, "Speed".
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from activeseg.core.sums import Coarse, Sums

_Parts = tuple[Tensor, ...]
_refused: set[str] = set()


def whole_sums(coarse: Coarse, class_map: Tensor | None, *, compiled: bool) -> Sums:
    """The sums of a batch; fills `class_map`. Where torch.compile fails this is logged once and it goes on without."""
    device = coarse.logits.device
    down, across = coarse.down.to(device), coarse.across.to(device)
    taps = (down.first, down.second, down.weight[:, None], across.first, across.second, across.weight)
    parts: _Parts | None = None
    if compiled and device.type not in _refused:
        try:
            parts = _fused()(coarse.logits, taps, coarse.bands, coarse.threshold, coarse.sigmoid)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler is a large program that calls others: it raises anything
            _refused.add(device.type)
            logging.getLogger(__name__).warning("the reduction is not compiled: %s", str(error).strip()[:300])
    if parts is None:
        parts = _reduce(coarse.logits, taps, coarse.bands, coarse.threshold, coarse.sigmoid)
    columns, pixels, classes, labels = parts
    if class_map is not None:
        class_map.copy_(labels)
    return Sums(columns, pixels, classes)


@cache
def _fused() -> Callable[..., _Parts]:
    compiled: Callable[..., _Parts] = torch.compile(_reduce, dynamic=False)
    return compiled


def _reduce(logits: Tensor, taps: _Parts, bands: tuple[int, ...], threshold: float, sigmoid: bool) -> _Parts:
    top, bottom, down, left, right, across = taps
    lines = torch.lerp(logits[..., left], logits[..., right], across)
    enlarged = torch.lerp(lines[..., top, :], lines[..., bottom, :], down)
    entropy, doubt, margin, table, labels = (_overlapping if sigmoid else _exclusive)(enlarged)
    columns = [entropy[:, start:end].sum(dim=1).double() for start, end in pairwise(bands)]
    pixels = [_pixel_sum(values) for values in ((entropy > threshold).float(), margin, doubt)]
    classes = [_pixel_sum(values) for values in table]
    return torch.stack(columns, dim=1), torch.stack(pixels, dim=1), torch.stack(classes, dim=2), labels


def _exclusive(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, _Parts, Tensor]:
    """Softmax: entropy, 1 - p_first, 1 - (p_first - p_second), what classes sum, class map. As in `strips`."""
    distance = logits - logits.amax(dim=1, keepdim=True)
    winner = logits.argmax(dim=1, keepdim=True)
    won = winner == torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    exponential = torch.exp(distance)
    others = exponential.masked_fill(won, 0.0)
    total, second = others.sum(dim=1), others.amax(dim=1)
    share, log_sum = 1 / (1 + total), torch.log1p(total)
    entropy = log_sum - (others * distance).sum(dim=1) * share
    channel = exponential * (log_sum[:, None] - distance) * share[:, None]
    table = (channel, won.float(), won * entropy[:, None], won * share[:, None])
    return entropy, total * share, (total + second) * share, table, winner[:, 0].to(torch.uint8)


def _overlapping(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, _Parts, Tensor]:
    """Sigmoid of the same."""
    members, away = logits > 0, logits.abs()
    odds = torch.exp(-away)
    log_sum, surer = torch.log1p(odds), 1 / (1 + odds)
    binary = log_sum + away * odds * surer
    entropy = binary.sum(dim=1)
    doubt = -torch.expm1(-log_sum.sum(dim=1))
    table = (binary, members.float(), members * entropy[:, None], members * surer)
    return entropy, doubt, doubt + (1 - doubt) * odds.amax(dim=1), table, members


def _pixel_sum(values: Tensor) -> Tensor:
    """(..., H, W) -> (...): lines in float32, their sums in float64."""
    return values.sum(dim=-1).sum(dim=-1, dtype=torch.float64)
