"""Everything the model says about one image file, as PNG files, arrays and a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.core.labels import LabelSet
from activeseg.errors import ConfigError
from activeseg.explain.explanation import Explanation, channel_of, confidences, explain_pixels, read_image
from activeseg.explain.figures import class_table, entropy_figure, heat_picture, over_image
from activeseg.explain.heatmap import Scale, stretched
from activeseg.imaging.coloring import colorize, overlay, with_palette
from activeseg.nn.checkpoint import Segmenter

LEAST_SHARE = 0.001
"""Classes below this share of the pixels get no probability picture unless they are asked for."""

SCALES = ("fixed", "image")


@dataclass(frozen=True, slots=True)
class Look:
    """What to draw and how.

    classes: indices of the classes whose entropy is added up; all if empty. probabilities: indices of the classes whose
    probability is drawn; those with a visible share if empty. normalised: entropy over the largest there is, 0..1.
    scale: 'fixed' from 0 to the largest entropy there is, the same in every picture, or 'image' from the image's smallest
    to its largest. palette: 'labels' or 'voc'.
    """

    classes: tuple[int, ...] = ()
    probabilities: tuple[int, ...] = ()
    normalised: bool = False
    scale: str = "fixed"
    colormap: str = "jet"
    palette: str = "labels"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ConfigError(f"unknown scale {self.scale!r}; expected {' or '.join(SCALES)}")


def explain_image(
    segmenter: Segmenter, file: Path, out: Path, *, look: Look | None = None, npy: bool = False, max_pixels: int
) -> dict[str, Any]:
    """Write what `image_pictures` draws of one image file into `out`; return the figures and the list of files.

    npy: also write the entropy (H, W) float32, the probabilities (C, H, W) float32 in the order of the network's channels
    and the mask as .npy files. Raises ImageError where the file cannot be read.
    """
    chosen, label_set = look or Look(), segmenter.spec.label_set
    explanation = explain_pixels(segmenter, read_image(file, max_pixels=max_pixels), classes=chosen.classes)
    entropy = shown_entropy(explanation, chosen)
    files = save_pictures(image_pictures(explanation, label_set, chosen), out, file.stem)
    if npy:
        arrays = {"entropy": entropy, "probabilities": explanation.probabilities, "mask": explanation.mask}
        files += [_save_array(array, out / f"{file.stem}-{name}.npy") for name, array in arrays.items()]
    table = class_table(confidences(explanation, label_set), explanation.mask, label_set)
    return {
        "model_version": segmenter.model_version,
        "normalised": chosen.normalised,
        "entropy_sum": float(entropy.sum(dtype=np.float64)),
        "entropy_mean": float(entropy.mean(dtype=np.float64)),
        "classes": [{"name": row.name, "share": row.share, "confidence": row.confidence} for row in table],
        "files": files,
    }


def image_pictures(explanation: Explanation, label_set: LabelSet, look: Look | None = None) -> dict[str, Image.Image]:
    """The pictures of one image, by name: entropy, labels, overlay, the three-panel figure, and class-NAME.

    entropy and the class probabilities (scale 0..1, half transparent over the image) have a numbered colour bar.
    Raises ConfigError for an unknown colour map or palette.
    """
    chosen = look or Look()
    painted = with_palette(label_set, chosen.palette)
    entropy = shown_entropy(explanation, chosen)
    scale = _entropy_scale(explanation, label_set, chosen)
    pictures = {
        "entropy": heat_picture(entropy, scale=scale),
        "labels": colorize(explanation.mask, painted),
        "overlay": overlay(explanation.image, explanation.mask, painted),
        "figure": entropy_figure(explanation.image, explanation.mask, entropy, painted, scale=scale),
    }
    rows = class_table({}, explanation.mask, label_set)
    for index in chosen.probabilities or [label_set.index_of(row.name) for row in rows if row.share >= LEAST_SHARE]:
        name = label_set.names[index]
        plane = explanation.probabilities[channel_of(label_set, index)]
        probable = Scale(1.0, label=f"probability of {name}", colormap=chosen.colormap)
        pictures[f"class-{file_name(name)}"] = over_image(explanation.image, plane, scale=probable)
    return pictures


def shown_entropy(explanation: Explanation, look: Look) -> npt.NDArray[np.float32]:
    """The entropy map in nats or, normalised, over the largest entropy there is."""
    return explanation.entropy / np.float32(explanation.upper) if look.normalised else explanation.entropy


def save_pictures(pictures: Mapping[str, Image.Image], out: Path, stem: str) -> list[str]:
    """Write pictures as `out`/STEM-NAME.png; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, picture in pictures.items():
        path = out / f"{stem}-{name}.png"
        picture.save(path)
        files.append(str(path))
    return files


def file_name(name: str) -> str:
    """A class name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:80]


def _entropy_scale(explanation: Explanation, label_set: LabelSet, look: Look) -> Scale:
    label = "normalised entropy" if look.normalised else "entropy (nats)"
    if look.classes:
        label += " of " + ", ".join(label_set.names[index] for index in look.classes)
    fixed = Scale(1.0 if look.normalised else explanation.upper, label=label, colormap=look.colormap)
    return fixed if look.scale == "fixed" else stretched(fixed, shown_entropy(explanation, look))


def _save_array(array: npt.NDArray[np.generic], path: Path) -> str:
    np.save(path, array)
    return str(path)
