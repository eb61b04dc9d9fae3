from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from activeseg.core.labels import UNLABELED
from activeseg.nn.data import LabeledImage, Samples
from activeseg.nn.losses import AUX_WEIGHT, median_frequency_weights, segmentation_loss
from activeseg.records import InputPolicy


def softmax_by_hand(logits: np.ndarray, targets: np.ndarray, weights: list[float]) -> float:
    total = weight = 0.0
    for n, y, x in np.ndindex(*targets.shape):
        if (channel := targets[n, y, x]) != UNLABELED:
            scores = logits[n, :, y, x]
            total += weights[channel] * (math.log(np.exp(scores).sum()) - scores[channel])
            weight += weights[channel]
    return total / weight


def sigmoid_by_hand(logits: np.ndarray, targets: np.ndarray, weights: list[float]) -> float:
    total, counted = 0.0, 0
    for place in np.ndindex(*targets.shape):
        if targets[place] != UNLABELED:
            p = 1 / (1 + math.exp(-logits[place]))
            total -= weights[place[1]] * math.log(p) if targets[place] else math.log(1 - p)
            counted += 1
    return total / counted


@pytest.mark.parametrize("weights", [None, [1.0, 0.25, 4.0]])
@pytest.mark.parametrize("overlap", [False, True])
def test_the_loss_is_the_one_computed_pixel_by_pixel(overlap, weights) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    shape = (2, 3, 4, 5) if overlap else (2, 4, 5)
    targets = torch.randint(0, 2 if overlap else 3, shape, generator=generator).to(torch.uint8)
    targets[..., 1:3, 2:] = UNLABELED
    given = None if weights is None else torch.tensor(weights)
    by_hand = sigmoid_by_hand if overlap else softmax_by_hand
    expected = by_hand(logits.double().numpy(), targets.numpy(), weights or [1.0] * 3)
    assert segmentation_loss({"out": logits}, targets, weights=given).item() == pytest.approx(expected, rel=1e-5)
    both = segmentation_loss({"out": logits, "aux": logits}, targets, weights=given).item()
    assert both == pytest.approx((1 + AUX_WEIGHT) * expected, rel=1e-5)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_void_never_trains(overlap, weighted) -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    targets = torch.full((2, 3, 4, 5) if overlap else (2, 4, 5), 1, dtype=torch.uint8)
    targets[..., 2:, :] = UNLABELED
    weights = torch.tensor([0.5, 1.0, 2.0]) if weighted else None
    segmentation_loss({"out": logits}, targets, weights=weights).backward()
    assert (logits.grad[:, :, 2:] == 0).all()
    assert (logits.grad[:, :, :2] != 0).all()
    targets[:] = UNLABELED
    nothing = segmentation_loss({"out": logits}, targets, weights=weights)
    nothing.backward()
    assert nothing.item() == 0
    assert torch.isfinite(logits.grad).all()


def samples_of(masks: list[np.ndarray], label_set) -> Samples:
    size = masks[0].shape[-2:]
    images = [LabeledImage(n, lambda mask=mask: (np.zeros((*size, 3), np.uint8), mask)) for n, mask in enumerate(masks)]
    return Samples(images, label_set, InputPolicy())


def test_median_frequency_weights_are_those_of_the_paper(label_set) -> None:
    first, second = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    first[:2], first[9] = 1, 255  # 70 of sky, 20 of road, 10 unlabelled
    second[:5], second[5] = 3, 2  # 50 of car, 10 of void, 40 of sky
    weights = median_frequency_weights(samples_of([first, second], label_set))
    sky, road, car = (70 + 40) / 180, 20 / 90, 50 / 90  # car and road each over the one image they are in
    assert weights.tolist() == pytest.approx([car / sky, car / road, 1.0, 1.0])  # no tree anywhere
    assert sorted([sky, road, car])[1] == car


def test_overlapping_classes_are_weighted_by_their_planes(overlapping_classes) -> None:
    planes = np.zeros((4, 10, 10), np.bool_)
    planes[0, :8], planes[1, :2], planes[3, :4], planes[2, 9] = True, True, True, True  # 90 counted pixels
    weights = median_frequency_weights(samples_of([planes], overlapping_classes))
    assert weights.tolist() == pytest.approx([40 / 80, 40 / 20, 1.0])
