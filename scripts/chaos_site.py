"""A site to hurt: a folder with a pool, a database, a project, and a person who answers what is asked, always the same way.

What the person does depends on the image alone, never on time, order or numbers: two sites of the same seed are answered
alike, whatever happens to the program in between.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from activeseg.config import load_settings, toml_value, write_secret
from activeseg.core.labels import Mask
from activeseg.db.database import Database
from activeseg.db.models import LabelingProject
from activeseg.demo.annotator import (
    Browser,
    Screen,
    Work,
    annotate,
    correct,
    open_screen,
    open_task,
    open_tasks,
    read_truth,
    untouched,
)
from activeseg.demo.scenes import SCENE_CLASSES, draw_scene
from activeseg.imaging.masks import encode_mask
from activeseg.imaging.thumbnails import encode_png
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.regions import result_to_mask
from activeseg.labelstudio.registration import open_client
from activeseg.workspace import Workspace, open_workspace

BOOTSTRAP, QUERY, NEW_IMAGES = 8, 4, 2
WIDTH, HEIGHT = 64, 48
# The real network and the real training, narrow and short; on a processor, eager, by a fixed seed. Every challenger is let
# in, so that every round is scored anew.
SECTIONS: dict[str, dict[str, Any]] = {
    "pool": {"images": "pool"},
    "labels": {"file": "classes.txt"},
    "model": {"width": 0.1, "mean": [0.5] * 3, "std": [0.5] * 3, "device": "cpu", "precision": "float32"},
    "training": {
        "steps": 6, "batch_size": 4, "crop": [HEIGHT, WIDTH], "scale": [1.0, 1.2], "learning_rate": 0.05, "warmup_steps": 1,
        "min_train": 4, "retrain_after": 2, "validate_every": 3, "save_every": 2,
    },
    # Chunks are whole batches: the last bits of a score depend on the size of its batch.
    "scoring": {"batch_size": 2, "chunk_size": 4, "compile": "never"},
    "selection": {
        "bootstrap_size": BOOTSTRAP, "query_size": QUERY, "val_size": 2, "refill_below": 1, "control_share": 0.25,
    },
    "promotion": {"tolerance": 1.0, "class_floor": 1.0, "max_ece_rise": 1.0},
    "housekeeping": {"min_free_gb": 0.0},
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What the person left on an image last. mask: None where the task was skipped."""

    image: str
    role: str
    number: int
    mask: Mask | None


