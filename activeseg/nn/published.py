"""torchvision's segmentation networks: FCN, DeepLabV3 and LR-ASPP on dilated ResNets and MobileNetV3."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import get_model

from activeseg.core.enlarging import Enlargement
from activeseg.errors import ConfigError
from activeseg.nn.geometry import MIN_SIDE, extend
from activeseg.nn.network import Network

_LRASPP = ("low", "high")
"""The maps LR-ASPP's head takes; all others take the one named 'out'."""


class PublishedNetwork(Network):
    """A network of `torchvision.models.segmentation` by its name; `encoder` is its backbone.

    aux: whether it has an auxiliary head, for training only; None for a network that never has one.

    Images below 33 pixels a side are padded inside by repeating their last row and column. In training mode DeepLabV3
    needs at least two images a batch, because it normalises one averaged feature per image over the batch.
    """

    def __init__(self, name: str, num_classes: int, *, aux: bool | None) -> None:
        super().__init__()
        auxiliary = {} if aux is None else {"aux_loss": aux}
        network = get_model(name, weights=None, weights_backbone=None, num_classes=num_classes, **auxiliary)
        self.name = name
        self.encoder: nn.Module = network.backbone
        self.classifier: nn.Module = network.classifier
        self.aux_classifier: nn.Module | None = network.aux_classifier if aux else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) float of any size -> {'out': logits (N, num_classes, H, W)}, and 'aux' when training.

        Raises ConfigError where DeepLabV3 is to train on a single image.
        """
        if self.training and len(x) == 1 and self.name.startswith("deeplabv3"):
            raise ConfigError(f"{self.name} trains on at least 2 images a step, got 1: raise [training] batch_size")
        found = self._encoded(x)
        scores = {"out": self.scores(self._read(found))}
        if self.training and self.aux_classifier is not None:
            scores["aux"] = self.aux_classifier(found["aux"])
        enlargement = self.enlargement(*x.shape[-2:])
        return {name: enlargement.apply(score) for name, score in scores.items()}

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) float of any size -> the backbone's last map; LR-ASPP reads an earlier one, too."""
        return self._read(self._encoded(x))

    def scores(self, features: tuple[Tensor, ...]) -> Tensor:
        """Features -> logits (N, num_classes, h, w) of stride 8, LR-ASPP's too."""
        logits: Tensor = self.classifier(features[0] if len(features) == 1 else dict(zip(_LRASPP, features, strict=True)))
        return logits

    def enlargement(self, height: int, width: int) -> Enlargement:
        """Half-pixel centres, as torchvision trained its published segmentation weights."""
        return Enlargement((max(height, MIN_SIDE), max(width, MIN_SIDE)), False, height, width)

    def _encoded(self, x: Tensor) -> dict[str, Tensor]:
        height, width = x.shape[-2:]
        found: dict[str, Tensor] = self.encoder(extend(x, max(height, MIN_SIDE), max(width, MIN_SIDE)))
        return found

    @staticmethod
    def _read(found: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (found["out"],) if "out" in found else tuple(found[name] for name in _LRASPP)
