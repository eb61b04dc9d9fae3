"""A classifier without a training: what it sees can be told from a picture by eye."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from activeseg.nn.classifier import Classifier
from activeseg.preannotate import PreAnnotator
from activeseg.records import InputPolicy
from activeseg.workspace import Workspace

POLICY = InputPolicy(None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Redness(nn.Module):
    """'Ball' the more red there is, 'cloud' always a little: its gradient points at what is red."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, images: Tensor) -> Tensor:
        ball = (images[:, 0] - images[:, 1]).clamp(min=0).square().mean(dim=(1, 2))
        return torch.stack([ball, self.threshold.expand(len(images))], dim=1)


def redness(threshold: float = 0.0, *categories: str) -> Classifier:
    """A classifier of two categories, 'Ball' and 'cloud' unless others are named."""
    return Classifier(Redness(threshold), categories or ("Ball", "cloud"), POLICY, "redness")


def annotator_of(workspace: Workspace, threshold: float = 0.0, **given: str) -> PreAnnotator:
    """Outlines balls on images redder than the threshold."""
    return PreAnnotator.of(redness(threshold), workspace.label_set, given, torch.device("cpu"))