@dataclass
class Site:
    """The folder, its database and its server. answers: by image name; given: annotations and versions of them."""

    folder: Path
    database_url: str
    labelstudio_url: str
    token: str
    person: str
    title: str
    doubt_seconds: float
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    given: int = 0
    images: int = 0

    def __post_init__(self) -> None:
        for name in ("pool", "truth"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "classes.txt").write_text(SCENE_CLASSES.to_text(), encoding="utf-8")
        write_secret(self.folder / "token", self.token)
        server = {"url": self.labelstudio_url, "token_file": "token", "project": self.title}
        tables = {name: dict(keys) for name, keys in SECTIONS.items()}
        tables |= {"database": {"url": self.database_url}, "labelstudio": server | {"doubt_seconds": self.doubt_seconds}}
        for name, keys in self.sections.items():
            tables[name] = tables.get(name, {}) | keys
        lines = [
            f"[{name}]\n" + "".join(f"{key} = {toml_value(v)}\n" for key, v in keys.items()) for name, keys in tables.items()
        ]
        self.config.write_text("\n".join(lines), encoding="utf-8")

    @property
    def config(self) -> Path:
        """Its activeseg.toml."""
        return self.folder / "activeseg.toml"

    def add_images(self, count: int) -> None:
        """Draw further images into the pool, with masks beside it that only the person reads."""
        for seed in range(self.images, self.images + count):
            scene = draw_scene(seed, width=WIDTH, height=HEIGHT)
            (self.folder / "truth" / f"scene_{seed:04d}.png").write_bytes(encode_mask(scene.mask))
            # Whole under its name or not there: the program may be looking.
            partial = self.folder / "scene.partial"
            partial.write_bytes(encode_png(scene.image))
            partial.rename(self.folder / "pool" / f"scene_{seed:04d}.png")
        self.images += count

    @contextmanager
    def workspace(self) -> Iterator[Workspace]:
        """The site as the program sees it."""
        with open_workspace(load_settings(self.config)) as workspace:
            yield workspace

    @contextmanager
    def client(self) -> Iterator[LabelStudioClient]:
        """Label Studio as the program reaches it."""
        with open_client(load_settings(self.config)) as client:
            yield client

    def project(self) -> int | None:
        """The number of the site's project; None before the first push."""
        database = Database(self.database_url)
        try:
            with database.read() as session:
                return session.scalar(sa.select(LabelingProject.external_project_id))
        finally:
            database.close()

    def answer(self, share: float) -> int:
        """Answer this share of the open tasks, by the order of image names; returns how many that were."""
        project = self.project()
        if project is None:
            return 0
        browser = Browser(self.labelstudio_url, self.person)
        screen, truth = open_screen(browser, project), read_truth(self.folder / "truth")
        works = [open_task(browser, screen, number, truth, wrong=False) for number in open_tasks(browser, project, ())]
        works.sort(key=_image_of)
        for work in works[: round(share * len(works))]:
            self._answer(browser, screen, work)
        return round(share * len(works))

    def change_mind(self) -> None:
        """Draw the first image that was answered and still can be changed once more: a new version of its annotation."""
        found = next((one for _, one in sorted(self.answers.items()) if one.role == "corrected"), None)
        if found is None:
            return
        browser = Browser(self.labelstudio_url, self.person)
        screen, truth = open_screen(browser, self.project() or 0), read_truth(self.folder / "truth")
        work = open_task(browser, screen, self._task_of(browser, found), truth, wrong=False)
        mask = work.truth.copy()
        mask[: HEIGHT // 3] = 0
        result = correct(work, screen, mask)
        body = {"result": result, "lead_time": 30.0}
        task = work.task["id"]
        browser.call("PATCH", f"/api/annotations/{found.number}/", body, project=screen.project, taskID=task)
        self.answers[found.image] = Answer(found.image, "changed", found.number, _drawn(result, screen, work))
        self.given += 1

    def _task_of(self, browser: Browser, answer: Answer) -> int:
        return int(browser.call("GET", f"/api/annotations/{answer.number}/")["task"])

    def _answer(self, browser: Browser, screen: Screen, work: Work) -> None:
        image = _image_of(work)
        dice = zlib.crc32(image.encode())
        role = {0: "skipped", 1: "unchanged", 2: "corrected twice"}.get(dice % 7, "corrected")
        if role == "unchanged" and work.prediction is None:
            role = "corrected"
        done = annotate(browser, screen, work, role, 20.0 + dice % 50)
        result = untouched(work) if role == "unchanged" else correct(work, screen, work.truth)
        mask = None if role == "skipped" else _drawn(result, screen, work)
        self.answers[image] = Answer(image, role, int(done["annotation"]), mask)
        self.given += 1


def _image_of(work: Work) -> str:
    """'scene_0001' of '/data/upload/1/0a1b2c3d-scene_0001.png'."""
    return Path(str(work.task["data"]["image"])).stem.partition("-")[2]


def _drawn(result: list[dict[str, Any]], screen: Screen, work: Work) -> Mask:
    height, width = work.truth.shape[-2:]
    return np.asarray(result_to_mask(result, screen.label_set, width=width, height=height).mask)


def say(text: str) -> None:
    """A line for people."""
    import sys
    import time

    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def as_json(report: dict[str, Any]) -> None:
    """The figures, on standard output."""
    print(json.dumps(report, indent=2, default=str), flush=True)
