"""Weights as torchvision publishes them load without a network: exactly its names, shapes and 21 classes, drawn at random."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torchvision.models import get_model, get_model_weights
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from activeseg.core.labels import parse_classes
from activeseg.errors import CheckpointError, ConfigError
from activeseg.nn.checkpoint import import_weights, read_weights
from activeseg.nn.zoo import (
    ARCHITECTURES,
    build_model,
    has_aux,
    load_pretrained,
    published_categories,
    published_label_set,
    published_weights,
)

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow

PUBLISHED = [
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
]
LIGHT = "lraspp_mobilenet_v3_large"
HEAVY = "deeplabv3_mobilenet_v3_large"


def torchvisions(architecture: str, *, aux: bool = True) -> torch.nn.Module:
    """torchvision's own network, every value in it drawn at random."""
    options = {"aux_loss": aux} if has_aux(architecture) else {}
    network = get_model(architecture, weights=None, weights_backbone=None, num_classes=21, **options).eval()
    generator = torch.Generator().manual_seed(5)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 1.0)
        elif name.endswith(("running_mean", "bias")):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return network


@cache
def light_weights() -> dict[str, torch.Tensor]:
    return torchvisions(LIGHT).state_dict()


CASES = [(name, True) for name in PUBLISHED] + [(name, False) for name in ("fcn_resnet50", HEAVY)]


