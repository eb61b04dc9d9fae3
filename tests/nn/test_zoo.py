from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torchvision.models import mobilenet_v2

from activeseg.config import ModelSection
from activeseg.core.entropy import reduce_logits
from activeseg.core.reduction import reduce_coarse
from activeseg.errors import CheckpointError, ConfigError
from activeseg.nn.geometry import enlarge, pad_input
from activeseg.nn.zoo import ARCHITECTURES, build_model, has_aux, load_pretrained

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow

SMALL = {name: {"width": 1 / 16} for name in ARCHITECTURES if name.endswith("vgg16")} | {"fcn_mobilenet_v2": {"width": 0.25}}
SLOW = {name: pytest.mark.slow for name in ARCHITECTURES if name.endswith("resnet101")}
WITH_AUX = [name for name in ARCHITECTURES if has_aux(name)]


@cache
def network(architecture: str) -> torch.nn.Module:
    return build_model(architecture, 5, **SMALL.get(architecture, {}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_have_the_size_of_any_input(architecture: str) -> None:
    model = network(architecture).eval()
    for size in ((1, 1), (33, 47), (65, 32)):
        with torch.inference_mode():
            logits = model(torch.rand(1, 3, *size))
        assert {name: scores.shape for name, scores in logits.items()} == {"out": (1, 5, *size)}
        assert torch.isfinite(logits["out"]).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_coarse_logits_enlarged_are_the_forward_pass_and_reduce_to_the_same_scores(architecture: str) -> None:
    model = network(architecture).eval()
    for size in ((20, 70), (41, 47)):
        image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            coarse, enlargement, logits = model.coarse(image), model.enlargement(*size), model(image)["out"]
            features = model.features(image)
            assert torch.equal(model.scores(features), coarse)
        assert min(one[0, 0].numel() for one in features) == features[-1][0, 0].numel()
        assert torch.equal(enlargement.apply(coarse), logits)
        statistics, expected = reduce_coarse(coarse, enlargement), reduce_logits(logits)
        for name in ("entropy_sum", "grid", "channel_entropy_sum", "margin_mean"):
            torch.testing.assert_close(getattr(statistics, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_training_gradients_reach_every_parameter(architecture: str) -> None:
    model = build_model(architecture, 5, **SMALL.get(architecture, {})).train()
    logits = model(torch.rand(2, 3, 49, 66))
    assert list(logits) == (["out", "aux"] if architecture in WITH_AUX else ["out"])
    targets = torch.randint(0, 5, (2, 49, 66))
    sum(torch.nn.functional.cross_entropy(scores, targets) for scores in logits.values()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("architecture", [pytest.param(name, marks=SLOW.get(name, ())) for name in ARCHITECTURES])
def test_the_gradient_is_the_slope_along_a_random_direction(architecture: str) -> None:
    model = build_model(architecture, 3, **SMALL.get(architecture, {})).eval().double()
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 33, 40, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (1, 33, 40), generator=generator)

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(image)["out"], targets)

    # The auxiliary head is silent outside training.
    trained = [p for name, p in model.named_parameters() if not name.startswith("aux_classifier")]
    steps = [p.detach().abs().mean() * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in trained]
    slope = sum((g * v).sum() for g, v in zip(torch.autograd.grad(loss(), trained), steps, strict=True))
    around = []
    with torch.no_grad():
        for way in (1e-8, -2e-8):
            for parameter, step in zip(trained, steps, strict=True):
                parameter += way * step
            around.append(loss())
    assert abs(slope) > 1e-6
    assert slope.item() == pytest.approx(((around[0] - around[1]) / 2e-8).item(), rel=1e-4)


@pytest.mark.parametrize("architecture", WITH_AUX)
def test_an_auxiliary_head_can_be_left_out(architecture: str) -> None:
    with torch.device("meta"):
        names = build_model(architecture, 3, aux=False).state_dict().keys()
        whole = build_model(architecture, 3).state_dict().keys()
    assert names == {name for name in whole if not name.startswith("aux_classifier")}


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name.startswith("deeplabv3")])
def test_deeplab_says_that_one_image_is_no_training_batch(architecture: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=r"at least 2 images.*batch_size"):
        build_model(architecture, 3).train()(torch.rand(1, 3, 64, 64))


def test_one_class_is_enough_for_a_sigmoid_head() -> None:
    assert build_model("fcn_mobilenet_v2", 1, width=0.25).eval()(torch.rand(1, 3, 20, 20))["out"].shape == (1, 1, 20, 20)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_configuration_lists_every_network(architecture: str) -> None:
    assert architecture in ModelSection.model_fields["architecture"].description.replace(",", "").split()


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (33, 32), (90, 121), (479, 361)])
def test_logits_have_the_size_of_the_input(stride: int, size: tuple[int, int]) -> None:
    model = build_model("fcn_mobilenet_v2", 5, width=0.25, decoder_stride=stride).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 3, *size))["out"].shape == (1, 5, *size)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_gradients_reach_every_parameter(stride: int) -> None:
    model = build_model("fcn_mobilenet_v2", 5, width=0.25, decoder_stride=stride).train()
    logits = model(torch.rand(2, 3, 64, 96))["out"]
    torch.nn.functional.cross_entropy(logits, torch.randint(0, 5, (2, 64, 96))).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_one_tiny_image_makes_a_training_batch() -> None:
    logits = build_model("fcn_mobilenet_v2", 3, width=0.25).train()(torch.rand(1, 3, 8, 8))["out"]
    assert torch.isfinite(logits).all()


