"""FCN-32s, 16s and 8s on VGG16 are the networks of the documents and of the paper."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import vgg16
from torchvision.models.vgg import VGG

from activeseg.errors import CheckpointError
from activeseg.nn.fcn import SkipDecoder, bilinear_kernel
from activeseg.nn.zoo import build_model, load_pretrained

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow

WIDTH = 1 / 16
NAMES = {32: "fcn32s_vgg16", 16: "fcn16s_vgg16", 8: "fcn8s_vgg16"}
CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


@pytest.mark.parametrize(("stride", "count"), [(32, 184_592_192), (16, 135_089_996), (8, 135_067_736)])
def test_twelve_classes_give_the_documents_numbers_of_parameters(stride: int, count: int) -> None:
    with torch.device("meta"):
        model = build_model(NAMES[stride], 12)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def reference(weights: Mapping[str, Tensor], image: Tensor, stride: int, upsampling: str) -> Tensor:
    """The forward pass written down from the documents and the paper, layer by layer."""
    height, width = image.shape[-2:]
    x = F.pad(image, (0, -width % 32, 0, -height % 32), mode="replicate")
    pools = []
    for block in CONVOLUTIONS:
        for number in block:
            name = f"encoder.features.{number}"
            x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).clamp(min=0)
        x = F.max_pool2d(x, 2)
        pools.append(x)
    x = F.conv2d(x, weights["encoder.conv6.weight"], weights["encoder.conv6.bias"], padding=3).clamp(min=0)
    x = F.conv2d(x, weights["encoder.conv7.weight"], weights["encoder.conv7.bias"]).clamp(min=0)
    paper = upsampling == "bilinear"

    def enlarge(x: Tensor, weight: Tensor, factor: int) -> Tensor:
        if paper:
            x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        large = F.conv_transpose2d(x, weight, stride=factor)
        cropped = (weight.shape[-1] - factor) // 2 + (factor if paper else 0)
        return large[..., cropped : large.shape[-2] - cropped, cropped : large.shape[-1] - cropped]

    def score(at: int, features: Tensor) -> Tensor:
        scores = F.conv2d(features, weights[f"decoder.score.{at}.weight"], weights[f"decoder.score.{at}.bias"])
        return scores if paper else scores.clamp(min=0)

    if paper:
        x = score(32, x)
    for number, at in enumerate(at for at in (16, 8) if at >= stride):
        x = enlarge(x, weights[f"decoder.enlarge.{number}.weight"], 2) + score(at, pools[{16: 3, 8: 2}[at]])
    x = enlarge(x, weights["decoder.last.weight"], stride)
    return x[..., :height, :width]


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_the_forward_pass_is_the_described_one(stride: int, upsampling: str) -> None:
    model = build_model(NAMES[stride], 4, width=WIDTH, upsampling=upsampling).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # biases and off-diagonal weights count, too
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    image = torch.rand(2, 3, 71, 45, generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        logits = model(image)["out"]
        expected = reference(model.state_dict(), image, stride, upsampling)
    assert logits.std() > 1e-3
    assert torch.allclose(logits, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_the_bilinear_kernel_interpolates_in_the_interior(factor: int) -> None:
    scores = torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    enlarged = F.conv_transpose2d(scores, bilinear_kernel(factor)[None, None], stride=factor, padding=factor // 2)
    expected = F.interpolate(scores, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = (..., slice(factor // 2, -(factor // 2)), slice(factor // 2, -(factor // 2)))
    assert enlarged.shape == expected.shape
    assert torch.allclose(enlarged[inside], expected[inside], atol=1e-6)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_a_new_bilinear_decoder_interpolates_the_sum_of_scores(stride: int) -> None:
    channels = {8: 6, 16: 7, 32: 9}
    decoder = SkipDecoder(channels, 3, stride=stride, bilinear=True)
    features = {at: torch.rand(1, count, 96 // at + 32 // at, 96 // at) for at, count in channels.items()}
    with torch.inference_mode():
        logits = decoder(features)
        total = decoder.score["32"](features[32])
        for at in (at for at in (16, 8) if at >= stride):
            total = F.interpolate(total, scale_factor=2, mode="bilinear", align_corners=False) + decoder.score[str(at)](
                features[at]
            )
        expected = F.interpolate(total, scale_factor=stride, mode="bilinear", align_corners=False)
    assert logits.shape == expected.shape == (1, 3, 128, 96)
    assert torch.allclose(logits, expected, atol=1e-6)  # up to the border


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_training_from_scratch_starts(stride: int, upsampling: str) -> None:
    model = build_model(NAMES[stride], 2, width=WIDTH, upsampling=upsampling)
    targets = torch.zeros(2, 64, 64, dtype=torch.long)
    targets[:, :, 32:] = 1
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.3 + 2 * targets[:, None] - 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(images)["out"], targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.05)
    assert losses[-1] < 0.35


def small_vgg16() -> VGG:
    """torchvision's VGG16 with a sixteenth of its channels."""
    with torch.device("meta"):
        layers = vgg16(weights=None, init_weights=False).features
    narrow: list[torch.nn.Module] = []
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            before = 3 if layer.in_channels == 3 else layer.in_channels // 16
            layer = torch.nn.Conv2d(before, layer.out_channels // 16, 3, padding=1)
        narrow.append(layer)
    network = VGG(torch.nn.Sequential(), num_classes=10, init_weights=False)
    network.features = torch.nn.Sequential(*narrow)
    network.classifier[0] = torch.nn.Linear(32 * 7 * 7, 256)
    network.classifier[3] = torch.nn.Linear(256, 256)
    network.classifier[6] = torch.nn.Linear(256, 10)
    return network.eval()


def test_classification_weights_become_convolutions() -> None:
    classifier = small_vgg16()
    model = build_model("fcn16s_vgg16", 3, width=WIDTH).eval()
    left = load_pretrained(model, "fcn16s_vgg16", classifier.state_dict())
    assert left == dict.fromkeys(["decoder.score.16", "decoder.enlarge.0", "decoder.last"], "not in the file")
    image = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        before_scores = classifier.classifier[:5](classifier.features(image).flatten(1))
        features = model.encoder(image)[32]
    # The middle one of 7x7 convolution windows is the one that the classification network has.
    assert torch.allclose(features[..., 3, 3], before_scores, atol=1e-5)


def test_a_file_with_the_convolutions_only_leaves_the_fully_connected_layers_at_random() -> None:
    weights = {name: value for name, value in small_vgg16().state_dict().items() if name.startswith("features.")}
    model = build_model("fcn32s_vgg16", 3, width=WIDTH)
    before = model.encoder.conv6.weight.clone()
    left = load_pretrained(model, "fcn32s_vgg16", weights)
    assert list(left) == ["encoder.conv6", "encoder.conv7", "decoder.last"]
    assert torch.equal(model.encoder.conv6.weight, before)
    assert torch.equal(model.encoder.features[28].weight, weights["features.28.weight"])


def test_weights_of_another_width_are_refused() -> None:
    model = build_model("fcn32s_vgg16", 3, width=WIDTH * 2)
    with pytest.raises(CheckpointError, match=r"features\.0\.weight should have shape \(8, 3, 3, 3\), has \(4, .*vgg16.*width"):
        load_pretrained(model, "fcn32s_vgg16", small_vgg16().state_dict())


def test_at_full_width_the_encoder_has_the_sizes_of_torchvisions_vgg16() -> None:
    with torch.device("meta"):
        encoder = build_model("fcn8s_vgg16", 21).encoder
        published = vgg16(weights=None)
    theirs = [parameter for name, parameter in published.named_parameters() if not name.startswith("classifier.6")]
    assert [parameter.numel() for parameter in encoder.parameters()] == [parameter.numel() for parameter in theirs]
