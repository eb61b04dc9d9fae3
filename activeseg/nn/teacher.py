"""Pseudo-labels: what the averaged network is sure of on unlabelled images teaches the network that is trained.

Mean teacher (Tarvainen and Valpola, 2017) with confident hard labels on a plain view for a strongly varied one (FixMatch, Sohn
et al., 2020). Varied by colours and CutMix: a segmentation network's classes have no empty regions between them that the usual
variations could find, masks of cutout and CutMix helped (French et al., "Semi-supervised semantic segmentation needs strong,
varied perturbations", 2020), and CutMix wastes no pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from activeseg.config import TrainingSection
from activeseg.core.labels import UNLABELED
from activeseg.nn.crops import Views, mixed
from activeseg.nn.data import to_input
from activeseg.nn.device import autocast
from activeseg.nn.ema import MovingAverage
from activeseg.nn.losses import segmentation_loss
from activeseg.records import InputPolicy

MEMORY = 0.99
"""Weight a step's statistics keep at the next one."""

LEAST_THRESHOLD = 0.5
"""Below it the teacher gives all other classes together more than the one it names."""


class Teacher:
    """The averaged network as a source of targets, with the confidence it has shown in each class.

    state: running sums that decay by MEMORY a step, float64: 'confidence' (C,), the probabilities of predicted pixels by
    predicted class; 'pixels' (C,), their number; 'labelled' and 'seen' (), pixels that became targets and pixels looked at
    (both times C where classes overlap).
    """

    def __init__(self, average: MovingAverage, num_classes: int, config: TrainingSection, *, sigmoid: bool) -> None:
        self.average, self.config, self.sigmoid = average, config, sigmoid
        device = next(average.module.parameters()).device
        shapes = {"confidence": (num_classes,), "pixels": (num_classes,), "labelled": (), "seen": ()}
        self.state = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}

    @torch.no_grad()
    def targets(self, views: Views, policy: InputPolicy, device: torch.device, precision: str) -> tuple[Tensor, Tensor]:
        """Pseudo-labels of `views.strong`, as `segmentation_loss` takes targets, and the share of its pixels that have one.

        Takes note of what the teacher said. Nothing outside the images is labelled.
        """
        with autocast(device, precision):
            logits = self.average.module(to_input(views.weak, policy, device))["out"].float()
        inside, pasted = views.inside.to(device), views.pasted.to(device)
        probabilities = logits.sigmoid() if self.sigmoid else logits.softmax(dim=1)
        self.note(probabilities, inside)
        find = overlapping_labels if self.sigmoid else exclusive_labels
        labels = find(probabilities, self.thresholds(), self.config.pseudo_threshold)
        outside = ~(inside[:, None] if self.sigmoid else inside)
        targets = mixed(labels.masked_fill(outside, UNLABELED), pasted)
        labelled = (targets != UNLABELED).sum()
        seen = mixed(inside, pasted).sum() * (labels[0].numel() // inside[0].numel())
        for name, value in (("labelled", labelled), ("seen", seen)):
            self.state[name].mul_(MEMORY).add_(value)
        return targets, labelled / seen.clamp(min=1)

    def note(self, probabilities: Tensor, inside: Tensor) -> None:
        """Remember how sure the teacher is of the pixels it gives each class: (N, C, H, W), of which (N, H, W) bool count."""
        classes = probabilities.shape[1]
        if self.sigmoid:
            present = (probabilities >= 0.5) & inside[:, None]
            confidence = probabilities.double().where(present, 0).sum(dim=(0, 2, 3))
            pixels = present.sum(dim=(0, 2, 3))
        else:
            best, predicted = probabilities.max(dim=1)
            predicted, best = predicted[inside], best[inside].double()
            confidence = torch.bincount(predicted, weights=best, minlength=classes)
            pixels = torch.bincount(predicted, minlength=classes)
        self.state["confidence"].mul_(MEMORY).add_(confidence)
        self.state["pixels"].mul_(MEMORY).add_(pixels)

    def thresholds(self) -> Tensor:
        """(C,) float32, the probability that makes a label of each class: [training] pseudo_threshold times the class's mean
        confidence relative to the best class's, at least LEAST_THRESHOLD; a class never predicted counts as the best.

        After FreeMatch (Wang et al., 2023), whose local threshold is MaxNorm(p_c) * tau. There p_c is the mean probability of
        the class, which for pixels would be its area: here it is taken over the pixels predicted as the class.
        """
        known = self.state["pixels"] > 0
        mean = self.state["confidence"] / self.state["pixels"].where(known, 1)
        best = mean.where(known, 0).max()
        relative = torch.where(known, mean / best.where(best > 0, 1), 1)
        return (self.config.pseudo_threshold * relative).clamp(min=LEAST_THRESHOLD).float()

    @property
    def labelled_share(self) -> float:
        """Share of the pixels lately seen that became targets; 0 before the first ones."""
        labelled, seen = (float(self.state[name]) for name in ("labelled", "seen"))
        return labelled / seen if seen else 0.0


def exclusive_labels(probabilities: Tensor, thresholds: Tensor, _absent: float = 0.0) -> Tensor:
    """(N, C, H, W) -> (N, H, W) uint8: the most probable class where it reaches its threshold (C,), else UNLABELED."""
    confidence, predicted = probabilities.max(dim=1)
    return predicted.to(torch.uint8).masked_fill(confidence < thresholds[predicted], UNLABELED)


def overlapping_labels(probabilities: Tensor, thresholds: Tensor, absent: float) -> Tensor:
    """(N, C, H, W) -> the same, uint8: 1 where a class's probability reaches its threshold (C,), 0 where that of its absence
    reaches `absent`, else UNLABELED."""
    labels = torch.full_like(probabilities, UNLABELED, dtype=torch.uint8)
    labels.masked_fill_(1 - probabilities >= absent, 0)
    return labels.masked_fill_(probabilities >= thresholds[:, None, None], 1)


def pseudo_loss(logits: dict[str, Tensor], targets: Tensor, share: Tensor, *, weights: Tensor | None) -> Tensor:
    """Mean loss in nats over all pixels of the views: those without a target add 0 (as in FixMatch), so that few confident
    pixels pull less than many. share: of the pixels, those with a target."""
    return segmentation_loss(logits, targets, weights=weights) * share
