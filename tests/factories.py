"""What tests are made of: tiny scenes a network can learn in seconds, and workspaces on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.config import Settings
from activeseg.core.labels import LabelSet
from activeseg.db.database import Database
from activeseg.workspace import Workspace

CLASSES = LabelSet(
    ("sky", "ground", "ball", "void"), ((120, 180, 240), (90, 140, 60), (220, 60, 40), (0, 0, 0)), ignore_index=3
)

# Narrow and short: the real network and the real training, in about a second.
# A precision by name: left to the machine, figures would not be those of a reference in float32 everywhere.
MODEL: dict[str, Any] = {"width": 0.1, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "device": "cpu", "precision": "float32"}
TRAINING: dict[str, Any] = {
    "steps": 6,
    "batch_size": 4,
    "crop": [48, 64],
    "scale": [1.0, 1.2],
    "learning_rate": 0.05,
    "warmup_steps": 1,
    "min_train": 4,
    "retrain_after": 2,
}


def draw_ball(seed: int, *, width: int = 64, height: int = 48) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A ball on the ground under the sky: image (H, W, 3) and its mask (H, W); a strip of void at the bottom."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    horizon = random.integers(height // 3, 2 * height // 3)
    mask = (rows >= horizon).astype(np.uint8)
    radius = random.integers(4, max(5, height // 4))
    center = random.integers(radius, height - radius), random.integers(radius, width - radius)
    mask[(rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2] = 2
    mask[height - 2 :] = 3
    image = np.array(CLASSES.colors, np.float64)[mask] * random.uniform(0.6, 1.1)
    noisy = image + random.normal(0, 12 + 20 * random.random(), image.shape)
    return noisy.clip(0, 255).astype(np.uint8), mask


def write_balls(folder: Path, seeds: range, *, masks: Path | None = None, width: int = 64, height: int = 48) -> None:
    """ball_0001.png ... in `folder`, their index masks in `masks` where given."""
    folder.mkdir(parents=True, exist_ok=True)
    if masks is not None:
        masks.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        image, mask = draw_ball(seed, width=width, height=height)
        Image.fromarray(image).save(folder / f"ball_{seed:04d}.png")
        if masks is not None:
            Image.fromarray(mask).save(masks / f"ball_{seed:04d}.png")


def overlapping(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """The planes (4, H, W) of a ball's mask where classes may overlap: the ball lies on the ground or before the sky."""
    planes = np.stack([mask == index for index in range(len(CLASSES.names))])
    horizon = np.flatnonzero((mask == 0).any(axis=1)).max()
    planes[0, : horizon + 1] |= planes[2, : horizon + 1]
    planes[1, horizon + 1 :] |= planes[2, horizon + 1 :]
    return planes


def write_class_folders(masks: Path, folder: Path) -> None:
    """Index masks of balls as `activeseg dataset import` wants them where classes overlap: folder/<class>/<name>.png."""
    for file in sorted(masks.glob("*.png")):
        for name, plane in zip(CLASSES.names, overlapping(np.asarray(Image.open(file))), strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane).save(folder / name / file.name)


class WorkspaceFactory:
    """Makes workspaces in one folder on one database, and closes them.

        workspace = make_workspace(pool=8, selection={"query_size": 3})

    pool: number of images drawn into `pool/`; their truth lies in `truth/`. Sections override the small defaults.
    """

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder, self.database_url = folder, database_url
        self.opened: list[Workspace] = []

    def __call__(self, *, pool: int = 8, **sections: dict[str, Any]) -> Workspace:
        write_balls(self.folder / "pool", range(pool), masks=self.folder / "truth")
        (self.folder / "classes.txt").write_text(CLASSES.to_text(), encoding="utf-8")
        tables: dict[str, Any] = {
            "root": self.folder,
            "database": {"url": self.database_url},
            "pool": {"images": "pool"} | sections.pop("pool_section", {}),
            "model": MODEL | sections.pop("model", {}),
            "training": TRAINING | sections.pop("training", {}),
            "scoring": {"batch_size": 2, "chunk_size": 3} | sections.pop("scoring", {}),
            **sections,
        }
        workspace = Workspace(Settings(**tables), Database(self.database_url))
        self.opened.append(workspace)
        return workspace

    def close(self) -> None:
        """Return all connections."""
        for workspace in self.opened:
            workspace.database.close()
