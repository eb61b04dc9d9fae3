"""Labelled images for training, decoded once where memory allows, and the way from pixels to what a network takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Mask as MaskTensor

from activeseg.core.labels import LabelSet, Mask
from activeseg.errors import DataError, ImageError, MaskError
from activeseg.imaging.decode import Decoded, resize_short_side
from activeseg.records import InputPolicy

Array = npt.NDArray[np.uint8]

MEMORY_BUDGET = 2 * 1024**3
"""Bytes of decoded images and masks kept in memory; what does not fit is decoded again when its turn comes."""


@dataclass(frozen=True, slots=True)
class LabeledImage:
    """An image with its truth. load: returns pixels (H, W, 3) uint8 RGB, or an image decoded as the network's input policy
    wants it, and a mask of the label set's kind and of the image's own size.

    uri: where it is, for messages. truth: what tells its mask from any other one, where a training is to know.
    """

    image_id: int
    load: Callable[[], tuple[Array | Decoded, Mask]]
    uri: str = ""
    truth: str = ""


@dataclass(frozen=True, slots=True)
class UnlabeledImage:
    """An image nobody has labelled. load: its pixels, as `LabeledImage.load` gives them. uri: where it is, for messages."""

    image_id: int
    load: Callable[[], Array | Decoded]
    uri: str = ""


class Kept:
    """Decoded images in memory, by key, as long as they fit into `budget` bytes; safe to use from several threads."""

    def __init__(self, budget: int) -> None:
        self.free = budget
        self._tensors: dict[Hashable, tuple[Tensor, ...]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """What was kept under this key."""
        return self._tensors.get(key)

    def put(self, key: Hashable, *tensors: Tensor) -> None:
        """Keep these where there is room."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        with self._lock:
            if key not in self._tensors and size <= self.free:
                self._tensors[key] = tensors
                self.free -= size


class Samples:
    """Images as the network takes them and its targets, by position; safe to read from several threads."""

    def __init__(
        self, images: Sequence[LabeledImage], label_set: LabelSet, policy: InputPolicy, *, budget: int = MEMORY_BUDGET
    ) -> None:
        self._images = images
        self.label_set = label_set
        self.policy = policy
        self.kept = Kept(budget)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        """Pixels (3, h, w) uint8 and targets uint8, UNLABELED where there is no truth.

        Targets are channel numbers (h, w) or, where classes overlap, 0 or 1 for each channel (C, h, w).
        """
        found = self.kept.get(position)
        return (found[0], found[1]) if found is not None else self._load(position)

    def _load(self, position: int) -> tuple[Tensor, Tensor]:
        image, mask = load_checked(self._images[position], self.label_set)
        pixels = _resized(image, self.policy)
        targets = resize_mask(torch.from_numpy(self.label_set.to_channels(mask)), pixels.shape[1], pixels.shape[2])
        self.kept.put(position, pixels, targets)
        return pixels, targets


class UnlabeledSamples:
    """Images without a truth as the network takes them, by position; safe to read from several threads.

    kept: the memory they share with others.
    """

    def __init__(self, images: Sequence[UnlabeledImage], policy: InputPolicy, kept: Kept) -> None:
        self.images = images
        self.policy = policy
        self._kept = kept

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        """Pixels (3, h, w) uint8. Raises the error of `load` where that raises a DataError, with the image's name."""
        image = self.images[position]
        found = self._kept.get(image)
        if found is not None:
            return found[0]
        try:
            pixels = _resized(decoded(image.load()), self.policy)
        except DataError as error:
            raise _naming(image, error) from error
        self._kept.put(image, pixels)
        return pixels


def _resized(image: Decoded, policy: InputPolicy) -> Tensor:
    pixels = to_pixels(resize_short_side(image.pixels, policy.short_side))
    # Crops are cut and resized faster from interleaved colours.
    return pixels[None].contiguous(memory_format=torch.channels_last)[0]


def decoded(image: Array | Decoded) -> Decoded:
    """Pixels of an image's own size as what was decoded; what was decoded stays what it is."""
    return image if isinstance(image, Decoded) else Decoded(image, (image.shape[0], image.shape[1]))


def load_checked(image: LabeledImage, label_set: LabelSet) -> tuple[Decoded, Mask]:
    """Pixels and mask of an image.

    Raises MaskError where the mask has another size or is none of the label set's, and the error of `load` where that
    raises a DataError; each names the image.
    """
    try:
        loaded, mask = image.load()
        pixels = decoded(loaded)
        _require_same_size(pixels.size, mask)
        label_set.check_mask(mask)
    except DataError as error:
        raise _naming(image, error) from error
    return pixels, mask


def _naming(image: LabeledImage | UnlabeledImage, error: DataError) -> DataError:
    where = f" ({image.uri})" if image.uri else ""
    return type(error)(f"image {image.image_id}{where}: {error}")


def _require_same_size(size: tuple[int, int], mask: Mask) -> None:
    if mask.shape[-2:] != size:
        raise MaskError(
            f"mask is {mask.shape[-1]}x{mask.shape[-2]}, the image is {size[1]}x{size[0]}: export the mask "
            "at the image's own size"
        )


def to_pixels(image: Array) -> Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor with memory of its own, colours side by side in it as in the array.

    Raises ImageError for anything else.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(f"expected pixels (H, W, 3) uint8, got {image.shape} {image.dtype}")
    return torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)


def to_input(pixels: Tensor, policy: InputPolicy, device: torch.device) -> Tensor:
    """(N, 3, H, W) uint8 -> float32 on `device`, scaled as the policy says."""
    mean, std = (torch.tensor(values, device=device)[:, None, None] * 255 for values in (policy.mean, policy.std))
    # With channels last, MobileNetV2 trains several times faster on CPUs.
    on_device = pixels.to(device, non_blocking=True).to(torch.float32, memory_format=torch.channels_last)
    return on_device.sub_(mean).div_(std)


def stack_pixels(images: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """(3, H, W) uint8 each -> (N, 3, H, W) uint8 with channels last; pinned: in memory a GPU copies from by itself."""
    interleaved = [pixels.permute(1, 2, 0) for pixels in images]
    stacked = torch.empty((len(images), *interleaved[0].shape), dtype=torch.uint8, pin_memory=pinned)
    return torch.stack(interleaved, out=stacked).permute(0, 3, 1, 2)


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W) -> (..., height, width): the value at the nearest pixel centre, never a mixture.

    NEAREST_EXACT lies where the bilinear resize of the image lies; plain NEAREST is off by up to half a pixel.
    """
    if mask.shape[-2:] == (height, width):
        return mask
    resized = F.resize(MaskTensor(mask), [height, width], interpolation=InterpolationMode.NEAREST_EXACT)
    plain: Tensor = resized.as_subclass(Tensor)
    return plain
