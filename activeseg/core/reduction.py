"""Coarse logits to the few numbers of an image: enlarged, softmax and all statistics of `reduce_logits` in one go, without a
tensor of the image's size times the classes.

There are three ways, with the same numbers. On a CPU: torch's own operations over strips of rows (`strips`) or, where there
is a C++ compiler, a program of our own (`kernel`). On a GPU: the whole batch, compiled by torch or not (`whole`).
Figures: docs/benchmarks.md, "Reduction".
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from activeseg.core.enlarging import Enlargement
from activeseg.core.entropy import BatchStatistics
from activeseg.core.kernel import BuildError, compiler, kernel_sums
from activeseg.core.strips import strip_sums
from activeseg.core.sums import Coarse, Sums, as_statistics, made_ready
from activeseg.core.whole import whole_sums

_hindrances: list[str] = []
"""Why building failed in this process; it is not tried again."""


def can_compile() -> str | None:
    """None where there is what `reduce_coarse(compiled=True)` needs on a CPU, else what is missing; after a build that failed
    in this process, what the compiler said.
    """
    if _hindrances:
        return _hindrances[0]
    return None if compiler() else "no C++ compiler found: install g++, or name one in the environment variable CXX"


@torch.no_grad()
def reduce_coarse(
    logits: Tensor, enlargement: Enlargement, *, sigmoid: bool = False, compiled: bool = False, class_map: bool = False
) -> BatchStatistics:
    """`reduce_logits(enlargement.apply(logits))` to a relative 1e-4, in float32 whatever the logits' dtype.

    logits: (N, C, h, w) floating point, as a network's `coarse` gives them; numbers of channels as there.
    compiled: on a CPU, by the program in C++, which is built at the first call (1 s); elsewhere by torch.compile, once for each
    shape. Where that fails it is logged once, `can_compile` says why from then on (CPU), and it is done without.
    class_map: hand the class map back, too.

    Unlike `reduce_logits`, an image with NaN or +inf in it has NaN in every float statistic, and -inf is taken for -1e30, so
    that interpolating it gives an impossible class and no NaN.
    Raises ConfigError as `reduce_logits`.
    """
    with torch.autocast(logits.device.type, enabled=False):
        coarse = made_ready(logits, enlargement, sigmoid=sigmoid)
        labels = coarse.empty_class_map() if class_map else None
        return as_statistics(_sums(coarse, labels, compiled=compiled), coarse, labels)


def _sums(coarse: Coarse, labels: Tensor | None, *, compiled: bool) -> Sums:
    if coarse.logits.device.type != "cpu":
        return whole_sums(coarse, labels, compiled=compiled)
    if compiled and not _hindrances:
        try:
            return kernel_sums(coarse, labels)
        except BuildError as error:
            _hindrances.append(str(error))
            logging.getLogger(__name__).warning("%s; torch's own operations do it, slower", error)
    return strip_sums(coarse, labels)
