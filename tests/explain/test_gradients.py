"""Saliency and class models climb the gradient they say they climb: against closed forms and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from activeseg.errors import ConfigError, NonFiniteScoreError
from activeseg.explain.class_model import Ascent, class_model, climb
from activeseg.explain.network import Network
from activeseg.explain.saliency import saliency_map
from activeseg.explain.scores import LARGEST_INPUT, ClassScore, as_seen
from activeseg.imaging.decode import resize_short_side
from activeseg.nn.zoo import build_model
from activeseg.records import InputPolicy

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
POLICY = InputPolicy(None, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
STD = 255 * torch.tensor(POLICY.std, dtype=torch.float64)[:, None, None]


class Linear(nn.Module):
    """S_c(I) = <w_c, I>, whatever the size of w."""

    def __init__(self, weights: Tensor, *, segmentation: bool = False) -> None:
        super().__init__()
        self.weights, self.segmentation = nn.Parameter(weights), segmentation

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        products = images[:, None] * self.weights
        return {"out": products.sum(dim=2)} if self.segmentation else products.sum(dim=(2, 3, 4))


class Curved(nn.Module):
    """Smooth, so that finite differences are exact enough; scores per pixel or per image."""

    def __init__(self, *, segmentation: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.segmentation = segmentation

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        logits = self.second(torch.tanh(self.first(images)))
        return {"out": logits} if self.segmentation else logits.mean(dim=(2, 3))


def curved(segmentation: bool) -> Curved:
    torch.manual_seed(0)
    return Curved(segmentation=segmentation).double()


def random_image(height: int = 6, width: int = 7) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)


def numeric_gradient(score: ClassScore, pixels: Tensor, region: Tensor | None, step: float = 1e-3) -> Tensor:
    """Central differences over every pixel and channel, on the scale 0..255."""
    gradient = torch.zeros_like(pixels)
    with torch.no_grad():
        for index in np.ndindex(*pixels.shape):
            values = []
            for sign in (1, -1):
                moved = pixels.clone()
                moved[index] += sign * step
                values.append(float(score.total(score.to_inputs(moved), region)))
            gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("segmentation", [False, True])
@pytest.mark.parametrize("with_region", [False, True])
def test_saliency_is_the_finite_difference_of_the_score(segmentation: bool, with_region: bool) -> None:
    module, image = curved(segmentation), random_image()
    region = np.random.default_rng(2).random(image.shape[:2]) < 0.3 if with_region else None
    score = ClassScore(module, POLICY, 2, segmentation)
    expected = numeric_gradient(score, score.tensor(image, CPU), torch.from_numpy(region) if region is not None else None)[0]
    saliency = saliency_map(module, image, POLICY, target=2, segmentation=segmentation, device=CPU, region=region)
    np.testing.assert_allclose(saliency, expected.abs().amax(dim=0), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("segmentation", [False, True])
def test_saliency_of_a_linear_model_is_its_weights(segmentation: bool) -> None:
    weights = torch.randn(3, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = Linear(weights, segmentation=segmentation)
    saliency = saliency_map(module, random_image(), POLICY, target=1, segmentation=segmentation, device=CPU)
    assert (saliency.shape, saliency.dtype) == ((6, 7), np.float32)
    np.testing.assert_allclose(saliency, (weights[1] / STD).abs().amax(dim=0), rtol=1e-6)


def test_only_the_region_counts() -> None:
    module = Linear(torch.ones(2, 3, 6, 7, dtype=torch.float64), segmentation=True)
    region = np.zeros((6, 7), np.bool_)
    region[2:4, 3] = True
    saliency = saliency_map(module, random_image(), POLICY, target=0, segmentation=True, device=CPU, region=region)
    np.testing.assert_array_equal(saliency > 0, region)


def test_saliency_comes_back_at_the_images_own_size() -> None:
    policy = InputPolicy(24, POLICY.mean, POLICY.std)
    module = build_model("fcn_mobilenet_v2", 3, width=0.1, seed=0)
    saliency = saliency_map(module, random_image(50, 33), policy, target=0, segmentation=True, device=CPU)
    assert saliency.shape == (50, 33)
    assert saliency.min() >= 0 < saliency.max()


class Seen(nn.Module):
    """A classifier that notes the size of what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape[-2:]))
        return (self.weight * images).mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("size", "short_side"),
    [((3000, 4000), None), ((4000, 3000), 2000), ((20, 3000), 256), ((1, 2_000_000), None), ((1200, 1250), None)],
)
def test_no_backward_pass_is_of_more_pixels_than_memory_holds(size: tuple[int, int], short_side: int | None) -> None:
    """A narrow strip is long where its short side is the policy's; a photograph has many pixels without any policy."""
    module, policy = Seen(), InputPolicy(short_side, POLICY.mean, POLICY.std)
    image = np.zeros((*size, 3), np.uint8)
    assert saliency_map(module, image, policy, target=0, segmentation=False, device=CPU).shape == size
    network = Network("seen", module, policy, ("a", "b", "c"), "abc".index, segmentation=False)
    network.target(image, None, device=CPU)
    first, second = module.sizes
    assert first == second == as_seen(image, policy).shape[:2]
    assert LARGEST_INPUT * 0.9 < first[0] * first[1] <= LARGEST_INPUT
    if min(size) > 100:
        assert first[1] / first[0] == pytest.approx(size[1] / size[0], rel=0.01)


