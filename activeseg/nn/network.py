"""What every network of the zoo is: coarse logits from an image, and how they become the image's size."""

from __future__ import annotations

from torch import Tensor, nn

from activeseg.core.enlarging import Enlargement


class Network(nn.Module):
    """A segmentation network in two steps, so that scores can be summed without a tensor of the image's size.

    A subclass gives `coarse` and `enlargement`; `forward` is both.
    """

    def coarse(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) float of any size -> logits (N, num_classes, h, w) before the last interpolation."""
        raise NotImplementedError

    def enlargement(self, height: int, width: int) -> Enlargement:
        """How `coarse` logits of a (height, width) image become logits of its size."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) float of any size -> {'out': logits (N, num_classes, H, W)}."""
        height, width = x.shape[-2:]
        return {"out": self.enlargement(height, width).apply(self.coarse(x))}
