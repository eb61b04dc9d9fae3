"""torchvision's classification networks: what is in an image, without a word about where.

Their saliency gives first masks, and their filters can be looked at, where no segmentation network exists yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models

from activeseg.errors import CheckpointError, ConfigError
from activeseg.nn.checkpoint import import_weights, read_weights
from activeseg.nn.pretrained import Naming, download, fill
from activeseg.records import InputPolicy

# Those that take images of any size and scale them as all others do: no transformers, GoogLeNet or Inception.
_FAMILIES = (
    "alexnet",
    "convnext",
    "densenet",
    "efficientnet",
    "mnasnet",
    "mobilenet",
    "resnet",
    "resnext",
    "shufflenet",
    "squeezenet",
    "vgg",
    "wide_resnet",
)


@dataclass(frozen=True, slots=True)
class Classifier:
    """A classification network in eval mode.

    module: images (N, 3, H, W) float -> scores (N, K) before softmax. categories: the K names; ImageNet's repeat two.
    input_policy: how pixels become its input. name: torchvision's name of the architecture.
    """

    module: nn.Module
    categories: tuple[str, ...]
    input_policy: InputPolicy
    name: str

    def index_of(self, category: str) -> int:
        """The first category of this name. Raises ConfigError where there is none."""
        if category not in self.categories:
            close = [name for name in self.categories if category.lower() in name.lower()][:5]
            hint = f"; similar: {', '.join(close)}" if close else ""
            raise ConfigError(f"{self.name} knows no category {category!r} among its {len(self.categories)}{hint}")
        return self.categories.index(category)


def load_classifier(
    architecture: str, *, weights: Path | None, categories: Path | None, device: torch.device | str
) -> Classifier:
    """A classification network by torchvision's name (resnet50, mobilenet_v2, vgg16, ...) with trained weights.

    weights: a .safetensors file or a torch state dict; None downloads the ImageNet weights torchvision publishes. Its
    last layer tells the number of categories. categories: a text file with one name a line; None means ImageNet's, which
    takes 1000 outputs.

    The input policy is the one torchvision published the architecture's weights with (for most: short side 256, ImageNet
    mean and std), but the whole image instead of its middle: the scale of things the network was trained on counts, the
    crop only removes what may be looked for.

    Raises ConfigError for an unknown architecture or a list that does not fit, CheckpointError for weights that do not.
    """
    if architecture not in known_classifiers():
        raise ConfigError(f"unknown classification network {architecture!r}; known: {', '.join(known_classifiers())}")
    published = get_model_weights(architecture)
    published = getattr(published, "IMAGENET1K_V1", published.DEFAULT)
    remedy = "bring a file of them here and name it"
    given = read_weights(import_weights(weights)) if weights else download(published, architecture, remedy)
    # DenseNet's published weights have names from before dots in module names were refused.
    given = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): value for name, value in given.items()}
    outputs = _outputs(architecture, given)
    module: nn.Module = get_model(architecture, weights=None, num_classes=outputs)
    fill(module, given, Naming(()), architecture=architecture, remedy=_use(architecture))
    names = _read_categories(categories, outputs) if categories else _published_categories(published, outputs, architecture)
    return Classifier(module.to(device).eval(), names, _input_policy(published), architecture)


def known_classifiers() -> list[str]:
    """The architectures `load_classifier` takes."""
    return [name for name in list_models(module=torchvision.models) if name.startswith(_FAMILIES)]


def _outputs(architecture: str, weights: Mapping[str, Tensor]) -> int:
    with torch.device("meta"):
        *_, last = get_model(architecture, weights=None).state_dict()
    if last not in weights or weights[last].ndim != 1:
        raise CheckpointError(f"weights do not fit {architecture}: layer {last} is missing; {_use(architecture)}")
    return len(weights[last])


def _use(architecture: str) -> str:
    return f"use torchvision {architecture} weights"


def _input_policy(published: WeightsEnum) -> InputPolicy:
    transform = published.transforms()
    mean, std = (tuple(float(value) for value in values) for values in (transform.mean, transform.std))
    return InputPolicy(transform.resize_size[0], (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _published_categories(published: WeightsEnum, outputs: int, architecture: str) -> tuple[str, ...]:
    names = tuple(published.meta["categories"])
    if outputs != len(names):
        raise ConfigError(
            f"the weights of {architecture} have {outputs} outputs, ImageNet has {len(names)} categories: "
            "name a file with their categories, one a line"
        )
    return names


def _read_categories(file: Path, outputs: int) -> tuple[str, ...]:
    try:
        names = tuple(file.read_text(encoding="utf-8-sig").strip().splitlines())
    except OSError as error:
        raise ConfigError(f"category list {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"category list {file} is not UTF-8 text") from error
    if len(names) != outputs:
        raise ConfigError(
            f"category list {file}: expected {outputs} names, one a line, as the weights have outputs; got {len(names)}"
        )
    return tuple(name.strip() for name in names)
