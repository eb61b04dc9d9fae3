"""The networks by name, and the pretrained weights they may start from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights

from activeseg.errors import CheckpointError, ConfigError
from activeseg.nn.mobilenet import FCNMobileNetV2
from activeseg.nn.resnet import FCNResNet50

ARCHITECTURES = ("fcn_mobilenet_v2", "fcn_resnet50")

_PUBLISHED = {"fcn_mobilenet_v2": MobileNet_V2_Weights.IMAGENET1K_V1, "fcn_resnet50": ResNet50_Weights.IMAGENET1K_V1}
_CLASSIFIER = ("classifier.", "fc.")


def build_model(
    architecture: str, num_classes: int, *, width: float = 1.0, decoder_stride: int = 8, seed: int = 0
) -> nn.Module:
    """A network with random weights drawn from `seed`; the global random state stays as it was.

    The module maps images (N, 3, H, W) float32, of any H and W, to a dict with 'out': logits (N, num_classes, H, W);
    fcn_resnet50 adds 'aux' in training mode. Its `encoder` is the part that pretrained weights go into.

    Raises ConfigError for an unknown architecture or an option it does not have.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    if num_classes < 2:
        raise ConfigError(f"num_classes: expected at least 2, got {num_classes}")
    if decoder_stride not in (4, 8, 16, 32):
        raise ConfigError(f"decoder_stride: expected 4, 8, 16 or 32, got {decoder_stride}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module: nn.Module
        if architecture == "fcn_mobilenet_v2":
            module = FCNMobileNetV2(num_classes, width=width, decoder_stride=decoder_stride)
        elif width != 1.0 or decoder_stride != 8:
            raise ConfigError(f"fcn_resnet50 has width 1.0 and decoder_stride 8 only; got {width} and {decoder_stride}")
        else:
            module = FCNResNet50(num_classes)
    return module.to(memory_format=torch.channels_last)


def load_pretrained(module: nn.Module, architecture: str, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Fill the encoder of `module` (from `build_model`) with ImageNet weights, in place; score layers stay.

    state_dict: a full torchvision classification state dict (mobilenet_v2 or resnet50); its classifier is ignored,
    every other layer must be there and fit. None downloads torchvision's published weights.

    Raises CheckpointError naming the first layer that does not fit and what to do, or that the download failed.
    """
    weights = _published(architecture) if state_dict is None else state_dict
    encoder = module.get_submodule("encoder")
    prefix = "features." if architecture == "fcn_mobilenet_v2" else ""
    named = {name.removeprefix(prefix): value for name, value in weights.items() if not name.startswith(_CLASSIFIER)}
    _check_fit(encoder, named, architecture, prefix)
    encoder.load_state_dict(named, strict=False)  # only num_batches_tracked may be missing, see _check_fit


def _published(architecture: str) -> Mapping[str, Tensor]:
    try:
        weights: Mapping[str, Tensor] = _PUBLISHED[architecture].get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"could not download torchvision's weights for {architecture} ({error}): go online once, or import a file "
            "with `activeseg weights import FILE` and name it in [model] weights"
        ) from error
    return weights


def _check_fit(encoder: nn.Module, weights: Mapping[str, Tensor], architecture: str, prefix: str) -> None:
    remedy = f"use torchvision {architecture.removeprefix('fcn_')} weights made for [model] architecture and width"
    expected = encoder.state_dict()
    for name, parameter in expected.items():
        if name not in weights:
            if name.endswith("num_batches_tracked"):
                continue
            raise CheckpointError(f"weights do not fit {architecture}: layer {prefix}{name} is missing; {remedy}")
        if weights[name].shape != parameter.shape:
            raise CheckpointError(
                f"weights do not fit {architecture}: layer {prefix}{name} should have shape {tuple(parameter.shape)}, "
                f"has {tuple(weights[name].shape)}; {remedy}"
            )
    for name in weights:
        if name not in expected:
            raise CheckpointError(f"weights do not fit {architecture}: layer {prefix}{name} is not part of it; {remedy}")
