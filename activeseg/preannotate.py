"""A classifier and images -> stored predictions for the first round: one object outlined, where no checkpoint exists yet.

Weakly supervised localisation (Simonyan, Vedaldi and Zisserman 2013, section 3.2): the classifier's likeliest category, the
pixels its score depends on, and the object that a graph cut grows from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.db import checkpoints, labeling
from activeseg.db.models import Prediction
from activeseg.errors import ConfigError, DataError, SaliencyError
from activeseg.explain.graphcut import graph_cut_mask
from activeseg.explain.saliency import saliency_map
from activeseg.explain.scores import as_seen
from activeseg.nn.classifier import Classifier
from activeseg.nn.data import to_input, to_pixels
from activeseg.records import ImageRef
from activeseg.workspace import Workspace


@dataclass(frozen=True)
class PreAnnotator:
    """A classifier and what its categories are called here.

    classes: category number -> class index of `label_set`; categories that are not in it are nothing we ask for.
    """

    classifier: Classifier
    label_set: LabelSet
    classes: Mapping[int, int]
    device: torch.device

    @classmethod
    def of(cls, classifier: Classifier, label_set: LabelSet, given: Mapping[str, str], device: torch.device) -> PreAnnotator:
        """given: category -> class, see `map_categories`, beside the categories that are named like classes."""
        return cls(classifier, label_set, map_categories(classifier, label_set, given), device)

    @cached_property
    def source(self) -> str:
        """What `predictions.source` says: the classifier's name, and a digest of all that decides what it draws."""
        digest = hashlib.sha256(json.dumps([self.label_set.fingerprint, sorted(self.classes.items())]).encode())
        for tensor in self.classifier.module.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return f"graphcut:{self.classifier.name[:80]}@{digest.hexdigest()[:8]}"


def require_no_champion(workspace: Workspace) -> None:
    """Raise ConfigError where there is a champion: its masks are better."""
    with workspace.database.read() as session:
        champion = checkpoints.champion(session)
    if champion is not None:
        raise ConfigError(
            f"--pre-annotate: the champion {champion.model_version} draws its own masks, which are better; leave it out"
        )


def map_categories(classifier: Classifier, label_set: LabelSet, given: Mapping[str, str]) -> dict[int, int]:
    """Category number -> class index: by equal names in whatever case, the ignored class excepted, and `given` above them.

    A name that several categories have stands for all. Raises ConfigError for an unknown name and where nothing matches.
    """
    names = [category.casefold() for category in classifier.categories]
    channels = {label_set.names[index].casefold(): index for index in label_set.channels}
    found = {number: channels[name] for number, name in enumerate(names) if name in channels}
    for category, class_name in given.items():
        index = label_set.index_of(class_name)
        numbers = [number for number, name in enumerate(names) if name == category.casefold()]
        found |= dict.fromkeys(numbers or [classifier.index_of(category)], index)
    if not found:
        raise ConfigError(
            f"no category of classifier {classifier.name} ({', '.join(classifier.categories[:5])}, ...) has the name of a "
            f"class ({', '.join(label_set.names)}): name some with --map CATEGORY=CLASS"
        )
    return found


def pre_annotate_and_store(
    workspace: Workspace, annotator: PreAnnotator, images: Sequence[ImageRef]
) -> tuple[dict[int, str], dict[int, str]]:
    """Outline the object of each image's likeliest category and store it as a prediction.

    Returns, by image id, why images cannot be read, and why others get no mask: their likeliest category is no class, or
    the saliency points nowhere.
    """
    unreadable: dict[int, str] = {}
    without: dict[int, str] = {}
    annotator.classifier.module.to(annotator.device).eval()
    for ref in images:
        try:
            pixels = workspace.read_image(ref)
        except DataError as error:
            unreadable[ref.image_id] = str(error)
            continue
        if (reason := _annotate(workspace, annotator, ref, pixels)) is not None:
            without[ref.image_id] = reason
    return unreadable, without


def _annotate(workspace: Workspace, annotator: PreAnnotator, ref: ImageRef, pixels: npt.NDArray[np.uint8]) -> str | None:
    """Store the mask of the image's one object; returns why there is none."""
    classifier, device = annotator.classifier, annotator.device
    category = _likeliest(annotator, pixels)
    if category not in annotator.classes:
        return f"its likeliest category {classifier.categories[category]!r} is mapped to no class"
    saliency = saliency_map(
        classifier.module, pixels, classifier.input_policy, target=category, segmentation=False, device=device
    )
    try:
        outline = graph_cut_mask(pixels, saliency)
    except SaliencyError as error:
        return str(error)
    _store(workspace, annotator.source, ref, _mask_of(outline, annotator.classes[category], annotator.label_set))
    return None


def _likeliest(annotator: PreAnnotator, pixels: npt.NDArray[np.uint8]) -> int:
    policy = annotator.classifier.input_policy
    batch = to_pixels(as_seen(pixels, policy))[None]
    with torch.inference_mode():
        scores = annotator.classifier.module(to_input(batch, policy, annotator.device))
    return int(scores[0].argmax())


def _mask_of(outline: npt.NDArray[np.bool_], index: int, label_set: LabelSet) -> Mask:
    """Whatever lies around the object: unlabelled where classes exclude each other, of no class where they overlap."""
    if label_set.overlap:
        planes = np.zeros((len(label_set.names), *outline.shape), np.bool_)
        planes[index] = outline
        return planes
    return np.where(outline, index, UNLABELED).astype(np.uint8)


def _store(workspace: Workspace, source: str, ref: ImageRef, mask: Mask) -> None:
    stored = workspace.store_mask(mask)
    with workspace.database.write() as session:
        labeling.store_prediction(
            session,
            Prediction(image_id=ref.image_id, source=source, mask_location=stored.location, mask_sha256=stored.sha256),
        )
