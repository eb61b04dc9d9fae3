"""Class model visualisation (Simonyan, Vedaldi and Zisserman 2013, section 2): an image of what a network takes a class for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from activeseg.errors import ConfigError, NonFiniteScoreError
from activeseg.explain.scores import ClassScore, evaluating
from activeseg.records import InputPolicy

OnStep = Callable[[int, npt.NDArray[np.uint8]], None]


@dataclass(frozen=True, slots=True)
class Ascent:
    """How to climb; the defaults are the documents' recipe.

    steps: of plain gradient ascent. learning_rate: of the network's input. l2: lambda. size: (height, width) of the image.
    seed: of the uniform noise 0..255 it starts from. quantise: round to 8 bits after each step.
    """

    steps: int = 150
    learning_rate: float = 20.0
    l2: float = 1e-3
    size: tuple[int, int] = (224, 224)
    seed: int = 0
    quantise: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or min(self.size) < 1:
            raise ConfigError(f"expected at least one step and one pixel; got {self.steps} steps, size {self.size}")
        if not self.learning_rate > 0 or not self.l2 >= 0:
            raise ConfigError(f"expected learning_rate > 0 and l2 >= 0; got {self.learning_rate} and {self.l2}")


@dataclass(frozen=True, slots=True, eq=False)
class ClassModel:
    """image: (H, W, 3) uint8. scores: S_c at the start and after each step, steps + 1 values.

    stalled: no step changed a pixel, because each was undone by the rounding to 8 bits.
    """

    image: npt.NDArray[np.uint8]
    scores: tuple[float, ...]
    stalled: bool


def class_model(
    module: nn.Module,
    policy: InputPolicy,
    *,
    target: int,
    segmentation: bool,
    device: torch.device,
    ascent: Ascent | None = None,
    on_step: OnStep | None = None,
) -> ClassModel:
    """argmax over images I of S_c(I) - l2 * ||I||^2 by gradient ascent from noise, the weights fixed.

    S_c is the score before softmax: output `target` of a classification network; the mean logit of channel `target` of
    a segmentation network, because a mean is of the size of a classifier's score at any image size, so that one learning
    rate and one l2 suit both. I is the network's input, pixels after the policy's mean and std: zero is the mean colour,
    as in the paper, and the documents' learning rate is one of this scale. After each step the image is clipped to what
    pixels can be and, with `quantise`, rounded to 8 bits. on_step(step, image (H, W, 3) uint8) is called after each.
    Raises ConfigError for an unknown target and for a size the network cannot take, and NonFiniteScoreError where the
    score is NaN or infinite.
    """
    recipe = ascent or Ascent()
    score = ClassScore(module, policy, target, segmentation)
    noise = np.random.default_rng(recipe.seed).integers(0, 256, (*recipe.size, 3)).astype(np.uint8)
    with evaluating(module, device):
        inputs = start = score.to_inputs(score.tensor(noise, device))
        _check_size(score, start)
        scores = []
        for step in range(1, recipe.steps + 1):
            value, gradient = climb(score, inputs, l2=recipe.l2)
            scores.append(value)
            inputs = _as_pixels(score, inputs + recipe.learning_rate * gradient, quantise=recipe.quantise)
            if on_step is not None:
                on_step(step, _image(score, inputs))
        with torch.no_grad():
            scores.append(_finite(float(score.mean(inputs))))
    image = _image(score, inputs)
    return ClassModel(image, tuple(scores), stalled=np.array_equal(image, _image(score, start)))


def _check_size(score: ClassScore, inputs: Tensor) -> None:
    """A trial: which sizes a network can take only the network knows."""
    try:
        with torch.no_grad():
            score.logits(inputs)
    except RuntimeError as error:
        height, width = inputs.shape[-2:]
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the network cannot take an image of {width}x{height} pixels ({reason}); choose another --size"
        ) from error


def climb(score: ClassScore, inputs: Tensor, *, l2: float) -> tuple[float, Tensor]:
    """S_c at inputs (1, 3, h, w), and the gradient of S_c - l2 * ||I||^2 there: dS_c/dI - 2 * l2 * I."""
    image = inputs.detach().requires_grad_(True)
    value = score.mean(image)
    (gradient,) = torch.autograd.grad(value, image)
    return _finite(float(value.detach())), gradient - 2 * l2 * inputs


def _as_pixels(score: ClassScore, inputs: Tensor, *, quantise: bool) -> Tensor:
    pixels = score.to_pixels(inputs).clamp(0, 255)
    return score.to_inputs(pixels.round() if quantise else pixels)


def _image(score: ClassScore, inputs: Tensor) -> npt.NDArray[np.uint8]:
    pixels = score.to_pixels(inputs)[0].round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise NonFiniteScoreError(f"the class's score became {value}: use a smaller learning rate")
    return value
