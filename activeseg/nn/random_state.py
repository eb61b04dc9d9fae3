"""The global random generators and the training flag during a training: set for it, and put back at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

# The crops have streams 0, 1, 3 and 4.
_DROPOUT = 2


def seed_dropout(seed: int, step: int, device: torch.device) -> None:
    """Dropout is the only user of the global generators; seeded anew for each step, it needs no saving."""
    [drawn] = np.random.SeedSequence([seed, _DROPOUT, step]).generate_state(1, np.uint64)
    torch.default_generator.manual_seed(int(drawn))
    if device.type == "cuda":
        torch.cuda.default_generators[_cuda_index(device)].manual_seed(int(drawn))


@contextmanager
def training_mode(module: nn.Module) -> Iterator[None]:
    """The module trains; its flag is put back at the end."""
    was_training = module.training
    module.train()
    try:
        yield
    finally:
        module.train(was_training)


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """The global generators are put back at the end."""
    with torch.random.fork_rng(devices=[_cuda_index(device)] if device.type == "cuda" else []):
        yield


def _cuda_index(device: torch.device) -> int:
    return device.index if device.index is not None else torch.cuda.current_device()
