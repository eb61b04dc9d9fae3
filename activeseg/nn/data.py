"""Labelled images for training: decoded once where memory allows, cropped and varied anew for every step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

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
        channels = torch.from_numpy(self._label_set.to_channels(mask))
        sample = pixels, _resize(channels[None], pixels.shape[1], pixels.shape[2], "nearest-exact")[0]
        size = pixels.numel() + channels.numel()
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
    """A window of random size and place, resized to the crop, mirrored half of the time, its colours varied."""
    scale = random.uniform(*config.scale)
    height, width = (max(1, round(side / scale)) for side in config.crop)
    top, left = _offset(pixels.shape[1], height, random), _offset(pixels.shape[2], width, random)
    fill = torch.tensor([round(255 * mean) for mean in policy.mean], dtype=torch.uint8)  # 0 after scaling
    window = _resize(_window(pixels, top, left, height, width, fill), *config.crop, "bilinear")
    nothing = torch.tensor([UNLABELED], dtype=torch.uint8)
    labels = _resize(_window(channels[None], top, left, height, width, nothing), *config.crop, "nearest-exact")[0]
    window = _jitter(window, random)
    return (window.flip(2), labels.flip(1)) if random.random() < 0.5 else (window, labels)


def _offset(side: int, window: int, random: np.random.Generator) -> int:
    """Where a window begins: anywhere inside the side, or, where it is larger, anywhere that holds the whole side."""
    slack = side - window
    return int(random.integers(min(0, slack), max(0, slack) + 1))


def _window(planes: Tensor, top: int, left: int, height: int, width: int, fill: Tensor) -> Tensor:
    """(K, H, W) -> (K, height, width) from (top, left) on, `fill` (K,) where that is outside."""
    part = planes[:, max(0, top) : top + height, max(0, left) : left + width]
    if part.shape[1:] == (height, width):
        return part
    window = fill[:, None, None].repeat(1, height, width)
    above, before = max(0, -top), max(0, -left)
    window[:, above : above + part.shape[1], before : before + part.shape[2]] = part
    return window


def _resize(planes: Tensor, height: int, width: int, mode: str) -> Tensor:
    if planes.shape[1:] == (height, width):
        return planes
    resized: Tensor = F.interpolate(planes[None], size=(height, width), mode=mode, antialias=mode == "bilinear")[0]
    return resized


def _jitter(pixels: Tensor, random: np.random.Generator) -> Tensor:
    """Vary brightness, contrast and saturation of (3, h, w) uint8."""
    brightness, contrast, saturation = (float(1 + COLOR_JITTER * random.uniform(-1, 1)) for _ in range(3))
    values = pixels.to(torch.float32) * brightness
    values = values.mean() + contrast * (values - values.mean())
    grey = values.mean(dim=0, keepdim=True)
    values = grey + saturation * (values - grey)
    return values.round().clamp(0, 255).to(torch.uint8)
