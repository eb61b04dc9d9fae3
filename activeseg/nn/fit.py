"""Training. `fit` is the whole recipe, read from top to bottom."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from activeseg import __version__
from activeseg.config import TrainingSection
from activeseg.errors import DivergedError, NotReadyError
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.crops import Batch, draw_step
from activeseg.nn.data import LabeledImage, Samples, UnlabeledImage, UnlabeledSamples, to_input
from activeseg.nn.device import autocast, pick_precision
from activeseg.nn.ema import MovingAverage
from activeseg.nn.evaluate import evaluate
from activeseg.nn.heap import kept_heap
from activeseg.nn.losses import median_frequency_weights, segmentation_loss
from activeseg.nn.prefetch import map_ahead
from activeseg.nn.random_state import own_random_state, seed_dropout, training_mode
from activeseg.nn.readable import readable, require_readable
from activeseg.nn.snapshot import Look, Progress, best_look
from activeseg.nn.teacher import Teacher, pseudo_loss
from activeseg.records import InputPolicy

POLY_POWER = 0.9
"""Exponent of the learning rate's decay to 0 (Chen et al., DeepLab, 2016)."""

WITHOUT_EFFECT = frozenset({"min_train", "retrain_after", "retrain_days", "save_every"})
"""Keys of [training] that cannot change the weights: an unfinished training may go on where they differ."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """How training went.

    losses: mean loss in nats of each step. looks: validation in between. kept_step: the step the weights are of.
    stopped: why it ended. seconds: of this process. resumed_at: steps an earlier process had done. refused: why its state
    was not used, where it could not be. unlabelled: images that pseudo-labels were made of. left_out: those that could not be
    read, by id. labelled_share: of their pixels lately seen, those that got a label. thresholds: for a label of each channel.
    """

    losses: tuple[float, ...]
    steps: int
    seconds: float
    looks: tuple[Look, ...] = ()
    kept_step: int = 0
    stopped: str = ""
    resumed_at: int = 0
    refused: str | None = None
    unlabelled: int = 0
    left_out: Mapping[int, str] = field(default_factory=dict)
    labelled_share: float | None = None
    thresholds: tuple[float, ...] = ()


@kept_heap()
def fit(
    segmenter: Segmenter,
    images: Sequence[LabeledImage],
    config: TrainingSection,
    *,
    device: torch.device,
    precision: str = "auto",
    validation: Sequence[LabeledImage] = (),
    unlabelled: Sequence[UnlabeledImage] = (),
    state: Path | None = None,
    run: str = "",
    on_step: Callable[[int, float], None] | None = None,
) -> FitResult:
    """Train segmenter.module in place, from the weights it has, and leave the best weights in it.

    The same weights, images, config and device give the same weights, bit for bit on CPUs, also where an earlier process
    was killed and left its state in the file `state`. run: what tells this training from others that may have left a state
    there. The caller deletes that file when it has stored the result. The global random state and the module's training
    flag stay as they were. on_step: called with (steps done, loss) after each.

    Without `validation` there are no looks, and the last weights are kept. unlabelled: what pseudo-labels are made of, where
    config asks for them; an image that cannot be read is left out and told in the log.

    Raises NotReadyError without images, DivergedError where training diverges, and, before the first step, the error of an
    image or mask that cannot be read or does not fit.
    """
    if not images:
        raise NotReadyError("no annotated images to train on: annotate some, or import them with `activeseg dataset import`")
    started = time.monotonic()
    steps = config.planned_steps(len(images))
    policy = segmenter.spec.input_policy
    samples = Samples(images, segmenter.spec.label_set, policy)
    require_readable(samples, validation)
    weights = median_frequency_weights(samples).to(device) if config.class_weights == "median_frequency" else None
    pool, left_out = readable(unlabelled if config.unlabelled == "pseudo" else (), samples)
    progress = _begin(segmenter, config, device, precision, taught=len(pool) > 0)
    identity = _identity(segmenter, images, validation, pool.images, config, run)
    refused = progress.resume(state, identity) if state else None
    resumed_at = progress.step
    with (
        training_mode(progress.module),
        own_random_state(device),
        closing(_drawn(samples, pool, config, range(resumed_at, steps), device)) as batches,
    ):
        for step, batch in batches:
            if _is_stale(progress.looks, config.patience):
                break
            _set_learning_rates(progress.optimizer, step, steps, config)
            seed_dropout(config.seed, step, device)
            losses = _losses(progress, batch, policy, config, device, precision, weights)
            progress.losses.append(_descend(progress, losses, config))
            progress.step = step + 1
            if progress.average:
                progress.average.update(step)
            if validation and config.validate_every and (_every(config.validate_every, step) or step + 1 == steps):
                candidate = Segmenter(segmenter.spec, progress.candidate, segmenter.model_version)
                progress.look(evaluate(candidate, validation, device=device, precision=precision).metrics.mean_iou)
            if state and config.save_every and _every(config.save_every, step):
                progress.save(state, identity)
            if on_step is not None:
                on_step(step + 1, progress.losses[-1])
    kept_step = progress.keep()
    _require_finite(progress.module, kept_step, config)
    return FitResult(
        losses=tuple(progress.losses),
        steps=progress.step,
        seconds=time.monotonic() - started,
        looks=tuple(progress.looks),
        kept_step=kept_step,
        stopped="all steps done" if progress.step == steps else f"{config.patience} looks without a better one",
        resumed_at=resumed_at,
        refused=refused,
        unlabelled=len(pool),
        left_out=left_out,
        labelled_share=progress.teacher.labelled_share if progress.teacher else None,
        thresholds=tuple(progress.teacher.thresholds().tolist()) if progress.teacher else (),
    )


def _losses(
    progress: Progress,
    batch: Batch,
    policy: InputPolicy,
    config: TrainingSection,
    device: torch.device,
    precision: str,
    weights: Tensor | None,
) -> Iterator[Tensor]:
    """The loss of the labels and then, where the batch has unlabelled views, of what the teacher says of them."""
    with autocast(device, precision):
        logits = progress.module(to_input(batch.pixels, policy, device))
    yield segmentation_loss(logits, batch.targets.to(device, non_blocking=True), weights=weights)
    if batch.views is not None and progress.teacher is not None:
        targets, share = progress.teacher.targets(batch.views, policy, device, precision)
        with autocast(device, precision):
            logits = progress.module(to_input(batch.views.strong, policy, device))
        yield config.unlabelled_weight * pseudo_loss(logits, targets, share, weights=weights)


def _begin(segmenter: Segmenter, config: TrainingSection, device: torch.device, precision: str, *, taught: bool) -> Progress:
    module = segmenter.module.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=pick_precision(device, precision) == "float16")
    average = MovingAverage(module, config.ema_decay) if config.ema_decay else None
    spec = segmenter.spec
    teacher = None
    if taught and average is not None:
        teacher = Teacher(average, spec.label_set.num_classes, config, sigmoid=spec.head == "sigmoid")
    # A fused step that is skipped because float16 overflowed would leave momentum buffers that hold anything.
    return Progress(module, _optimizer(module, config, fused=not scaler.is_enabled()), scaler, average, teacher=teacher)


def _identity(
    segmenter: Segmenter,
    images: Sequence[LabeledImage],
    validation: Sequence[LabeledImage],
    unlabelled: Sequence[UnlabeledImage],
    config: TrainingSection,
    run: str,
) -> str:
    """What must be the same for a saved state to be of this very training."""
    described = {
        "version": __version__,
        "spec": segmenter.spec.as_dict(),
        "run": run,
        "config": config.model_dump(mode="json", exclude=set(WITHOUT_EFFECT)),
        "images": [(image.image_id, image.truth) for image in images],
        "validation": [(image.image_id, image.truth) for image in validation],
        "unlabelled": [(image.image_id, image.uri) for image in unlabelled],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _drawn(
    samples: Samples, pool: UnlabeledSamples, config: TrainingSection, span: range, device: torch.device
) -> Generator[tuple[int, Batch], None, None]:
    """Steps and their batches. Beside a GPU they are drawn ahead, on threads; on a CPU they are drawn in turn, because
    there a second thread takes the cores from the step: 160 ms a step instead of 73 on two cores."""
    draw = partial(draw_step, samples, pool, config)
    if device.type == "cpu":
        yield from ((step, draw(step)) for step in span)
        return
    with closing(map_ahead(draw, span, workers=2, ahead=4)) as batches:
        yield from zip(span, batches, strict=True)


def _optimizer(module: nn.Module, config: TrainingSection, *, fused: bool = True) -> torch.optim.SGD:
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
    nesterov = config.momentum > 0
    return torch.optim.SGD(options, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=fused or None)


def _set_learning_rates(optimizer: torch.optim.SGD, step: int, steps: int, config: TrainingSection) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * _lr_factor(step, steps, config)


def _lr_factor(step: int, steps: int, config: TrainingSection) -> float:
    """Share of the peak learning rate at a step: linear warm-up times polynomial decay, where the schedule has one."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return float(warmup * (1 - step / steps) ** POLY_POWER) if config.schedule == "poly" else warmup


