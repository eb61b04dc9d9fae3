"""Labelled images for training: decoded once where memory allows, cropped and varied anew for every step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from activeseg.config import TrainingSection
from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.errors import ImageError, MaskError
from activeseg.imaging.decode import resize_short_side
from activeseg.records import InputPolicy

Array = npt.NDArray[np.uint8]

MEMORY_BUDGET = 2 * 1024**3
"""Bytes of decoded images and masks kept in memory; what does not fit is decoded again when its turn comes."""

COLOR_JITTER = 0.2
"""Brightness, contrast and saturation of a crop are scaled by 1 - this .. 1 + this."""

# Streams of random numbers that must not repeat each other.
_ORDER, _CROPS = 0, 1


@dataclass(frozen=True, slots=True)
class LabeledImage:
    """An image with its truth. load: returns pixels (H, W, 3) uint8 RGB and class indices (H, W) uint8."""

    image_id: int
    load: Callable[[], tuple[Array, Array]]


class Samples:
    """Images as the network takes them and their channel numbers, by position; safe to read from several threads."""

    def __init__(
        self, images: Sequence[LabeledImage], label_set: LabelSet, policy: InputPolicy, *, budget: int = MEMORY_BUDGET
    ) -> None:
        self._images = images
        self._label_set = label_set
        self.policy = policy
        self._free = budget
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        """Pixels (3, h, w) uint8 and channel numbers (h, w) uint8, UNLABELED where there is no truth."""
        kept = self._kept.get(position)
        return kept if kept is not None else self._load(position)

    def _load(self, position: int) -> tuple[Tensor, Tensor]:
        image, mask = load_checked(self._images[position], self._label_set)
        pixels = to_pixels(resize_short_side(image, self.policy.short_side))
        channels = _resize(self._label_set.to_channels(mask), pixels.shape[1], pixels.shape[2], Resampling.NEAREST)
        sample = pixels, torch.from_numpy(np.array(channels))
        size = pixels.numel() + channels.size
        with self._lock:
            if position not in self._kept and size <= self._free:
                self._kept[position] = sample
                self._free -= size
        return sample


def load_checked(image: LabeledImage, label_set: LabelSet) -> tuple[Array, Array]:
    """Pixels and class indices of an image. Raises MaskError where the mask has another size or unknown values."""
    pixels, mask = image.load()
    if mask.shape != pixels.shape[:2]:
        raise MaskError(
            f"image {image.image_id}: mask is {mask.shape[1]}x{mask.shape[0]}, the image is "
            f"{pixels.shape[1]}x{pixels.shape[0]}: export the mask at the image's own size"
        )
    try:
        label_set.check_mask(mask)
    except MaskError as error:
        raise MaskError(f"image {image.image_id}: {error}") from error
    return pixels, mask


def to_pixels(image: Array) -> Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor with memory of its own. Raises ImageError for anything else."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(f"expected pixels (H, W, 3) uint8, got {image.shape} {image.dtype}")
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


def to_input(pixels: Tensor, policy: InputPolicy, device: torch.device) -> Tensor:
    """(N, 3, H, W) uint8 -> float32 on `device`, scaled as the policy says."""
    on_device = pixels.to(device, non_blocking=True).to(torch.float32)
    mean, std = (torch.tensor(values, device=device)[:, None, None] * 255 for values in (policy.mean, policy.std))
    # With channels last, MobileNetV2 trains several times faster on CPUs.
    return ((on_device - mean) / std).contiguous(memory_format=torch.channels_last)


def draw_batch(samples: Samples, config: TrainingSection, step: int) -> tuple[Tensor, Tensor]:
    """The crops of one step: pixels (batch, 3, h, w) uint8 and channel numbers (batch, h, w) uint8.

    Depends on samples, config and step only, whichever thread asks. Every image comes once before any comes again.
    """
    random = np.random.default_rng([config.seed, _CROPS, step])
    first = step * config.batch_size
    positions = [_position(turn, len(samples), config.seed) for turn in range(first, first + config.batch_size)]
    crops = [_draw_crop(*samples[position], samples.policy, config, random) for position in positions]
    return torch.stack([pixels for pixels, _ in crops]), torch.stack([channels for _, channels in crops])


def _position(turn: int, count: int, seed: int) -> int:
    """Which image has the given turn in an endless series of shuffles."""
    shuffle, place = divmod(turn, count)
    return int(np.random.default_rng([seed, _ORDER, shuffle]).permutation(count)[place])


def _draw_crop(
    pixels: Tensor, channels: Tensor, policy: InputPolicy, config: TrainingSection, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A window of random size and place, resized to the crop, mirrored half of the time, its colours varied.

    In numpy and Pillow: torch would use all its threads for such small work, and from a second thread that fights
    with the training step for the cores (18 times slower on two cores, and the step with it).
    """
    scale = random.uniform(*config.scale)
    height, width = (max(1, round(side / scale)) for side in config.crop)
    top, left = _offset(pixels.shape[1], height, random), _offset(pixels.shape[2], width, random)
    fill = np.array([round(255 * mean) for mean in policy.mean], np.uint8)  # 0 after scaling
    window = _window(pixels.numpy().transpose(1, 2, 0), top, left, height, width, fill)
    window = _jitter(_resize(window, *config.crop, Resampling.BILINEAR), random)
    labels = _window(channels.numpy(), top, left, height, width, np.uint8(UNLABELED))
    labels = _resize(labels, *config.crop, Resampling.NEAREST)
    if random.random() < 0.5:
        window, labels = window[:, ::-1], labels[:, ::-1]
    return torch.from_numpy(window.transpose(2, 0, 1).copy()), torch.from_numpy(labels.copy())


def _offset(side: int, window: int, random: np.random.Generator) -> int:
    """Where a window begins: anywhere inside the side, or, where it is larger, anywhere that holds the whole side."""
    slack = side - window
    return int(random.integers(min(0, slack), max(0, slack) + 1))


def _window(plane: Array, top: int, left: int, height: int, width: int, fill: npt.NDArray[np.uint8] | np.uint8) -> Array:
    """(H, W, ...) -> (height, width, ...) from (top, left) on, `fill` where that is outside."""
    part = plane[max(0, top) : top + height, max(0, left) : left + width]
    if part.shape[:2] == (height, width):
        return np.ascontiguousarray(part)
    window = np.empty((height, width, *plane.shape[2:]), np.uint8)
    window[:] = fill
    above, before = max(0, -top), max(0, -left)
    window[above : above + part.shape[0], before : before + part.shape[1]] = part
    return window


def _resize(plane: Array, height: int, width: int, method: Resampling) -> Array:
    """(H, W, ...) -> (height, width, ...); BILINEAR averages over the whole source area when it shrinks."""
    if plane.shape[:2] == (height, width):
        return plane
    return np.asarray(Image.fromarray(plane).resize((width, height), method))


def _jitter(pixels: Array, random: np.random.Generator) -> Array:
    """Vary brightness, contrast and saturation of (h, w, 3) uint8."""
    brightness, contrast, saturation = (1 + COLOR_JITTER * random.uniform(-1, 1, size=3)).astype(np.float32)
    values = pixels.astype(np.float32) * brightness
    middle = values.mean(dtype=np.float64).astype(np.float32)
    values = middle + contrast * (values - middle)
    grey = values.mean(axis=2, keepdims=True)
    varied: Array = np.clip(np.rint(grey + saturation * (values - grey)), 0, 255).astype(np.uint8)
    return varied