def test_an_image_the_memory_holds_is_seen_as_the_policy_says() -> None:
    image = random_image(50, 70)
    for short_side in (None, 24, 90):
        seen = as_seen(image, InputPolicy(short_side, POLICY.mean, POLICY.std))
        np.testing.assert_array_equal(seen, resize_short_side(image, short_side))


def test_the_network_is_left_as_it_was() -> None:
    module = build_model("fcn_mobilenet_v2", 3, width=0.1, seed=0).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    saliency_map(module, random_image(32, 32), POLICY, target=0, segmentation=True, device=CPU)
    class_model(module, POLICY, target=0, segmentation=True, device=CPU, ascent=Ascent(steps=2, size=(32, 32)))
    assert module.training
    assert all(weight.requires_grad and weight.grad is None for weight in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("segmentation", [False, True])
def test_the_objective_climbs_its_own_gradient(segmentation: bool) -> None:
    """S_c - l2 * ||I||^2 over the network's input, the regulariser included."""
    score, l2, step = ClassScore(curved(segmentation), POLICY, 3, segmentation), 0.05, 1e-5
    inputs = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    value, gradient = climb(score, inputs, l2=l2)
    assert value == pytest.approx(score.mean(inputs).item())
    for index in np.ndindex(*inputs.shape):
        ends = []
        for sign in (1, -1):
            moved = inputs.clone()
            moved[index] += sign * step
            ends.append((score.mean(moved) - l2 * moved.square().sum()).item())
        assert gradient[index].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-10)


def test_a_linear_score_is_largest_at_w_over_two_lambda() -> None:
    weights = 0.02 * torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    l2 = 0.02
    score = ClassScore(Linear(weights), POLICY, 1, False)
    pixels = score.to_pixels(weights[1][None] / (2 * l2))[0]
    assert pixels.min() > 0
    assert pixels.max() < 255
    ascent = Ascent(steps=200, learning_rate=5.0, l2=l2, size=(5, 6), quantise=False)
    found = class_model(Linear(weights), POLICY, target=1, segmentation=False, device=CPU, ascent=ascent)
    np.testing.assert_array_equal(found.image, pixels.round().permute(1, 2, 0).numpy().astype(np.uint8))
    assert found.scores[-1] == pytest.approx(float(weights[1].square().sum()) / (2 * l2), rel=1e-6)


@pytest.mark.parametrize("segmentation", [False, True])
def test_the_documents_recipe_raises_the_score(segmentation: bool) -> None:
    """Rounding to 8 bits would undo steps under half a grey level; with trained weights the recipe's are larger."""
    module = curved(segmentation)
    with torch.no_grad():
        module.second.weight.mul_(40)  # logits as far apart as a trained network's
    ascent = Ascent(steps=20, size=(12, 16))
    found = class_model(module, POLICY, target=1, segmentation=segmentation, device=CPU, ascent=ascent)
    assert len(found.scores) == 21
    assert not found.stalled
    assert found.scores[-1] > found.scores[0] + 1
    assert found.image.shape == (12, 16, 3)


