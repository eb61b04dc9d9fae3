"""fcn_resnet50: torchvision's FCN on a dilated ResNet-50, with an auxiliary head during training."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import fcn_resnet50

from activeseg.nn.geometry import MIN_SIDE, extend


class FCNResNet50(nn.Module):
    """torchvision's fcn_resnet50 (output stride 8).

    Images below 33 pixels a side are padded inside by repeating their last row and column.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        network = fcn_resnet50(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True)
        self.encoder: nn.Module = network.backbone
        self.classifier: nn.Module = network.classifier
        self.aux_classifier: nn.Module = network.aux_classifier

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) float of any size -> {'out': logits (N, num_classes, H, W)}, and 'aux' when training."""
        height, width = x.shape[-2:]
        padded = (max(height, MIN_SIDE), max(width, MIN_SIDE))
        features = self.encoder(extend(x, *padded))
        scores = {"out": self.classifier(features["out"])}
        if self.training:
            scores["aux"] = self.aux_classifier(features["aux"])
        # Half-pixel centres, as torchvision trained its published segmentation weights.
        return {
            name: F.interpolate(score, size=padded, mode="bilinear", align_corners=False)[..., :height, :width]
            for name, score in scores.items()
        }
