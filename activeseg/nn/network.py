"""What every network of the zoo is: features of an image, coarse logits from them, and how they become the image's size."""

from __future__ import annotations

from torch import Tensor, nn

from activeseg.core.enlarging import Enlargement


class Network(nn.Module):
    """A segmentation network in three steps: what it sees can be looked at and disturbed before it is judged, and scores can
    be summed without a tensor of the image's size.

    A subclass gives `features`, `scores` and `enlargement`; `forward` is all three.
    """

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) float of any size -> the maps (N, D, h, w) that `scores` reads, the coarsest one last."""
        raise NotImplementedError

    def scores(self, features: tuple[Tensor, ...]) -> Tensor:
        """What `features` gave -> logits (N, num_classes, h, w) before the last interpolation."""
        raise NotImplementedError

    def coarse(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) float of any size -> logits (N, num_classes, h, w) before the last interpolation."""
        return self.scores(self.features(x))

    def enlargement(self, height: int, width: int) -> Enlargement:
        """How `coarse` logits of a (height, width) image become logits of its size."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) float of any size -> {'out': logits (N, num_classes, H, W)}."""
        height, width = x.shape[-2:]
        return {"out": self.enlargement(height, width).apply(self.coarse(x))}
