"""Everything the model says about one image file, as PNG files and a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from activeseg.core.entropy import entropy_map
from activeseg.core.labels import LabelSet
from activeseg.errors import ImageError
from activeseg.explain.figures import class_table, entropy_figure
from activeseg.explain.heatmap import heatmap
from activeseg.explain.overlay import colorize, overlay
from activeseg.imaging.decode import decode_image, resize_short_side
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.data import to_pixels
from activeseg.nn.infer import Loaded, at_size, forward

LEAST_SHARE = 0.001
"""Classes below this share of the pixels get no confidence picture of their own."""


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What the network says about one image, at the image's own size (H, W).

    mask: (H, W) uint8 class indices. entropy: (H, W) float32 nats, of the asked classes or of all.
    probabilities: (C, H, W) float32, one plane per network channel.
    """

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    entropy: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]


def explain_pixels(segmenter: Segmenter, image: npt.NDArray[np.uint8], *, classes: tuple[int, ...] = ()) -> Explanation:
    """Run the network over pixels (H, W, 3) uint8. classes: sum the entropy over these class indices only."""
    label_set, policy = segmenter.spec.label_set, segmenter.spec.input_policy
    height, width = image.shape[:2]
    loaded = Loaded(0, to_pixels(resize_short_side(image, policy.short_side)), (height, width))
    device = next(segmenter.module.parameters()).device
    logits = at_size(forward(segmenter, [loaded], device=device, precision="float32"), (height, width))
    channels = [label_set.channels.index(index) for index in classes] or None
    winners = logits.argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
    return Explanation(
        image=image,
        mask=label_set.to_indices(winners),
        entropy=entropy_map(logits, classes=channels)[0].cpu().numpy(),
        probabilities=torch.softmax(logits, dim=1)[0].cpu().numpy(),
    )


def confidences(explanation: Explanation, label_set: LabelSet) -> dict[int, float]:
    """Mean probability of each predicted class over the pixels it wins, by class index."""
    return {
        index: float(explanation.probabilities[channel][explanation.mask == index].mean())
        for channel, index in enumerate(label_set.channels)
        if (explanation.mask == index).any()
    }


def explain_image(
    segmenter: Segmenter, file: Path, out: Path, *, classes: tuple[int, ...] = (), max_pixels: int
) -> dict[str, Any]:
    """Write the pictures of one image file into `out` and return the figures and the list of files.

    entropy (jet on the fixed scale 0..log C), labels, overlay, a three-panel figure, and for each class with a visible
    share its probability over the image (scale 0..1). Raises ImageError where the file cannot be read.
    """
    try:
        image = decode_image(file.read_bytes(), max_pixels=max_pixels)
    except OSError as error:
        raise ImageError(f"image {file} cannot be read: {error.strerror}") from error
    label_set = segmenter.spec.label_set
    upper = float(np.log(label_set.num_classes))
    explanation = explain_pixels(segmenter, image, classes=classes)
    table = class_table(confidences(explanation, label_set), explanation.mask, label_set)
    pictures = {
        "entropy": heatmap(explanation.entropy, upper=upper),
        "labels": colorize(explanation.mask, label_set),
        "overlay": overlay(image, explanation.mask, label_set),
        "figure": entropy_figure(image, explanation.mask, explanation.entropy, label_set, upper=upper),
    }
    for row in table:
        if row.share >= LEAST_SHARE:
            channel = label_set.channels.index(label_set.index_of(row.name))
            pictures[f"class-{_file_name(row.name)}"] = _over_image(image, explanation.probabilities[channel])
    out.mkdir(parents=True, exist_ok=True)
    files = [_save(picture, out / f"{file.stem}-{name}.png") for name, picture in pictures.items()]
    return {
        "model_version": segmenter.model_version,
        "entropy_sum": float(explanation.entropy.sum(dtype=np.float64)),
        "entropy_mean": float(explanation.entropy.mean(dtype=np.float64)),
        "classes": [{"name": row.name, "share": row.share, "confidence": row.confidence} for row in table],
        "files": files,
    }


def _over_image(image: npt.NDArray[np.uint8], probability: npt.NDArray[np.float32]) -> Image.Image:
    """A probability plane (H, W) as a heat map, half transparent over the image."""
    return Image.blend(Image.fromarray(image), heatmap(probability, upper=1.0), 0.5)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def _save(picture: Image.Image, path: Path) -> str:
    picture.save(path)
    return str(path)
