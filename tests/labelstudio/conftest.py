from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import pytest
from PIL import Image

from activeseg.core.labels import LabelSet
from activeseg.demo.annotator import Browser
from activeseg.labelstudio.client import LabelStudioClient, Project
from activeseg.labelstudio.labeling import MaskKind
from activeseg.labelstudio.regions import mask_to_result
from activeseg.labelstudio.server import RunningServer
from activeseg.labelstudio.tasks import task_payload
from tests.labelstudio.seat import NoBrowser, signed_in

NAMES = ("sky & <sun>", 'a "quoted"', "Fußweg 歩道", "road", "tree", "sign", "fence", "car", "walker", "rider", "pole", "void")
COLORS = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240),
    (240, 50, 230), (210, 245, 60), (0, 128, 128), (128, 0, 0), (20, 20, 20),
)  # fmt: skip
_titles = count(1)


@pytest.fixture(scope="session")
def client(labelstudio_server: RunningServer) -> Iterator[LabelStudioClient]:
    with LabelStudioClient(labelstudio_server.url, labelstudio_server.token()) as opened:
        yield opened


@pytest.fixture(scope="session")
def person(labelstudio_server: RunningServer) -> Browser:
    """A second account, by which tests do what an annotator's page would do."""
    _, token = labelstudio_server.add_user("person@example.com")
    return Browser(labelstudio_server.url, token)


# No longer than a module: while Playwright is open, its event loop runs in this thread, and no other can.
@pytest.fixture(scope="module")
def page(labelstudio_server: RunningServer) -> Iterator[Any]:
    """A browser's page, the owner signed in."""
    try:
        with signed_in(labelstudio_server.url, labelstudio_server.email, labelstudio_server.password) as opened:
            yield opened
    except NoBrowser as error:
        if "browser" in os.environ.get("ACTIVESEG_REQUIRE", ""):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def labels() -> LabelSet:
    return LabelSet(NAMES, COLORS, 11)


@dataclass
class Board:
    """A project of its own for one test, and tasks pushed to it."""

    client: LabelStudioClient
    project: Project
    labels: LabelSet
    keys: list[str] = field(default_factory=list)

    def payload(self, mask: np.ndarray | None, *, name: str = "scene", shape: tuple[int, int] = (8, 8)) -> dict[str, Any]:
        """A task with an uploaded picture, and the mask as its prediction."""
        height, width = shape if mask is None else mask.shape
        rows, columns = np.mgrid[:height, :width]
        files = [(f"{name}.png", _png(rows * 3 % 256, columns * 5 % 256)), ("entropy.png", _png(columns * 7 % 256, rows))]
        urls = self.client.upload_files(self.project.id, files)
        self.keys.append(f"key-{len(self.keys)}")
        common: dict[str, Any] = {"order": len(self.keys), "sha256": "ab" * 32}
        if mask is None:
            return task_payload(self.keys[-1], *urls, **common)
        result = mask_to_result(mask, self.labels, kind=self.project.mask_kind)
        return task_payload(self.keys[-1], *urls, **common, doubtful=["pole"], result=result, score=0.5, model_version="m1")

    def push(self, *masks: np.ndarray | None, name: str = "scene") -> list[int]:
        return self.client.import_tasks(self.project.id, [self.payload(mask, name=name) for mask in masks])


@pytest.fixture
def board(client: LabelStudioClient, labels: LabelSet) -> Callable[..., Board]:
    def make(kind: MaskKind = "brush") -> Board:
        return Board(client, client.ensure_project(f"test {next(_titles)}", labels, kind), labels)

    return make


@pytest.fixture
def random_mask() -> Callable[..., np.ndarray]:
    """Blocky masks in which every class occurs where there is room."""

    def make(height: int, width: int, seed: int = 0, classes: int = 12) -> np.ndarray:
        blocks = np.random.default_rng(seed).integers(0, classes, (-(-height // 5), -(-width // 7)))
        return np.kron(blocks, np.ones((5, 7)))[:height, :width].astype(np.uint8)

    return make


def _png(red: np.ndarray, green: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([red, green, np.full_like(red, 90)]).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
