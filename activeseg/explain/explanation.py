"""What a network says about one image: its mask, its entropy and its probabilities, at the image's own size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from activeseg.core.entropy import entropy_map, max_entropy, predicted_channels
from activeseg.core.labels import LabelSet, Mask
from activeseg.errors import ConfigError, ImageError
from activeseg.imaging.decode import resize_short_side
from activeseg.imaging.sandbox import decode_image
from activeseg.nn.batches import Loaded
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.data import to_pixels
from activeseg.nn.infer import at_size, forward


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What the network says about one image (H, W, 3) uint8.

    mask: as the label set describes masks. entropy: (H, W) float32 nats, of the asked classes or of all; upper: the
    largest a pixel could have. probabilities: (C, H, W) float32, one plane per network channel.
    """

    image: npt.NDArray[np.uint8]
    mask: Mask
    entropy: npt.NDArray[np.float32]
    upper: float
    probabilities: npt.NDArray[np.float32]


def explain_pixels(segmenter: Segmenter, image: npt.NDArray[np.uint8], *, classes: tuple[int, ...] = ()) -> Explanation:
    """Run the network over pixels (H, W, 3) uint8. classes: sum the entropy over these class indices only.

    Raises ConfigError for a class that the network does not predict.
    """
    label_set, policy = segmenter.spec.label_set, segmenter.spec.input_policy
    sigmoid = segmenter.spec.head == "sigmoid"
    height, width = image.shape[:2]
    loaded = Loaded(0, to_pixels(resize_short_side(image, policy.short_side)), (height, width))
    device = next(segmenter.module.parameters()).device
    logits = at_size(forward(segmenter, [loaded], device=device, precision="float32"), (height, width))
    channels = [channel_of(label_set, index) for index in classes] or None
    return Explanation(
        image=image,
        mask=label_set.to_indices(predicted_channels(logits, sigmoid=sigmoid)[0].cpu().numpy()),
        entropy=entropy_map(logits, classes=channels, sigmoid=sigmoid)[0].cpu().numpy(),
        upper=max_entropy(label_set.num_classes, sigmoid=sigmoid),
        probabilities=(torch.sigmoid(logits) if sigmoid else torch.softmax(logits, dim=1))[0].cpu().numpy(),
    )


def channel_of(label_set: LabelSet, index: int) -> int:
    """The network channel of a class index. Raises ConfigError for the ignored class, which has none."""
    if index not in label_set.channels:
        raise ConfigError(f"class {label_set.names[index]!r} is ignored: the network has no output for it")
    return label_set.channels.index(index)


def confidences(explanation: Explanation, label_set: LabelSet) -> dict[int, float]:
    """Mean probability of each predicted class over the pixels predicted as it, by class index."""
    found = {}
    for channel, index in enumerate(label_set.channels):
        region = explanation.mask[index] if label_set.overlap else explanation.mask == index
        if region.any():
            found[index] = float(explanation.probabilities[channel][region].mean(dtype=np.float64))
    return found


def read_image(file: Path, *, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, 3) uint8 of an image file. Raises ImageError, naming the file, where it cannot be read."""
    try:
        return decode_image(file.read_bytes(), max_pixels=max_pixels)
    except OSError as error:
        raise ImageError(f"image {file} cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise ImageError(f"{file}: {error}") from error
