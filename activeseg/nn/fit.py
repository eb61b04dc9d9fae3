"""Training. `fit` is the whole recipe, read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activeseg.config import TrainingSection
from activeseg.core.labels import UNLABELED
from activeseg.errors import ConfigError, NotReadyError
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.data import LabeledImage, Samples, draw_batch, to_input
from activeseg.nn.device import autocast
from activeseg.nn.prefetch import map_ahead

POLY_POWER = 0.9
"""Exponent of the learning rate's decay to 0 (Chen et al., DeepLab, 2016)."""

AUX_WEIGHT = 0.5
"""Weight of an auxiliary head's loss, as in torchvision's reference recipe."""


Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class FitResult:
    """How training went. losses: mean cross entropy per labelled pixel in nats, one per step."""

    losses: tuple[float, ...]
    steps: int
    seconds: float


def fit(
    segmenter: Segmenter,
    images: Sequence[LabeledImage],
    config: TrainingSection,
    *,
    device: torch.device,
    precision: str = "auto",
    on_step: Callable[[int, float], None] | None = None,
) -> FitResult:
    """Train segmenter.module in place for config.steps steps, from the weights it has.

    The same weights, images, config and device give the same weights, bit for bit on CPUs. The global random state and
    the module's training flag stay as they were. on_step: called with (steps done, loss) after each.

    Raises NotReadyError without images, MaskError for a mask that does not fit, ConfigError where training diverges.
    """
    if not images:
        raise NotReadyError("no annotated images to train on: annotate some, or import them with `activeseg dataset import`")
    started = time.monotonic()
    policy = segmenter.spec.input_policy
    samples = Samples(images, segmenter.spec.label_set, policy)
    module = segmenter.module.to(device)
    optimizer = _optimizer(module, config)
    losses: list[float] = []
    with _training_mode(module), _own_random_state(config.seed, device):
        draw = partial(draw_batch, samples, config)
        for step, (pixels, targets) in enumerate(_drawn(draw, config.steps, device)):
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * _lr_factor(step, config)
            with autocast(device, precision):
                logits = module(to_input(pixels, policy, device))
            loss = _loss(logits, targets.to(device, non_blocking=True).long())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
            losses.append(_checked(loss, norm, step, config))
            optimizer.step()
            if on_step is not None:
                on_step(step + 1, losses[-1])
    return FitResult(tuple(losses), len(losses), time.monotonic() - started)


def _drawn(draw: Callable[[int], Batch], steps: int, device: torch.device) -> Iterator[Batch]:
    """The batches of all steps. Beside a GPU they are drawn ahead, on a thread; on a CPU they are drawn in turn, because
    there a second thread takes the cores from the step: 160 ms a step instead of 73 on two cores."""
    if device.type == "cpu":
        return map(draw, range(steps))
    return map_ahead(draw, range(steps), workers=1, ahead=2)


def _optimizer(module: nn.Module, config: TrainingSection) -> torch.optim.SGD:
    """SGD over four groups: encoder and head, each with and without weight decay (norms and biases have none)."""
    encoder = {id(parameter) for parameter in module.get_submodule("encoder").parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        groups.setdefault((id(parameter) in encoder, parameter.ndim > 1), []).append(parameter)
    options: list[dict[str, Any]] = [
        {
            "params": parameters,
            "peak_lr": config.learning_rate * (1.0 if in_encoder else config.head_lr_factor),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (in_encoder, decays), parameters in groups.items()
    ]
    return torch.optim.SGD(options, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)


def _lr_factor(step: int, config: TrainingSection) -> float:
    """Share of the peak learning rate at a step: linear warm-up times polynomial decay."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return float(warmup * (1 - step / config.steps) ** POLY_POWER)


def _loss(logits: dict[str, Tensor], targets: Tensor) -> Tensor:
    """Cross entropy per labelled pixel; 0 where nothing is labelled."""
    labeled = (targets != UNLABELED).sum().clamp(min=1)
    weights = {"out": 1.0, "aux": AUX_WEIGHT}
    total = torch.zeros((), device=targets.device)
    for name, scores in logits.items():
        summed = F.cross_entropy(scores.float(), targets, ignore_index=UNLABELED, reduction="sum")
        total = total + weights[name] * summed / labeled
    return total


def _checked(loss: Tensor, norm: Tensor, step: int, config: TrainingSection) -> float:
    """The loss as a number. Raises ConfigError where it or the gradient's norm is not finite."""
    value, gradient = torch.stack([loss.detach(), norm]).tolist()
    if not np.isfinite([value, gradient]).all():
        raise ConfigError(
            f"training diverged at step {step + 1} of {config.steps} (loss {value}, gradient norm {gradient}): lower "
            f"[training] learning_rate (now {config.learning_rate}) or start from other weights"
        )
    return float(value)


@contextmanager
def _training_mode(module: nn.Module) -> Iterator[None]:
    was_training = module.training
    module.train()
    try:
        yield
    finally:
        module.train(was_training)


@contextmanager
def _own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """For dropout, the only user of the global generators; they are put back."""
    cuda = [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield
