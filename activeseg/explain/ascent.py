"""A class model of a network, written down as it grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from activeseg.explain.class_model import Ascent, class_model
from activeseg.explain.curves import curve_figure
from activeseg.explain.network import Network
from activeseg.explain.report import file_name, save_pictures


def ascend_and_save(
    network: Network,
    name: str,
    out: Path,
    *,
    ascent: Ascent,
    every: int = 0,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write NAME-class-model.png and the curve of its score; returns scores and files.

    every: also write NAME-class-model-0030.png, ... after so many steps; 0 = none. on_progress(done, planned).
    """
    files, stem, target = [], file_name(name), network.index_of(name)
    out.mkdir(parents=True, exist_ok=True)  # before the work: a folder that cannot be made is no reason to lose it

    def on_step(step: int, image: npt.NDArray[np.uint8]) -> None:
        if every and step % every == 0:
            files.extend(save_pictures({f"class-model-{step:04d}": Image.fromarray(image)}, out, stem))
        if on_progress is not None:
            on_progress(step, ascent.steps)

    found = class_model(
        network.module,
        network.policy,
        target=target,
        segmentation=network.segmentation,
        device=device,
        ascent=ascent,
        on_step=on_step,
    )
    points = {"score": [(float(step), score) for step, score in enumerate(found.scores)]}
    title = f"{network.name}: score of {name}"
    curve = curve_figure(points, xlabel="step", ylabel="score before softmax", title=title)
    files += save_pictures({"class-model-scores": curve, "class-model": Image.fromarray(found.image)}, out, stem)
    return {
        "network": network.name,
        "class": name,
        "scores": list(found.scores),
        "stalled": found.stalled,
        "files": files,
    }
