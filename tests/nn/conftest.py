"""Small networks and images for the tests of activeseg.nn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from activeseg.config import TrainingSection
from activeseg.core.labels import LabelSet, parse_classes
from activeseg.nn.checkpoint import NetworkSpec, Segmenter, new_segmenter
from activeseg.nn.data import LabeledImage
from activeseg.records import InputPolicy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than they bring at these sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def label_set() -> LabelSet:
    """Four channels; the ignored class lies in the middle, so channel numbers and class indices differ."""
    return parse_classes("sky\nroad\nvoid ignore\ncar\ntree\n")


@pytest.fixture
def make_segmenter(label_set: LabelSet) -> Callable[..., Segmenter]:
    def make(*, short_side: int | None = None, seed: int = 0, decoder_stride: int = 8) -> Segmenter:
        policy = InputPolicy(short_side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        spec = NetworkSpec("fcn_mobilenet_v2", 0.25, decoder_stride, label_set, policy)
        return new_segmenter(spec, model_version="m1", seed=seed)

    return make


@pytest.fixture
def overlapping_classes() -> LabelSet:
    """Three channels that may overlap, and an ignored class between them."""
    return parse_classes("sky\nroad\nvoid ignore\ncar\n", overlap=True)


@pytest.fixture
def make_overlapping(overlapping_classes: LabelSet) -> Callable[..., Segmenter]:
    """A tiny network with a sigmoid head whose predictions differ from place to place."""

    def make(*, short_side: int | None = None) -> Segmenter:
        policy = InputPolicy(short_side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        segmenter = new_segmenter(
            NetworkSpec("fcn_mobilenet_v2", 0.25, 8, overlapping_classes, policy), model_version="m1", seed=1
        )
        generator = torch.Generator().manual_seed(2)
        for name, parameter in segmenter.module.named_parameters():
            if name.startswith("score.") and parameter.ndim == 4:
                torch.nn.init.normal_(parameter, std=2.0, generator=generator)
        return segmenter

    return make


@pytest.fixture
def recipe() -> Callable[..., TrainingSection]:
    def make(**changes: object) -> TrainingSection:
        small: dict[str, object] = {"steps": 4, "batch_size": 2, "crop": (48, 64), "warmup_steps": 2}
        return TrainingSection.model_validate(small | changes)

    return make


@pytest.fixture
def scenes() -> list[LabeledImage]:
    """Two 48x64 images of bands of colour, each colour a class."""
    return [LabeledImage(10 + number, lambda number=number: banded_scene(number)) for number in range(2)]


def banded_scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(number)
    mask = np.zeros((48, 64), np.uint8)
    mask[24:] = 1
    mask[16:36, 8 + 20 * number : 28 + 20 * number] = 3
    mask[:, 60:] = 2
    colors = np.array([[90, 140, 220], [110, 110, 110], [0, 0, 0], [200, 40, 40], [30, 120, 30]])
    pixels = colors[mask] + random.integers(-20, 20, size=(48, 64, 3))
    return pixels.clip(0, 255).astype(np.uint8), mask
