"""Image-specific class saliency (Simonyan, Vedaldi and Zisserman 2013, section 3): one backward pass to the pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from activeseg.errors import NonFiniteScoreError
from activeseg.explain.scores import ClassScore, as_seen, evaluating
from activeseg.records import InputPolicy


def saliency_map(
    module: nn.Module,
    pixels: npt.NDArray[np.uint8],
    policy: InputPolicy,
    *,
    target: int,
    segmentation: bool,
    device: torch.device,
    region: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float32]:
    """M[i, j] = max over colour channels of |dS_c/dI[i, j]| at the image (H, W, 3) uint8: (H, W) float32, >= 0.

    S_c is the class's score before softmax: output `target` of a classification network; with `segmentation` the sum of
    channel `target` over all pixels, or over `region` (H, W) bool only. I are the pixels on the scale 0..255 after the
    policy's resize and before its mean and std, so M is score per grey level. Where that would be more than LARGEST_INPUT
    pixels, they are shrunk to it (`as_seen`). Where they were resized, M is brought back to (H, W) bilinearly. For a grey
    image, three equal channels, M is still the largest of the three.
    Raises ConfigError for an unknown target and NonFiniteScoreError for a gradient that is NaN or infinite.
    """
    score = ClassScore(module, policy, target, segmentation)
    with evaluating(module, device):
        image = score.tensor(as_seen(pixels, policy), device).requires_grad_(True)
        wanted = torch.from_numpy(region).to(device) if region is not None else None
        (gradient,) = torch.autograd.grad(score.total(score.to_inputs(image), wanted), image)
    saliency = gradient[0].abs().amax(dim=0).float().cpu().numpy()
    if not np.isfinite(saliency).all():
        raise NonFiniteScoreError(f"the gradient of output {target} is NaN or infinite: the weights are at fault")
    return _at_size(saliency, (pixels.shape[0], pixels.shape[1]))


def _at_size(values: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    if values.shape == size:
        return values
    return np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR))
