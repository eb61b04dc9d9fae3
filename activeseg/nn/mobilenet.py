"""fcn_mobilenet_v2: a MobileNetV2 encoder with 1x1 score layers whose scores are summed from coarse to fine.

Encoder: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), as in torchvision.
Skip sums: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation" (2015).
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from activeseg.core.enlarging import Enlargement
from activeseg.nn.geometry import enlarge, extend, pad_input, padded_size
from activeseg.nn.heads import score_layer
from activeseg.nn.network import Network

# The last block of MobileNetV2's `features` at each stride.
_LAST_BLOCK = {4: 3, 8: 6, 16: 13, 32: 18}


class FCNMobileNetV2(Network):
    """FCN on MobileNetV2.

    width: channel multiplier of the encoder. decoder_stride: stride of the finest score layer (8, 16 or 32 as in FCN;
    4 for small images with thin things); coarser ones are added to it, enlarged bilinearly.

    The input is padded inside, to at least 33 pixels a side and to 1 more than a multiple of decoder_stride, by
    repeating its last row and column.
    """

    def __init__(self, num_classes: int, *, width: float = 1.0, decoder_stride: int = 8) -> None:
        super().__init__()
        self.decoder_stride = decoder_stride
        self.encoder: nn.Sequential = mobilenet_v2(weights=None, width_mult=width).features
        self.strides = [stride for stride in _LAST_BLOCK if stride >= decoder_stride]
        self.score = nn.ModuleDict(
            {str(stride): score_layer(self.encoder[_LAST_BLOCK[stride]].out_channels, num_classes) for stride in self.strides}
        )

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) float of any size -> the last maps at strides decoder_stride to 32 of the padded image."""
        x = pad_input(x, self.decoder_stride)
        found = []
        last_blocks = {_LAST_BLOCK[stride] for stride in self.strides}
        for number, block in enumerate(self.encoder):
            x = block(x)
            if number in last_blocks:
                found.append(x)
        return tuple(found)

    def scores(self, features: tuple[Tensor, ...]) -> Tensor:
        """Features -> logits (N, num_classes, h, w) of decoder_stride."""
        at = dict(zip(self.strides, features, strict=True))
        coarsest, *finer = reversed(self.strides)
        total: Tensor = self.score[str(coarsest)](at[coarsest])
        for stride in finer:
            scores = self.score[str(stride)](at[stride])
            total = scores + extend(enlarge(total, 2), *scores.shape[-2:])
        return total

    def enlargement(self, height: int, width: int) -> Enlargement:
        """Score i of decoder_stride s lies on pixel s*i: the first and last on those of the padded image."""
        return Enlargement(padded_size(height, width, self.decoder_stride), True, height, width)
