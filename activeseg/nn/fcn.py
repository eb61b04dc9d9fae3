"""fcn32s_vgg16, fcn16s_vgg16, fcn8s_vgg16: VGG16 turned into a fully convolutional network, with skips of two depths.

Encoder: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2014), its two fully
connected layers as convolutions. Decoders: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic
Segmentation" (2015).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from activeseg.core.enlarging import Enlargement
from activeseg.nn.geometry import extend
from activeseg.nn.heads import score_layer
from activeseg.nn.network import Network

STRIDE = 32
"""Of the last feature map: the input is padded to a multiple of it."""

# Convolutions of each block and their channels; every block ends in a 2x2 max pool.
_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
_TOP_CHANNELS = 4096
_SKIPS = (16, 8)


class FCNVGG16(Network):
    """FCN-32s, FCN-16s or FCN-8s on VGG16.

    decoder_stride: 32, 16 or 8; the features at 16 (pool4) and 8 (pool3) are added where it reaches them.
    width: multiplier of the encoder's channels.
    upsampling: 'transposed' = transposed convolutions straight from the last features to the classes, the last one with
    kernel = stride, and ReLU on the skips' score layers; 'bilinear' = a 1x1 score layer first, then transposed convolutions
    with kernel 2 x stride, over scores extended by their border, that start as bilinear interpolation, and no ReLU on scores.

    The input is padded inside to a multiple of 32 by repeating its last row and column; the logits are cropped back.
    A pooled feature i of stride s covers the pixels s*i .. s*i + s - 1, and so do the logits it is enlarged to.
    """

    def __init__(self, num_classes: int, *, decoder_stride: int, width: float = 1.0, upsampling: str = "transposed") -> None:
        super().__init__()
        self.encoder = VGG16Encoder(width)
        self.decoder = SkipDecoder(self.encoder.channels, num_classes, stride=decoder_stride, bilinear=upsampling == "bilinear")
        self._strides = sorted([*self.decoder.skips, STRIDE])

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) float of any size -> pool3, pool4 and conv7 of the padded image, as far as the decoder reads."""
        found = self.encoder(extend(x, *_padded_size(*x.shape[-2:])))
        return tuple(found[stride] for stride in self._strides)

    def scores(self, features: tuple[Tensor, ...]) -> Tensor:
        """Features -> logits (N, num_classes, h, w) of the padded image's own size: the last layer, a transposed
        convolution, enlarges them itself.
        """
        logits: Tensor = self.decoder(dict(zip(self._strides, features, strict=True)))
        return logits

    def enlargement(self, height: int, width: int) -> Enlargement:
        """Nothing but the crop of what the padding added."""
        return Enlargement(_padded_size(height, width), False, height, width)


class VGG16Encoder(nn.Module):
    """The 13 convolutions of VGG16 as torchvision numbers them (`features`), then conv6 (7x7) and conv7 (1x1).

    channels: of the features at each stride: pool3 (8), pool4 (16) and conv7 (32).
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        sizes = [_scaled(channels, width) for _, channels in _BLOCKS]
        top = _scaled(_TOP_CHANNELS, width)
        layers: list[nn.Module] = []
        for (count, _), (before, channels) in zip(_BLOCKS, pairwise([3, *sizes]), strict=True):
            for number in range(count):
                layers += [_conv(channels if number else before, channels, 3), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.conv6 = _conv(sizes[-1], top, 7)
        self.conv7 = _conv(top, top, 1)
        self.channels = {8: sizes[2], 16: sizes[3], 32: top}

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """(N, 3, H, W), H and W multiples of 32 -> {stride: features (N, channels[stride], H / stride, W / stride)}."""
        features: dict[int, Tensor] = {}
        stride = 1
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                stride *= 2
                features[stride] = x
        x = F.relu(self.conv6(x), inplace=True)
        return {8: features[8], 16: features[16], 32: F.relu(self.conv7(x), inplace=True)}


class SkipDecoder(nn.Module):
    """Scores from coarse to fine: doubled in size, added to the next finer layer's, and at `stride` enlarged at once."""

    def __init__(self, channels: dict[int, int], num_classes: int, *, stride: int, bilinear: bool) -> None:
        super().__init__()
        self.bilinear = bilinear
        self.skips = [skip for skip in _SKIPS if skip >= stride]
        scored = [STRIDE, *self.skips] if bilinear else self.skips
        self.score = nn.ModuleDict({str(at): score_layer(channels[at], num_classes) for at in scored})
        # Channels that the coarse scores come in with: without a score layer of their own, as features.
        arriving = [num_classes if bilinear else channels[STRIDE]] + [num_classes] * len(self.skips)
        layers = [Enlarge(before, num_classes, 2, kernel=4, extend=bilinear) for before in arriving[:-1]]
        kernel = 2 * stride if bilinear else stride
        layers.append(Enlarge(arriving[-1], num_classes, stride, kernel=kernel, extend=bilinear))
        alone = torch.eye(num_classes)
        mixed = 0.1 * torch.randn(arriving[0], num_classes) / math.sqrt(arriving[0])
        for number, layer in enumerate(layers):
            layer.start(alone if number or bilinear else mixed)
        *twice, self.last = layers
        self.enlarge = nn.ModuleList(twice)

    def forward(self, features: dict[int, Tensor]) -> Tensor:
        """Features by stride -> logits (N, C, H, W) of the padded input's size."""
        total = self.score[str(STRIDE)](features[STRIDE]) if self.bilinear else features[STRIDE]
        for skip, enlarge in zip(self.skips, self.enlarge, strict=True):
            scores = self.score[str(skip)](features[skip])
            total = enlarge(total) + (scores if self.bilinear else F.relu(scores))
        logits: Tensor = self.last(total)
        return logits


class Enlarge(nn.ConvTranspose2d):
    """(N, before, h, w) -> (N, after, factor * h, factor * w): what a longer kernel adds around is cropped.

    extend: the border is repeated first. Without it a kernel longer than the stride misses neighbours there and scores
    fade towards 0, which an entropy map shows as a frame of doubt (the paper pads its images by 100 pixels instead).
    """

    def __init__(self, before: int, after: int, factor: int, *, kernel: int, extend: bool) -> None:
        cropped = (kernel - factor) // 2 + (factor if extend else 0)
        super().__init__(before, after, kernel, stride=factor, padding=cropped, bias=False)
        self.extend = extend

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Scores or features, enlarged."""
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="replicate") if self.extend else x)

    def start(self, mixing: Tensor) -> None:
        """`mixing` (before, after) at every pixel, enlarged plainly: by interpolation or, where kernel = stride, by
        repetition. With independent weights for each pixel of the kernel, training from scratch hardly starts.
        """
        kernel, factor = self.kernel_size[0], self.stride[0]
        weights = bilinear_kernel(factor) if kernel == 2 * factor else torch.ones(kernel, kernel)
        with torch.no_grad():
            self.weight.copy_(mixing[..., None, None] * weights)


def bilinear_kernel(factor: int) -> Tensor:
    """(2 * factor, 2 * factor): the weights with which a transposed convolution of this stride interpolates bilinearly."""
    line = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    return torch.outer(line, line)


def _padded_size(height: int, width: int) -> tuple[int, int]:
    return -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _conv(before: int, after: int, kernel: int) -> nn.Conv2d:
    layer = nn.Conv2d(before, after, kernel, padding=kernel // 2)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