def test_steps_undone_by_the_rounding_are_reported() -> None:
    module = Linear(torch.full((1, 3, 4, 4), 1e-6))

    def climbed(quantise: bool) -> tuple[bool, bool]:
        ascent = Ascent(steps=5, l2=0.0, size=(4, 4), quantise=quantise)
        found = class_model(module, POLICY, target=0, segmentation=False, device=CPU, ascent=ascent)
        return found.stalled, found.scores[-1] > found.scores[0]

    assert climbed(quantise=True) == (True, False)
    assert climbed(quantise=False)[1]


class Pooled(nn.Module):
    def forward(self, output: dict[str, Tensor]) -> Tensor:
        return output["out"].mean(dim=(2, 3))


def test_a_mean_of_logits_is_scored_like_a_classifier() -> None:
    module = build_model("fcn_mobilenet_v2", 3, width=0.1, seed=0)
    ascent = Ascent(steps=5, size=(32, 48))
    as_segmenter = class_model(module, POLICY, target=2, segmentation=True, device=CPU, ascent=ascent)
    pooled = nn.Sequential(module, Pooled())
    as_classifier = class_model(pooled, POLICY, target=2, segmentation=False, device=CPU, ascent=ascent)
    np.testing.assert_allclose(as_segmenter.scores, as_classifier.scores, rtol=1e-4, atol=1e-5)


def test_each_step_is_seen_and_is_an_image_of_8_bits() -> None:
    module = Linear(torch.full((1, 3, 4, 4), 0.01))
    seen: list[tuple[int, np.ndarray]] = []
    found = class_model(
        module,
        POLICY,
        target=0,
        segmentation=False,
        device=CPU,
        ascent=Ascent(steps=3, size=(4, 4)),
        on_step=lambda step, image: seen.append((step, image)),
    )
    assert [step for step, _ in seen] == [1, 2, 3]
    assert all(image.dtype == np.uint8 for _, image in seen)
    np.testing.assert_array_equal(seen[-1][1], found.image)
    # 8 bits are the state, not only what is shown: the score of the last image is the last score.
    score = ClassScore(module, POLICY, 0, False)
    assert found.scores[-1] == pytest.approx(float(score.mean(score.to_inputs(score.tensor(found.image, CPU))).detach()))


def test_the_seed_decides() -> None:
    module = Linear(torch.full((1, 3, 4, 4), 0.01))

    def made(seed: int) -> bytes:
        ascent = Ascent(steps=2, size=(4, 4), seed=seed)
        return class_model(module, POLICY, target=0, segmentation=False, device=CPU, ascent=ascent).image.tobytes()

    assert made(1) == made(1) != made(2)


def test_a_size_the_network_cannot_take_is_an_error_of_the_size() -> None:
    """SqueezeNet has nothing left of 8x8 pixels after its poolings."""
    module = squeezenet1_1(num_classes=3)
    with pytest.raises(ConfigError, match=r"cannot take an image of 9x8 pixels \(.+\); choose another --size"):
        class_model(module, POLICY, target=0, segmentation=False, device=CPU, ascent=Ascent(steps=1, size=(8, 9)))


def test_what_cannot_be_climbed_is_refused() -> None:
    module = Linear(torch.full((2, 3, 4, 4), math.nan))
    with pytest.raises(NonFiniteScoreError):
        class_model(module, POLICY, target=0, segmentation=False, device=CPU, ascent=Ascent(steps=1, size=(4, 4)))
    with pytest.raises(NonFiniteScoreError):
        saliency_map(module, random_image(4, 4), POLICY, target=0, segmentation=False, device=CPU)
    with pytest.raises(ConfigError, match=r"0\.\.1; got 2"):
        saliency_map(module, random_image(4, 4), POLICY, target=2, segmentation=False, device=CPU)
    for wrong in ({"steps": 0}, {"size": (0, 4)}, {"learning_rate": 0.0}, {"l2": -1.0}):
        with pytest.raises(ConfigError):
            Ascent(**wrong)
