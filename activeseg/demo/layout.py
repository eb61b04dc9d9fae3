"""Where the demo keeps its data, and how real data gets there.

<state>/data/classes.txt
<state>/data/start/{images,masks}    a few labelled images for the first checkpoint
<state>/data/val/{images,masks}      the validation split
<state>/data/pool/images             what the loop may see of the rest
<state>/data/truth/masks             the pool's known masks: only the simulated annotator reads them
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from activeseg.errors import ConfigError
from activeseg.storage.files import is_listed

PARTS = ("train/images", "train/masks", "val/images", "val/masks")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many images of real data the demo takes; fewer where there are fewer."""

    start: int
    val: int
    pool: int


def copy_dataset(source: Path, target: Path, sizes: Sizes, *, seed: int) -> None:
    """Copy a labelled dataset into the demo's layout: start and pool images are drawn from its train folder.

    source: train/images train/masks val/images val/masks classes.txt; masks are index PNGs named like their image. A
    second call with the same arguments copies nothing that is there. Raises ConfigError naming what is missing, or
    where the target holds other data.
    """
    for part in (*PARTS, "classes.txt"):
        if not (source / part).exists():
            raise ConfigError(f"{source / part} is missing; expected {', '.join(PARTS)} and classes.txt in {source}")
    train, val = (_labelled(source / split) for split in ("train", "val"))
    if len(train) < sizes.start + 1 or not val:
        raise ConfigError(f"{source} has {len(train)} labelled training images, at least {sizes.start + 1} are needed")
    claim(target, {"source": str(source.resolve()), "sizes": [sizes.start, sizes.val, sizes.pool], "seed": seed})
    order = random.Random(seed).sample(train, len(train))
    _copy_pairs(source / "train", order[: sizes.start], target / "start/images", target / "start/masks")
    rest = order[sizes.start : sizes.start + sizes.pool]
    _copy_pairs(source / "train", rest, target / "pool/images", target / "truth/masks")
    # Evenly spread: neighbours in a clip are near duplicates.
    step = max(1, len(val) // sizes.val)
    _copy_pairs(source / "val", val[::step][: sizes.val], target / "val/images", target / "val/masks")
    shutil.copyfile(source / "classes.txt", target / "classes.txt")


def claim(target: Path, origin: dict[str, object]) -> None:
    """Write down what a data folder holds. Raises ConfigError where it already holds something else."""
    target.mkdir(parents=True, exist_ok=True)
    note, text = target / "origin.json", json.dumps(origin, sort_keys=True)
    if note.exists() and note.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{target.parent} holds a demo with other data: remove it, or run in another folder")
    note.write_text(text, encoding="utf-8")


def _labelled(folder: Path) -> list[Path]:
    """Images of a split that have a mask, by name."""
    images = sorted(path for path in (folder / "images").iterdir() if is_listed(path.name))
    return [path for path in images if (folder / "masks" / f"{path.stem}.png").exists()]


def _copy_pairs(source: Path, images: Sequence[Path], image_folder: Path, mask_folder: Path) -> None:
    for folder in (image_folder, mask_folder):
        folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        _copy(image, image_folder / image.name)
        _copy(source / "masks" / f"{image.stem}.png", mask_folder / f"{image.stem}.png")


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        partial = target.with_name(f".{target.name}")
        shutil.copyfile(source, partial)
        partial.rename(target)
