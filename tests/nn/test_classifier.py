"""Classification networks from files: the outputs are read from the weights, the names from ImageNet or a list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from activeseg.errors import CheckpointError, ConfigError
from activeseg.nn.classifier import known_classifiers, load_classifier
from activeseg.records import InputPolicy

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow


def saved(folder: Path, architecture: str, **options: object) -> tuple[Path, torch.nn.Module]:
    network = get_model(architecture, weights=None, **options).eval()
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder / "weights.pth", network


def names(folder: Path, count: int) -> Path:
    (folder / "names.txt").write_text("".join(f"kind {number}\n" for number in range(count)), encoding="utf-8")
    return folder / "names.txt"


@pytest.mark.parametrize("architecture", ["mobilenet_v2", "resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_a_classifier_is_torchvisions_with_as_many_outputs_as_the_weights(tmp_path: Path, architecture: str) -> None:
    weights, network = saved(tmp_path, architecture, num_classes=4)
    classifier = load_classifier(architecture, weights=weights, categories=names(tmp_path, 4), device="cpu")
    image = torch.rand(2, 3, 90, 131)
    with torch.inference_mode():
        assert torch.equal(classifier.module(image), network(image))
    assert classifier.categories == ("kind 0", "kind 1", "kind 2", "kind 3")
    assert classifier.index_of("kind 2") == 2
    assert classifier.name == architecture
    assert not classifier.module.training


def test_a_thousand_outputs_are_imagenets_and_the_input_is_its_recipe(tmp_path: Path) -> None:
    classifier = load_classifier("mobilenet_v2", weights=saved(tmp_path, "mobilenet_v2")[0], categories=None, device="cpu")
    assert len(classifier.categories) == 1000
    assert classifier.categories[0] == "tench"
    assert classifier.input_policy == InputPolicy(256)
    with pytest.raises(ConfigError, match=r"similar: .*tabby"):
        classifier.index_of("tab")


@pytest.mark.slow
def test_the_names_densenet_was_published_with_are_understood(tmp_path: Path) -> None:
    network = get_model("densenet121", weights=None, num_classes=2)
    pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")
    old = {pattern.sub(r"\1.\2.", name): value for name, value in network.state_dict().items()}
    assert old.keys() != network.state_dict().keys()
    torch.save(old, tmp_path / "old.pth")
    loaded = load_classifier("densenet121", weights=tmp_path / "old.pth", categories=names(tmp_path, 2), device="cpu")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.module.state_dict().items())


def test_wrong_lists_weights_and_names_are_refused_with_the_remedy(tmp_path: Path) -> None:
    weights, _ = saved(tmp_path, "mobilenet_v2", num_classes=4)

    def load(architecture: str = "mobilenet_v2", categories: Path | None = None) -> None:
        load_classifier(architecture, weights=weights, categories=categories, device="cpu")

    with pytest.raises(ConfigError, match="4 outputs, ImageNet has 1000 categories: name a file"):
        load()
    with pytest.raises(ConfigError, match=r"expected 4 names, one a line, .* got 3"):
        load(categories=names(tmp_path, 3))
    with pytest.raises(ConfigError, match="cannot be read"):
        load(categories=tmp_path / "missing.txt")
    with pytest.raises(ConfigError, match=r"unknown classification network 'vit_b_16'; known: alexnet, .*vgg16"):
        load("vit_b_16")
    with pytest.raises(CheckpointError, match=r"layer fc\.bias is missing; use torchvision resnet18 weights"):
        load("resnet18")
    with pytest.raises(CheckpointError, match=r"layer layers\.0\.weight is missing"):
        load("mnasnet0_5", names(tmp_path, 4))


def test_without_a_network_published_weights_end_in_the_remedy(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(CheckpointError, match="go online once"):
        load_classifier("resnet18", weights=None, categories=None, device="cpu")


def test_only_networks_for_images_of_any_size_are_listed() -> None:
    known = known_classifiers()
    assert {"resnet50", "vgg16", "mobilenet_v2", "densenet121"} <= set(known)
    assert not any(name.startswith(("vit", "swin", "maxvit", "googlenet", "inception")) for name in known)
