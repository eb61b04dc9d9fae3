"""Checkpoints: safetensors with the network's description as JSON metadata. Nothing in them can run code.

Foreign weights come in through `import_weights` only, once; from then on they are safetensors too.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from activeseg.core.labels import LabelSet
from activeseg.errors import CheckpointError, ConfigError
from activeseg.nn.zoo import build_model
from activeseg.records import InputPolicy

FORMAT = 1
_KEY = "activeseg"
_WIDEST = 4.0
_MOST_SHARED = 4
"""Bytes of tensors for each byte of their file; above 1 where tensors share memory."""


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """All it takes to build a network again and to read its output. What an architecture has no use for stays as it is.

    upsampling: 'transposed' or 'bilinear' (fcn*_vgg16). aux: whether it has an auxiliary head to train with.
    """

    architecture: str
    width: float
    decoder_stride: int
    label_set: LabelSet
    input_policy: InputPolicy
    upsampling: str = "transposed"
    aux: bool = True

    @property
    def head(self) -> str:
        """How logits are read: 'softmax', one class a pixel, or 'sigmoid', independent classes."""
        return "sigmoid" if self.label_set.overlap else "softmax"

    def continues(self, start: NetworkSpec) -> bool:
        """Whether a training of this network may start from a checkpoint of that one.

        All must agree but the auxiliary head (adopted weights may have none, and nothing reads it but the loss) and whether
        JPEGs are decoded reduced, which networks of older versions do not know of.
        """
        policy = replace(start.input_policy, reduced=self.input_policy.reduced)
        return replace(start, aux=self.aux, input_policy=policy) == self

    def as_dict(self) -> dict[str, Any]:
        """JSON form; `from_dict` reads it back."""
        return {
            "architecture": self.architecture,
            "width": self.width,
            "decoder_stride": self.decoder_stride,
            "label_set": self.label_set.as_dict(),
            "input_policy": self.input_policy.as_dict(),
            "upsampling": self.upsampling,
            "aux": self.aux,
            "head": self.head,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NetworkSpec:
        """The spec whose `as_dict` gave `data`."""
        spec = cls(
            str(data["architecture"]),
            float(data["width"]),
            int(data["decoder_stride"]),
            LabelSet.from_dict(data["label_set"]),
            InputPolicy.from_dict(data["input_policy"]),
            # Not in the first checkpoints.
            str(data.get("upsampling", "transposed")),
            bool(data.get("aux", True)),
        )
        if data["head"] != spec.head:
            raise ValueError(f"head {data['head']!r} does not fit its classes, which ask for {spec.head!r}")
        if not 0 < spec.width <= _WIDEST:
            raise ValueError(f"width {spec.width} of no network")
        return spec


@dataclass(frozen=True, slots=True)
class Segmenter:
    """A network that knows its classes and its input. model_version: the unique name it goes by everywhere."""

    spec: NetworkSpec
    module: nn.Module
    model_version: str


def new_segmenter(spec: NetworkSpec, *, model_version: str, seed: int = 0) -> Segmenter:
    """A segmenter with random weights drawn from `seed`. Raises ConfigError for a spec no network has."""
    module = build_model(
        spec.architecture,
        spec.label_set.num_classes,
        width=spec.width,
        decoder_stride=spec.decoder_stride,
        upsampling=spec.upsampling,
        aux=spec.aux,
        seed=seed,
    )
    return Segmenter(spec, module, model_version)


def checkpoint_bytes(segmenter: Segmenter) -> bytes:
    """The checkpoint file of a segmenter: equal weights and spec give equal bytes; model_version is not in them."""
    # One metadata key: safetensors does not keep the order of several.
    description = json.dumps({"format": FORMAT, "spec": segmenter.spec.as_dict()}, sort_keys=True)
    return safetensors.torch.save(_plain(segmenter.module.state_dict()), metadata={_KEY: description})


def load_checkpoint(data: bytes, *, model_version: str, device: torch.device | str) -> Segmenter:
    """The segmenter in a checkpoint file, in eval mode on `device`.

    Raises CheckpointError where the bytes are damaged, are no checkpoint, or were written by a newer version.
    """
    spec = read_spec(data, f"checkpoint {model_version}")
    if spec is None:
        raise CheckpointError(
            f"{model_version} holds weights without a network description: import it with `activeseg weights import`"
        )
    weights = read_weights(data)
    try:
        segmenter = new_segmenter(spec, model_version=model_version)
        segmenter.module.load_state_dict(weights)
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint {model_version}: weights and description do not match ({_first_line(error)})"
        ) from error
    segmenter.module.to(device).eval()
    return segmenter


def import_weights(path: Path) -> bytes:
    """Foreign weights, a .safetensors file or a torch state dict (.pth, .pt), as safetensors bytes.

    A torch file is unpickled with `weights_only`: tensors and plain containers, no code. A state dict wrapped as
    {'state_dict': ...} or {'model': ...} is unwrapped, and so are names that start with 'module.'.

    Raises CheckpointError for anything else, with the remedy.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read weights {path}: {error.strerror}") from error
    weights = read_weights(data) if path.suffix == ".safetensors" else _unpickle_tensors(path)
    return safetensors.torch.save(_plain(weights))


def read_weights(data: bytes) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from safetensors bytes. Raises CheckpointError where they are damaged."""
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"not a safetensors file, or a damaged one ({_first_line(error)}): restore it, or import the weights again"
        ) from error


def _unpickle_tensors(path: Path) -> Mapping[str, Tensor]:
    _check_members(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or hostile pickles raise anything
        raise CheckpointError(
            f"{path} is not a plain state dict (damaged, or it would run code when loaded; nothing was run): save the "
            "weights with safetensors.torch.save_file(model.state_dict(), 'weights.safetensors') where they come from, "
            "and import that file"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(map(_is_plain, loaded.keys(), loaded.values())):
        raise CheckpointError(f"{path} holds {type(loaded).__name__}, not a state dict of tensors: save model.state_dict()")
    _check_size(path, loaded)
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def _check_members(path: Path) -> None:
    """torch packs nothing when it saves. A packed member may unpack to anything."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        return  # the older format, or damage, of which torch tells
    if packed:
        raise CheckpointError(
            f"{path} is packed ({packed[0][:60]!r}), which torch.save never does: save model.state_dict() again"
        )


def _check_size(path: Path, weights: Mapping[str, Tensor]) -> None:
    """A tensor of a terabyte may be a view of four bytes, and a thousand tensors views of the same: they would be copied."""
    size, most = sum(value.numel() * value.element_size() for value in weights.values()), _MOST_SHARED * path.stat().st_size
    if size > most:
        raise CheckpointError(
            f"{path} describes tensors of {size} bytes in a file of {path.stat().st_size}: save model.state_dict()"
        )


def _is_plain(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, row-major, as safetensors wants them."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}


def read_spec(data: bytes, name: str) -> NetworkSpec | None:
    """The network that safetensors bytes say they are of; None for weights alone, which say nothing.

    Raises CheckpointError, with `name` in front, where the description is damaged or of a newer version.
    """
    # Header of a safetensors file: 8 bytes little-endian length, then JSON.
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        described = json.loads(header.get("__metadata__", {}).get(_KEY, "null"))
    except (struct.error, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{name} is damaged ({_first_line(error)}): restore its file") from error
    if described is None:
        return None
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise CheckpointError(f"{name} has an unknown format, this version reads {FORMAT}: upgrade activeseg")
    try:
        return NetworkSpec.from_dict(described["spec"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{name}: its description is damaged ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return " ".join(line.strip() for line in lines[:2]) or type(error).__name__
