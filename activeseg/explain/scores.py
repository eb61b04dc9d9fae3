"""The un-normalised score of one class as a function of pixels: what saliency and class models differentiate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from activeseg.errors import ConfigError
from activeseg.imaging.decode import resize_short_side
from activeseg.records import InputPolicy

LARGEST_INPUT = 1_500_000
"""Pixels. Larger images are shrunk to this: a backward pass keeps all layers, some 1.6 GB for each million pixels."""


def as_seen(image: npt.NDArray[np.uint8], policy: InputPolicy) -> npt.NDArray[np.uint8]:
    """An image (H, W, 3) uint8 at the size at which its gradient is taken: the policy's, at most LARGEST_INPUT pixels."""
    height, width = image.shape[:2]
    scale = (policy.short_side or min(height, width)) / min(height, width)
    if height * scale * width * scale <= LARGEST_INPUT:
        return resize_short_side(image, policy.short_side)
    scale = math.sqrt(LARGEST_INPUT / (height * width))
    short = max(1, int(min(height, width) * scale))
    long = min(int(max(height, width) * scale), LARGEST_INPUT // short)
    size = (long, short) if width > height else (short, long)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


@dataclass(frozen=True, slots=True)
class ClassScore:
    """S_c of one network, before softmax or sigmoid.

    module: images (N, 3, h, w) -> scores (N, K) or, with `segmentation`, {'out': logits (N, C, h, w)}.
    target: column of the scores, or network channel of the logits (`LabelSet.channels` translates).
    """

    module: nn.Module
    policy: InputPolicy
    target: int
    segmentation: bool

    def logits(self, inputs: Tensor) -> Tensor:
        """The target's scores (N,) or logits (N, h, w). inputs: (N, 3, h, w), scaled by `to_inputs`.

        Raises ConfigError where the network has no such output.
        """
        output: Tensor = self.module(inputs)["out"] if self.segmentation else self.module(inputs)
        if not 0 <= self.target < output.shape[1]:
            raise ConfigError(f"target: expected an output in 0..{output.shape[1] - 1}; got {self.target}")
        return output[:, self.target]

    def total(self, inputs: Tensor, region: Tensor | None = None) -> Tensor:
        """S_c, a scalar: of a segmentation network the sum of its logits over all pixels, or over `region` (h, w) bool."""
        logits = self.logits(inputs)
        if region is None or not self.segmentation:
            return logits.sum()
        resized = F.interpolate(region[None, None].to(logits), size=logits.shape[-2:], mode="nearest")[0]
        return (logits * resized).sum()

    def mean(self, inputs: Tensor) -> Tensor:
        """The score of a classifier; the mean logit of a segmentation network."""
        return self.logits(inputs).mean()

    def to_inputs(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, h, w) on the scale 0..255, in the network's precision -> the network's input, as the policy says."""
        mean, std = self._mean_std(pixels)
        return (pixels - mean) / std

    def to_pixels(self, inputs: Tensor) -> Tensor:
        """The inverse of `to_inputs`; not clipped."""
        mean, std = self._mean_std(inputs)
        return inputs * std + mean

    def tensor(self, image: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
        """Pixels (h, w, 3) uint8 -> (1, 3, h, w) on the scale 0..255, in the network's precision."""
        dtype = next((weight.dtype for weight in self.module.parameters()), torch.float32)
        return torch.from_numpy(np.array(image.transpose(2, 0, 1)))[None].to(device, dtype)

    def _mean_std(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (like.new_tensor(values)[:, None, None] * 255 for values in (self.policy.mean, self.policy.std))
        return mean, std


@contextmanager
def evaluating(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module on `device` in eval mode, its weights out of the graph; afterwards both flags are as before."""
    module.to(device)
    was_training = module.training
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    module.eval()
    try:
        for weight in trained:
            weight.requires_grad_(False)
        yield
    finally:
        module.train(was_training)
        for weight in trained:
            weight.requires_grad_(True)