@pytest.mark.parametrize(("architecture", "aux"), CASES)
def test_a_published_network_says_what_torchvisions_says(architecture: str, aux: bool) -> None:
    network = torchvisions(architecture, aux=aux)
    model = build_model(architecture, 21, aux=aux, seed=1).eval()
    assert load_pretrained(model, architecture, network.state_dict()) == {}
    image = torch.rand(1, 3, 71, 58, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(image)["out"]
        assert expected.std() > 1e-3
        assert torch.allclose(model(image)["out"], expected, rtol=1e-4, atol=1e-4 * expected.std().item())


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_the_names_are_torchvisions_with_the_backbone_called_encoder(architecture: str) -> None:
    options = {"aux_loss": True} if has_aux(architecture) else {}
    with torch.device("meta"):
        theirs = get_model(architecture, weights=None, weights_backbone=None, num_classes=21, **options).state_dict()
        ours = build_model(architecture, 21).state_dict()
    renamed = {name.replace("backbone.", "encoder.", 1): value.shape for name, value in theirs.items()}
    assert {name: value.shape for name, value in ours.items()} == renamed
    parameters = [
        value.numel() for name, value in ours.items() if not name.endswith(("running_mean", "running_var", "tracked"))
    ]
    assert sum(parameters) == get_model_weights(architecture).COCO_WITH_VOC_LABELS_V1.meta["num_params"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_them_fills_encoder_and_heads(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(light_weights(), file)
    else:
        safetensors.torch.save_file(light_weights(), file)
    model = build_model(LIGHT, 21)
    assert load_pretrained(model, LIGHT, read_weights(import_weights(file))) == {}
    assert torch.equal(model.classifier.low_classifier.weight, light_weights()["classifier.low_classifier.weight"])


def test_for_other_classes_the_last_layers_stay_random_and_are_named() -> None:
    model = build_model(LIGHT, 4)
    before = model.classifier.high_classifier.weight.clone()
    left = load_pretrained(model, LIGHT, light_weights())
    assert left == {
        "classifier.low_classifier": "shape (21, 40, 1, 1) in the file, (4, 40, 1, 1) here",
        "classifier.high_classifier": "shape (21, 128, 1, 1) in the file, (4, 128, 1, 1) here",
    }
    assert torch.equal(model.classifier.high_classifier.weight, before)
    assert torch.equal(model.classifier.cbr[0].weight, light_weights()["classifier.cbr.0.weight"])


def test_the_auxiliary_head_may_be_missing_on_either_side() -> None:
    with_aux = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).state_dict()
    without = {name: value for name, value in with_aux.items() if not name.startswith("aux_classifier.")}
    left = load_pretrained(build_model(HEAVY, 21), HEAVY, without)
    assert left == dict.fromkeys(["aux_classifier.0", "aux_classifier.1", "aux_classifier.4"], "not in the file")
    assert load_pretrained(build_model(HEAVY, 21, aux=False), HEAVY, with_aux) == {}
    half = without | {"aux_classifier.0.weight": with_aux["aux_classifier.0.weight"]}
    with pytest.raises(CheckpointError, match=r"aux_classifier\.1\.weight is missing"):
        load_pretrained(build_model(HEAVY, 21), HEAVY, half)


def test_a_checkpoints_own_names_are_taken_too() -> None:
    model, other = (build_model("fcn_mobilenet_v2", 3, width=0.25, seed=seed) for seed in (1, 2))
    assert load_pretrained(model, "fcn_mobilenet_v2", other.state_dict()) == {}
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("architecture", "backbone"), [(HEAVY, "mobilenet_v3_large"), (LIGHT, "mobilenet_v3_large"), ("fcn_resnet50", "resnet50")]
)
def test_the_classification_network_fills_the_encoder(architecture: str, backbone: str) -> None:
    weights = get_model(backbone, weights=None).state_dict()
    model = build_model(architecture, 4)
    left = load_pretrained(model, architecture, weights)
    prefix = "features." if backbone.startswith("mobilenet") else ""
    assert all(torch.equal(value, weights[prefix + name]) for name, value in model.encoder.state_dict().items())
    heads = {name.rpartition(".")[0] for name in model.state_dict() if not name.startswith("encoder.")}
    assert left == dict.fromkeys(heads, "not in the file")


def test_weights_of_another_network_name_the_first_layer_and_the_remedy() -> None:
    before = build_model(LIGHT, 21)
    model = build_model(LIGHT, 21)
    wrong = light_weights() | {"backbone.4.block.0.0.weight": torch.zeros(64, 24, 3, 3)}
    with pytest.raises(CheckpointError) as refused:
        load_pretrained(model, LIGHT, wrong)
    assert str(refused.value) == (
        "weights do not fit lraspp_mobilenet_v3_large: layer backbone.4.block.0.0.weight should have shape (72, 24, 1, 1), "
        "has (64, 24, 3, 3); use torchvision mobilenet_v3_large or lraspp_mobilenet_v3_large weights made for [model] "
        "architecture and width"
    )
    with pytest.raises(CheckpointError, match=r"layer backbone\.conv1\.weight is missing; use torchvision resnet50 or fcn_r"):
        load_pretrained(build_model("fcn_resnet50", 21), "fcn_resnet50", light_weights())
    with pytest.raises(CheckpointError, match=r"classifier\.project\.weight is not part of it"):
        load_pretrained(model, LIGHT, light_weights() | {"classifier.project.weight": torch.zeros(1)})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_the_classes_are_those_of_the_weights_with_the_background_first() -> None:
    for architecture in PUBLISHED:
        categories = published_categories(architecture)
        assert len(categories) == 21
        assert categories[:3] == ("__background__", "aeroplane", "bicycle")
    label_set = published_label_set(LIGHT)
    assert label_set.num_classes == 21
    assert label_set.colors[15] == (192, 128, 128)  # VOC's person
    assert parse_classes(label_set.to_text()) == label_set


def test_networks_torchvision_does_not_publish_have_no_classes() -> None:
    for architecture in set(ARCHITECTURES) - set(PUBLISHED):
        with pytest.raises(ConfigError, match="choose one of fcn_resnet50"):
            published_categories(architecture)


@pytest.mark.parametrize("architecture", [LIGHT, "fcn8s_vgg16"])
def test_without_a_network_each_kind_of_published_weights_ends_in_the_remedy(architecture: str, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(CheckpointError, match="go online once"):
        published_weights(architecture)
