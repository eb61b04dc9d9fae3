"""A copy of a data folder in which every image has the same mean and deviation: what is left when the light is taken out.

    python scripts/even_light.py --data DIR --out DIR [--mean 118] [--deviation 64]

Each image x, all channels together, becomes (x - mean(x)) / std(x) * deviation + mean, rounded and cut to 0..255, and is
written as PNG; masks and classes.txt are copied. The label-efficiency study (docs/label-efficiency.md) measures on a clip that
was filmed at dusk: on the images as they are, which way a training falls there decides more than any choice of images.
A file that is there already stays, so a killed copy goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/images train/masks [val/...] classes.txt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mean", type=float, default=118.0, help="of all values of an image, 0 to 255")
    parser.add_argument("--deviation", type=float, default=64.0, help="standard deviation of all values of an image")
    given = parser.parse_args()
    if given.out.resolve().is_relative_to(given.data.resolve()):
        parser.error(f"expected --out outside of {given.data}, got {given.out}")
    copied = 0
    for source in sorted(path for path in given.data.rglob("*") if path.is_file()):
        target = given.out / source.relative_to(given.data)
        if is_image := source.parent.name == "images" and source.suffix.lower() in SUFFIXES:
            target = target.with_suffix(".png")
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.part")
        if is_image:
            with Image.open(source) as image:
                even = even_light(np.asarray(image.convert("RGB")), given.mean, given.deviation)
            Image.fromarray(even).save(unfinished, format="PNG")
            copied += 1
        else:
            shutil.copyfile(source, unfinished)
        os.replace(unfinished, target)
    print(f"{copied} images written to {given.out}")


def even_light(pixels: NDArray[np.uint8], mean: float, deviation: float) -> NDArray[np.uint8]:
    """`pixels` (height, width, 3) with that mean and standard deviation, before the cut to 0..255. One colour stays flat."""
    values = pixels.astype(np.float64)
    spread = values.std()
    if spread > 0:
        values = (values - values.mean()) / spread * deviation
    else:
        values -= values.mean()
    return np.clip(np.rint(values + mean), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