def _descend(progress: Progress, losses: Iterable[Tensor], config: TrainingSection) -> float:
    """One step down the sum of the losses, which is returned. Raises DivergedError where it or the gradient is not finite."""
    progress.optimizer.zero_grad()
    total = torch.zeros(())
    for loss in losses:
        # Before the next one is computed: memory holds the activations of one.
        progress.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total = total.to(loss.device) + loss.detach()
    progress.scaler.unscale_(progress.optimizer)
    # Without a limit nothing is scaled; the norm says whether all gradients are finite.
    norm = nn.utils.clip_grad_norm_(progress.module.parameters(), config.clip_norm or math.inf)
    value, gradient = torch.stack([total, norm]).tolist()
    # In float16 a gradient overflows now and then; the scaler then leaves the step out and takes a smaller scale.
    overflow = progress.scaler.is_enabled() and progress.scaler.get_scale() > 1
    if not np.isfinite(value) or not (np.isfinite(gradient) or overflow):
        raise _diverged(progress.step + 1, f"loss {value}, gradient norm {gradient}", config)
    progress.scaler.step(progress.optimizer)
    progress.scaler.update()
    return float(value)


def _require_finite(module: nn.Module, step: int, config: TrainingSection) -> None:
    """The last step's weights went through no later loss that would tell. step: the one they are of."""
    floats = [value for value in module.state_dict().values() if value.is_floating_point()]
    if not torch.stack([value.isfinite().all() for value in floats]).all():
        raise _diverged(step, "its weights are not finite", config)


def _diverged(step: int, signs: str, config: TrainingSection) -> DivergedError:
    return DivergedError(
        f"training diverged at step {step} ({signs}): lower [training] learning_rate (now {config.learning_rate}) or start "
        "from other weights"
    )


def _every(interval: int, step: int) -> bool:
    return (step + 1) % interval == 0


def _is_stale(looks: list[Look], patience: int) -> bool:
    """Whether the best look lies `patience` looks back."""
    best = best_look(looks)
    return bool(patience) and best is not None and len(looks) - 1 - looks.index(best) >= patience