def test_the_finer_decoder_follows_a_small_object_and_the_coarse_one_cannot() -> None:
    image = torch.zeros(1, 3, 97, 97)
    image[..., 40:44, 40:44] = 1.0
    detail = {}
    for stride in (8, 32):
        model = build_model("fcn_mobilenet_v2", 2, width=0.25, decoder_stride=stride).eval()
        with torch.inference_mode():
            change = (model(image)["out"] - model(torch.zeros_like(image))["out"]).abs().sum(dim=1)[0]
        detail[stride] = (change > change.max() / 2).sum().item()
    assert detail[8] < detail[32]


def test_an_enlarged_feature_stays_centred_on_its_pixel() -> None:
    features = torch.zeros(1, 1, 5, 7)
    features[0, 0, 2, 3] = 1.0
    large = enlarge(features, 8)
    assert large.shape == (1, 1, 33, 49)
    assert divmod(int(large.argmax()), 49) == (16, 24)


def test_padding_repeats_the_border_and_leaves_fitting_sizes_alone() -> None:
    x = torch.rand(1, 3, 41, 57)
    assert pad_input(x, 8) is x
    padded = pad_input(x, 32)
    assert padded.shape == (1, 3, 65, 65)
    assert torch.equal(padded[..., :41, :57], x)
    assert torch.equal(padded[..., 64, 64], x[..., 40, 56])


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (build_model("fcn_mobilenet_v2", 3, width=0.25, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("architecture", "options", "told"),
    [
        ("fcn_vgg", {}, "known: fcn32s_vgg16, .*lraspp_mobilenet_v3_large"),
        ("fcn_mobilenet_v2", {"decoder_stride": 2}, "4, 8, 16 or 32"),
        ("fcn_resnet50", {"width": 0.5}, "width 1.0"),
        ("fcn_resnet50", {"decoder_stride": 32}, "decoder_stride 8"),
        ("fcn8s_vgg16", {"decoder_stride": 16}, "fcn8s_vgg16 has no choice of decoder_stride"),
        ("fcn8s_vgg16", {"upsampling": "nearest"}, "transposed or bilinear"),
        ("fcn_mobilenet_v2", {"upsampling": "bilinear"}, "fcn_mobilenet_v2 has no choice of upsampling"),
        ("lraspp_mobilenet_v3_large", {"width": 2.0}, "no choice of width"),
    ],
)
def test_networks_that_do_not_exist_are_refused(architecture: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_model(architecture, 3, **options)


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_classes"):
        build_model("fcn_mobilenet_v2", 0)


def test_classification_weights_fill_the_encoder_and_nothing_else() -> None:
    classifier = mobilenet_v2(weights=None).eval()
    model = build_model("fcn_mobilenet_v2", 3).eval()
    head = {name: p.clone() for name, p in model.score.named_parameters()}
    left = load_pretrained(model, "fcn_mobilenet_v2", classifier.state_dict())
    assert left == dict.fromkeys(["score.8", "score.16", "score.32"], "not in the file")
    x = torch.rand(1, 3, 65, 65)
    with torch.inference_mode():
        assert torch.allclose(model.encoder(x), classifier.features(x), atol=1e-6)
    assert all(torch.equal(p, head[name]) for name, p in model.score.named_parameters())


def test_misfitting_weights_name_the_first_layer_and_the_remedy() -> None:
    weights = mobilenet_v2(weights=None).state_dict()
    model = build_model("fcn_mobilenet_v2", 3, width=0.5)
    with pytest.raises(CheckpointError, match=r"features\.0\.0\.weight should have shape \(16, 3, 3, 3\).*width"):
        load_pretrained(model, "fcn_mobilenet_v2", weights)
    full = build_model("fcn_mobilenet_v2", 3)
    without = {name: value for name, value in weights.items() if name != "features.5.conv.1.1.running_var"}
    before = full.encoder[0][0].weight.clone()
    with pytest.raises(CheckpointError, match=r"features\.5\.conv\.1\.1\.running_var is missing"):
        load_pretrained(full, "fcn_mobilenet_v2", without)
    assert torch.equal(full.encoder[0][0].weight, before)
    with pytest.raises(CheckpointError, match=r"features\.19\.weight is not part of it"):
        load_pretrained(full, "fcn_mobilenet_v2", weights | {"features.19.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="missing"):
        load_pretrained(full, "fcn_mobilenet_v2", {"conv1.weight": torch.zeros(64, 3, 7, 7)})


def test_without_a_network_published_weights_end_in_the_remedy(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(CheckpointError, match="activeseg weights import"):
        load_pretrained(build_model("fcn_mobilenet_v2", 3), "fcn_mobilenet_v2")
