"""Which pixels a class's score comes from, as pictures: the saliency map, and the object cut out along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from activeseg.explain.figures import heat_figure, heat_picture
from activeseg.explain.graphcut import graph_cut
from activeseg.explain.heatmap import Scale
from activeseg.explain.network import Network
from activeseg.explain.panels import Row, drawing, heat, lay_out, photo, total_width
from activeseg.explain.saliency import saliency_map
from activeseg.explain.sheet import Color, Lettering, bar_block, legend_block, line_up

OBJECT_SEED: Color = (230, 120, 0)
SURROUNDING_SEED: Color = (0, 90, 220)

_BRIGHTEST = 0.995

Pixels = npt.NDArray[np.uint8]
Saliency = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Localisation:
    """The mask (H, W) bool of an object, the saliency (H, W) it was cut along, and the cut's seeds (H, W) int8 -1, 0, 1."""

    mask: npt.NDArray[np.bool_]
    seeds: npt.NDArray[np.int8]
    saliency: Saliency


def saliency_of(
    network: Network, image: Pixels, target: int, *, device: torch.device, predicted_only: bool = False
) -> Saliency:
    """`saliency_map` of one output; predicted_only: of the logits where a segmentation network predicts the class.

    Raises SaliencyError where it predicts the class nowhere.
    """
    region = network.region(image, target, device=device) if predicted_only and network.segmentation else None
    return saliency_map(
        network.module,
        image,
        network.policy,
        target=target,
        segmentation=network.segmentation,
        device=device,
        region=region,
    )


def localise(
    image: Pixels, saliency: Saliency, *, foreground: float = 0.95, background: float = 0.30, iterations: int = 0
) -> Localisation:
    """`graph_cut` with the saliency it was cut along. Raises SaliencyError where the map points nowhere."""
    mask, seeds = graph_cut(image, saliency, foreground=foreground, background=background, iterations=iterations)
    return Localisation(mask, seeds, saliency)


def saliency_pictures(image: Pixels, saliency: Saliency, name: str, *, colormap: str = "jet") -> dict[str, Image.Image]:
    """'saliency', the heat map at the image's own pixels, and 'saliency-figure', the image beside it; both numbered.

    The last colour stands for the 99.5 % quantile and above: gradients have a few very large values.
    """
    scale = _scale(saliency, name, colormap)
    figure = heat_figure(image, saliency, scale=scale, heading=f"saliency of {name}")
    return {"saliency": heat_picture(saliency, scale=scale), "saliency-figure": figure}


def localisation_pictures(image: Pixels, found: Localisation, name: str, *, colormap: str = "jet") -> dict[str, Image.Image]:
    """'mask' (white object on black), 'object' (dark around it), 'seeds' and 'localisation', the figure of the whole way."""
    seeds = seeds_picture(image, found.seeds)
    cut = object_picture(image, found.mask)
    scale = _scale(found.saliency, name, colormap)

    def foot(widths: Sequence[int], letters: Lettering) -> list[Image.Image]:
        entries = [("seeds of the object", OBJECT_SEED), ("seeds of its surroundings", SURROUNDING_SEED)]
        right = total_width(widths[2:])
        blocks = [None, bar_block(widths[1], scale, letters), legend_block(entries, right, letters)]
        return [line_up(blocks, [widths[0], widths[1], right])]

    panels = (photo(image), heat(found.saliency, scale), drawing(np.asarray(seeds)), photo(np.asarray(cut)))
    figure = lay_out(("image", f"saliency of {name}", "seeds", "graph cut"), [Row(panels)], foot=foot)
    return {"mask": Image.fromarray(found.mask), "object": cut, "seeds": seeds, "localisation": figure}


def seeds_picture(image: Pixels, seeds: npt.NDArray[np.int8]) -> Image.Image:
    """The seeds in colour over the darkened image: orange for the object's, blue for its surroundings'."""
    picture = image // 2
    picture[seeds > 0] = OBJECT_SEED
    picture[seeds < 0] = (picture[seeds < 0] + np.array(SURROUNDING_SEED)) // 2
    return Image.fromarray(picture)


def object_picture(image: Pixels, mask: npt.NDArray[np.bool_]) -> Image.Image:
    """The image, dark outside the mask (H, W) bool, the object's border drawn in orange."""
    inside = np.pad(mask, 1, mode="edge")
    core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    picture = np.where(mask[..., None], image, image // 3)
    picture[mask & ~core] = OBJECT_SEED
    return Image.fromarray(picture)


def _scale(saliency: Saliency, name: str, colormap: str) -> Scale:
    bright = float(np.quantile(saliency, _BRIGHTEST)) or float(saliency.max()) or 1.0
    return Scale(bright, label=f"saliency |dS/dI| of {name}, score per grey level", colormap=colormap)
