"""torchvision's segmentation networks: FCN, DeepLabV3 and LR-ASPP on dilated ResNets and MobileNetV3."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model

from activeseg.errors import ConfigError
from activeseg.nn.geometry import MIN_SIDE, extend


class PublishedNetwork(nn.Module):
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
        height, width = x.shape[-2:]
        padded = (max(height, MIN_SIDE), max(width, MIN_SIDE))
        features = self.encoder(extend(x, *padded))
        # LR-ASPP's head takes two feature maps, all others the one named 'out'.
        scores = {"out": self.classifier(features.get("out", features))}
        if self.training and self.aux_classifier is not None:
            scores["aux"] = self.aux_classifier(features["aux"])
        # Half-pixel centres, as torchvision trained its published segmentation weights.
        return {
            name: F.interpolate(score, size=padded, mode="bilinear", align_corners=False)[..., :height, :width]
            for name, score in scores.items()
        }
