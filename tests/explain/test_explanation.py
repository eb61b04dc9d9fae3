"""What a network says about an image, for classes that exclude each other and for classes that overlap."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from activeseg.core.labels import LabelSet
from activeseg.errors import ConfigError, SaliencyError
from activeseg.explain.attribution import localise, saliency_of, saliency_pictures
from activeseg.explain.explanation import confidences, explain_pixels
from activeseg.explain.heatmap import Scale, stretched
from activeseg.explain.network import Network
from activeseg.explain.report import Look, image_pictures
from activeseg.nn.checkpoint import NetworkSpec, Segmenter, new_segmenter
from activeseg.records import InputPolicy
from tests.factories import CLASSES, draw_ball

CPU = torch.device("cpu")


def segmenter(label_set: LabelSet) -> Segmenter:
    """Untrained, its logits spread apart so that classes differ from pixel to pixel."""
    made = new_segmenter(NetworkSpec("fcn_mobilenet_v2", 0.1, 8, label_set, InputPolicy()), model_version="random", seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.module.parameters():
            if weight.ndim == 4:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return made


OVERLAPPING = replace(CLASSES, overlap=True)


def test_overlapping_classes_are_explained_by_sigmoids() -> None:
    image, _ = draw_ball(1)
    found = explain_pixels(segmenter(OVERLAPPING), image)
    p = found.probabilities.astype(np.float64)
    assert found.mask.shape == (4, 48, 64)
    np.testing.assert_array_equal(found.mask[:3], p > 0.5)
    assert not found.mask[3].any()
    assert found.upper == pytest.approx(3 * math.log(2))
    q = np.clip(p, 1e-12, 1 - 1e-9)
    np.testing.assert_allclose(found.entropy, (-q * np.log(q) - (1 - q) * np.log(1 - q)).sum(axis=0), atol=1e-4)
    for index, mean in confidences(found, OVERLAPPING).items():
        assert mean == pytest.approx(p[index][p[index] > 0.5].mean())


@pytest.mark.parametrize("label_set", [CLASSES, OVERLAPPING], ids=["exclusive", "overlapping"])
@pytest.mark.parametrize("size", [(8, 8), (16, 200), (48, 64)])
def test_every_picture_is_made_at_any_size(label_set: LabelSet, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    found = explain_pixels(segmenter(label_set), image)
    look = Look(probabilities=(0, 2), normalised=True, scale="image", colormap="cividis", palette="voc")
    pictures = image_pictures(found, label_set, look)
    assert set(pictures) == {"entropy", "labels", "overlay", "figure", "class-sky", "class-ball"}
    assert pictures["labels"].size == pictures["overlay"].size == (size[1], size[0])


@pytest.mark.parametrize("label_set", [CLASSES, OVERLAPPING], ids=["exclusive", "overlapping"])
def test_the_top_class_is_the_one_on_most_pixels(label_set: LabelSet) -> None:
    image, _ = draw_ball(2)
    made = segmenter(label_set)
    network = Network.of_segmenter(made)
    mask = explain_pixels(made, image).mask
    shares = [int((mask[i] if label_set.overlap else mask == i).sum()) for i in range(3)]
    target = network.target(image, None, device=CPU)
    assert shares[target] == max(shares)
    np.testing.assert_array_equal(
        network.region(image, target, device=CPU), mask[target] if label_set.overlap else mask == target
    )


class Constant(torch.nn.Module):
    """Logits that are the same at every pixel."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits)[:, None, None])

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": (self.logits + 0 * images[:, :1]).expand(-1, len(self.logits), *images.shape[2:])}


def constant(label_set: LabelSet, *logits: float) -> Network:
    return Network.of_segmenter(replace(segmenter(label_set), module=Constant(*logits)))


@pytest.mark.parametrize("label_set", [CLASSES, OVERLAPPING], ids=["exclusive", "overlapping"])
def test_a_class_that_is_predicted_nowhere_has_no_saliency_where_it_is_predicted(label_set: LabelSet) -> None:
    image, _ = draw_ball(2)
    network = constant(label_set, 1.0, -2.0, -1.0)
    saliency_of(network, image, 0, device=CPU, predicted_only=True)
    with pytest.raises(SaliencyError, match="random predicts ball on no pixel of this image; leave out --predicted-only"):
        saliency_of(network, image, 2, device=CPU, predicted_only=True)
    assert saliency_of(network, image, 2, device=CPU).shape == image.shape[:2]


def test_where_no_class_is_predicted_the_top_one_is_the_likeliest() -> None:
    image, _ = draw_ball(2)
    assert constant(OVERLAPPING, -3.0, -2.0, -1.0).target(image, None, device=CPU) == 2


def test_saliency_leads_to_one_object() -> None:
    image, _ = draw_ball(3)
    network = Network.of_segmenter(segmenter(CLASSES))
    saliency = saliency_of(network, image, network.index_of("ball"), device=CPU)
    found = localise(image, saliency)
    assert found.mask.any()
    assert set(np.unique(found.seeds)) == {-1, 0, 1}
    assert set(saliency_pictures(image, saliency, "ball")) == {"saliency", "saliency-figure"}
    with pytest.raises(ConfigError, match="knows no class 'void'"):
        network.index_of("void")


def test_a_stretched_scale_is_the_images_own_range() -> None:
    fixed = Scale(2.0)
    own = stretched(fixed, np.array([[0.5, 1.5]]))
    assert (own.lower, own.upper, own.label) == (0.5, 1.5, fixed.label)
    assert stretched(fixed, np.full((2, 2), 0.7)) == fixed
    drawn = np.asarray(own.draw(np.array([[0.5, 1.5]])))[0].tolist()
    assert drawn == [[0, 0, 127], [127, 0, 0]]
