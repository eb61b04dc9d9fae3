"""The last layer of our own networks: scores from features."""

from __future__ import annotations

from torch import nn


def score_layer(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution to class scores.

    Starts near zero: the first step sees almost uniform predictions, so the fast head does not shake the encoder.
    """
    layer = nn.Conv2d(channels, num_classes, kernel_size=1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
