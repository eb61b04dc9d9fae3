from __future__ import annotations

import pytest
import torch
from torchvision.models import mobilenet_v2, resnet50

from activeseg.errors import CheckpointError, ConfigError
from activeseg.nn.geometry import enlarge, pad_input
from activeseg.nn.zoo import build_model, load_pretrained


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    return build_model("fcn_resnet50", 3)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (33, 32), (90, 121), (479, 361)])
def test_logits_have_the_size_of_the_input(stride: int, size: tuple[int, int]) -> None:
    model = build_model("fcn_mobilenet_v2", 5, width=0.25, decoder_stride=stride).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 3, *size))["out"].shape == (1, 5, *size)


@pytest.mark.parametrize("size", [(1, 1), (45, 36)])
def test_resnet_has_an_auxiliary_head_in_training_only(resnet: torch.nn.Module, size: tuple[int, int]) -> None:
    trained = resnet.train()(torch.rand(1, 3, *size))
    assert {name: logits.shape for name, logits in trained.items()} == {"out": (1, 3, *size), "aux": (1, 3, *size)}
    with torch.inference_mode():
        assert list(resnet.eval()(torch.rand(1, 3, *size))) == ["out"]


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
        ("fcn_vgg", {}, "known: fcn_mobilenet_v2"),
        ("fcn_mobilenet_v2", {"decoder_stride": 2}, "4, 8, 16 or 32"),
        ("fcn_resnet50", {"width": 0.5}, "width 1.0"),
        ("fcn_resnet50", {"decoder_stride": 32}, "decoder_stride 8"),
    ],
)
def test_networks_that_do_not_exist_are_refused(architecture: str, options: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_model(architecture, 3, **options)


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_classes"):
        build_model("fcn_mobilenet_v2", 1)


def test_classification_weights_fill_the_encoder_and_nothing_else() -> None:
    classifier = mobilenet_v2(weights=None).eval()
    model = build_model("fcn_mobilenet_v2", 3).eval()
    head = {name: p.clone() for name, p in model.score.named_parameters()}
    load_pretrained(model, "fcn_mobilenet_v2", classifier.state_dict())
    x = torch.rand(1, 3, 65, 65)
    with torch.inference_mode():
        assert torch.allclose(model.encoder(x), classifier.features(x), atol=1e-6)
    assert all(torch.equal(p, head[name]) for name, p in model.score.named_parameters())


def test_resnet_takes_classification_weights_without_their_classifier(resnet: torch.nn.Module) -> None:
    weights = resnet50(weights=None).state_dict()
    load_pretrained(resnet, "fcn_resnet50", weights)
    assert all(torch.equal(value, weights[name]) for name, value in resnet.encoder.state_dict().items())


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
