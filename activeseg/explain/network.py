"""Segmentation and classification networks seen alike: outputs with names, whose scores can be differentiated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from activeseg.core.entropy import predicted_channels
from activeseg.errors import ConfigError, SaliencyError
from activeseg.explain.scores import ClassScore, as_seen, evaluating
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.classifier import Classifier
from activeseg.records import InputPolicy

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Network:
    """name: model version or architecture. outputs: names of the scores or channels. index_of: output of a name.

    segmentation: whether the module returns {'out': logits (N, C, h, w)} and not scores (N, K). sigmoid: whether its
    outputs are independent of each other.
    """

    name: str
    module: nn.Module
    policy: InputPolicy
    outputs: tuple[str, ...]
    index_of: Callable[[str], int]
    segmentation: bool
    sigmoid: bool = False

    @classmethod
    def of_segmenter(cls, segmenter: Segmenter) -> Network:
        """Its outputs are the classes of its label set but the ignored one."""
        label_set = segmenter.spec.label_set
        names = tuple(label_set.names[index] for index in label_set.channels)

        def index_of(name: str) -> int:
            if name not in names:
                raise ConfigError(f"{segmenter.model_version} knows no class {name!r}; it has: {', '.join(names)}")
            return names.index(name)

        sigmoid = segmenter.spec.head == "sigmoid"
        policy = segmenter.spec.input_policy
        return cls(segmenter.model_version, segmenter.module, policy, names, index_of, segmentation=True, sigmoid=sigmoid)

    @classmethod
    def of_classifier(cls, classifier: Classifier) -> Network:
        """Its outputs are the categories."""
        policy, names = classifier.input_policy, classifier.categories
        return cls(classifier.name, classifier.module, policy, names, classifier.index_of, segmentation=False)

    def target(self, image: Pixels, name: str | None, *, device: torch.device) -> int:
        """The output of this name or, without one, the top one of an image (H, W, 3) uint8.

        The top one of a classifier is the category of the highest score, of a segmentation network the class predicted
        on most pixels or, where classes overlap and none is predicted anywhere, the one of the largest mean probability.
        Raises ConfigError for a name there is none of.
        """
        if name is not None:
            return self.index_of(name)
        output = self._output(image, device)
        if not self.segmentation:
            return int(output[0].argmax())
        pixels = self._predicted(output).sum(axis=(1, 2))
        return int(pixels.argmax() if pixels.any() else torch.sigmoid(output[0]).mean(dim=(1, 2)).argmax())

    def region(self, image: Pixels, target: int, *, device: torch.device) -> npt.NDArray[np.bool_]:
        """Where a segmentation network predicts an output, (h, w) bool at the size of its input.

        Raises SaliencyError where that is nowhere.
        """
        region: npt.NDArray[np.bool_] = self._predicted(self._output(image, device))[target]
        if not region.any():
            raise SaliencyError(
                f"{self.name} predicts {self.outputs[target]} on no pixel of this image; leave out --predicted-only"
            )
        return region

    def _predicted(self, output: torch.Tensor) -> npt.NDArray[np.bool_]:
        """Logits (1, C, h, w) -> (C, h, w)."""
        predicted = predicted_channels(output, sigmoid=self.sigmoid)[0].cpu().numpy()
        planes: npt.NDArray[np.bool_] = predicted if self.sigmoid else np.arange(len(self.outputs))[:, None, None] == predicted
        return planes

    def _output(self, image: Pixels, device: torch.device) -> torch.Tensor:
        score = ClassScore(self.module, self.policy, 0, self.segmentation)
        with evaluating(self.module, device), torch.no_grad():
            inputs = score.to_inputs(score.tensor(as_seen(image, self.policy), device))
            output: torch.Tensor = self.module(inputs)["out"] if self.segmentation else self.module(inputs)
        return output
