"""The networks by name, and the pretrained weights they may start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from activeseg.core.labels import LabelSet
from activeseg.core.palette import voc_palette
from activeseg.errors import ConfigError
from activeseg.nn.fcn import FCNVGG16
from activeseg.nn.mobilenet import FCNMobileNetV2
from activeseg.nn.network import Network
from activeseg.nn.pretrained import Naming, download, fill
from activeseg.nn.published import PublishedNetwork


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network of the zoo.

    build: (num_classes, **the options it has) -> module. backbone: torchvision's name of the classification network whose
    weights fit the encoder, named as `naming` says. score_layers: those whose shapes depend on the number of classes.
    options: the arguments of `build_model` that it has a use for. published: whether torchvision publishes it trained.
    """

    build: Callable[..., Network]
    backbone: str
    naming: Naming
    score_layers: tuple[str, ...]
    options: frozenset[str] = frozenset()
    published: bool = False


_RESNET = Naming((("", "encoder."),), ignored=("fc.",))
_MOBILENET = Naming((("features.", "encoder."),), ignored=("classifier.",))
# Files with the convolutions only exist: conv6 and conv7 then start at random.
_VGG = Naming(
    (("features.", "encoder.features."), ("classifier.0.", "encoder.conv6."), ("classifier.3.", "encoder.conv7.")),
    ignored=("classifier.6.",),
    absent=("encoder.conv6", "encoder.conv7"),
)
_LAST = ("classifier.4", "aux_classifier.4")


def _vgg(stride: int) -> Architecture:
    build = partial(FCNVGG16, decoder_stride=stride)
    return Architecture(build, "vgg16", _VGG, ("decoder",), options=frozenset({"width", "upsampling"}))


def _published(name: str, backbone: str, naming: Naming, options: frozenset[str] = frozenset({"aux"})) -> Architecture:
    return Architecture(partial(PublishedNetwork, name), backbone, naming, _LAST, options, published=True)


_ZOO = {
    "fcn32s_vgg16": _vgg(32),
    "fcn16s_vgg16": _vgg(16),
    "fcn8s_vgg16": _vgg(8),
    "fcn_mobilenet_v2": Architecture(
        FCNMobileNetV2, "mobilenet_v2", _MOBILENET, ("score",), options=frozenset({"width", "decoder_stride"})
    ),
    "fcn_resnet50": _published("fcn_resnet50", "resnet50", _RESNET),
    "fcn_resnet101": _published("fcn_resnet101", "resnet101", _RESNET),
    "deeplabv3_resnet50": _published("deeplabv3_resnet50", "resnet50", _RESNET),
    "deeplabv3_resnet101": _published("deeplabv3_resnet101", "resnet101", _RESNET),
    "deeplabv3_mobilenet_v3_large": _published("deeplabv3_mobilenet_v3_large", "mobilenet_v3_large", _MOBILENET),
    "lraspp_mobilenet_v3_large": Architecture(
        partial(PublishedNetwork, "lraspp_mobilenet_v3_large", aux=None),
        "mobilenet_v3_large",
        _MOBILENET,
        ("classifier.low_classifier", "classifier.high_classifier"),
        published=True,
    ),
}
ARCHITECTURES = tuple(_ZOO)

_UNUSED = {"width": 1.0, "decoder_stride": 8, "upsampling": "transposed"}
"""What an option stands at where the architecture does not have it."""

_CHOICES: dict[str, tuple[float | str, ...]] = {"decoder_stride": (4, 8, 16, 32), "upsampling": ("transposed", "bilinear")}


def build_model(
    architecture: str,
    num_classes: int,
    *,
    width: float = 1.0,
    decoder_stride: int = 8,
    upsampling: str = "transposed",
    aux: bool = True,
    seed: int = 0,
) -> Network:
    """A network with random weights drawn from `seed`; the global random state stays as it was.

    The module maps images (N, 3, H, W) float32, of any H and W, to a dict with 'out': logits (N, num_classes, H, W);
    with `aux`, FCN and DeepLabV3 of torchvision add 'aux' in training mode. Its `encoder` is the part that pretrained
    classification weights go into.

    Raises ConfigError for an unknown architecture or an option it does not have.
    """
    found = _find(architecture)
    if num_classes < 1:
        raise ConfigError(f"num_classes: expected at least 1, got {num_classes}")
    options = {"width": width, "decoder_stride": decoder_stride, "upsampling": upsampling}
    for name, value in options.items():
        if name not in found.options and value != _UNUSED[name]:
            raise ConfigError(f"{architecture} has no choice of {name}: expected {name} {_UNUSED[name]}, got {value}")
        if value not in _CHOICES.get(name, (value,)):
            raise ConfigError(f"{name}: expected {_one_of(_CHOICES[name])}, got {value}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        chosen = {name: value for name, value in (options | {"aux": aux}).items() if name in found.options}
        return found.build(num_classes, **chosen).to(memory_format=torch.channels_last)


def has_aux(architecture: str) -> bool:
    """Whether the architecture can have an auxiliary head."""
    return "aux" in _find(architecture).options


def load_pretrained(module: nn.Module, architecture: str, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, str]:
    """Fill `module` (from `build_model`) with trained weights, in place. Returns the layers that keep their random start,
    each with the reason.

    state_dict is one of
    - a torchvision classification network's: fills the encoder; its own classifier is ignored, all else must fit;
    - the same segmentation network's, named as torchvision names it (`backbone.*`, `classifier.*`, `aux_classifier.*`)
      or as a checkpoint does (`encoder.*`, ...): fills the heads too; score layers only for as many classes, and a
      missing auxiliary head stays at its start;
    - None: torchvision's published weights, of the segmentation network where they exist, else of the backbone.

    Raises CheckpointError naming the first layer that does not fit and what to do, or that the download failed.
    """
    found = _find(architecture)
    weights = published_weights(architecture) if state_dict is None else state_dict
    fitting = f"{found.backbone} or {architecture}" if found.published else found.backbone
    remedy = f"use torchvision {fitting} weights made for [model] architecture and width"
    return fill(module, weights, _naming(found, module, weights), architecture=architecture, remedy=remedy)


def _naming(found: Architecture, module: nn.Module, weights: Mapping[str, Tensor]) -> Naming:
    """How a file names its layers, told by how its names begin."""
    for prefix in ("backbone.", "encoder."):
        if any(name.startswith(prefix) for name in weights):
            return Naming(((prefix, "encoder."),), absent=("aux_classifier",), resized=found.score_layers)
    heads = tuple(name for name, _ in module.named_children() if name != "encoder")
    return Naming(found.naming.prefixes, found.naming.ignored, absent=(*found.naming.absent, *heads))


def published_weights(architecture: str) -> Mapping[str, Tensor]:
    """torchvision's trained weights: the segmentation network's where it publishes them, else the backbone's.

    Raises CheckpointError where they cannot be downloaded.
    """
    found = _find(architecture)
    weights = _segmentation_weights(architecture) if found.published else get_model_weights(found.backbone).IMAGENET1K_V1
    remedy = "bring the file: `activeseg weights import FILE` trains from it, `activeseg weights adopt FILE` uses it as it is"
    return download(weights, architecture, remedy)


def published_categories(architecture: str) -> tuple[str, ...]:
    """The classes torchvision trained this network for, '__background__' first.

    Raises ConfigError where torchvision publishes no such network.
    """
    return tuple(_segmentation_weights(architecture).meta["categories"])


def published_label_set(architecture: str) -> LabelSet:
    """The same as a label set in PASCAL VOC's colours; the background is a class like any other."""
    names = published_categories(architecture)
    return LabelSet(names, voc_palette(len(names)))


def _segmentation_weights(architecture: str) -> WeightsEnum:
    if not _find(architecture).published:
        known = ", ".join(name for name, entry in _ZOO.items() if entry.published)
        raise ConfigError(f"torchvision publishes no {architecture} trained to segment: choose one of {known}")
    return get_model_weights(architecture).COCO_WITH_VOC_LABELS_V1


def _find(architecture: str) -> Architecture:
    if architecture not in _ZOO:
        raise ConfigError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    return _ZOO[architecture]


def _one_of(choices: tuple[float | str, ...]) -> str:
    *first, last = map(str, choices)
    return f"{', '.join(first)} or {last}"
