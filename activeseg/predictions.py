"""A checkpoint and images -> stored predictions: the masks and entropy maps that annotators are shown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from functools import partial

import numpy as np

from activeseg.core.entropy import max_entropy
from activeseg.core.labels import Mask
from activeseg.core.masks import despeckle
from activeseg.db import checkpoints, labeling
from activeseg.db.models import Checkpoint, Prediction
from activeseg.explain.heatmap import heatmap
from activeseg.imaging.specks import despeckle_planes
from activeseg.imaging.thumbnails import encode_png
from activeseg.nn.checkpoint import load_checkpoint
from activeseg.nn.device import pick_device
from activeseg.nn.infer import Prediction as Predicted
from activeseg.nn.infer import predict_masks
from activeseg.records import ImageRef
from activeseg.workspace import Workspace


def source_of(checkpoint: Checkpoint) -> str:
    """What `predictions.source` says of a checkpoint's predictions."""
    return f"checkpoint:{checkpoint.model_version}"


def shown_version(source: str) -> str:
    """The model version Label Studio shows for a source.

    It shows one version per project, so all pre-annotations have the same, whichever classifier made them.
    """
    kind, _, name = source.partition(":")
    return name if kind == "checkpoint" else kind


def predict_and_store(
    workspace: Workspace, checkpoint: Checkpoint, images: Sequence[ImageRef], *, anew: Collection[int] = ()
) -> dict[int, str]:
    """Predict images and store each result as it comes; returns why, by image id, for those that cannot be read.

    Specks below [labelstudio] min_region_pixels are merged into their surroundings; the entropy map is drawn in jet on
    the fixed scale from 0 to the largest entropy there is (`core.entropy.max_entropy`). anew: ids of images whose stored
    mask is damaged and replaced. Raises LabelSetMismatch where the checkpoint knows other classes than are configured.
    """
    checkpoints.require_labels(checkpoint, workspace.label_set)
    device = pick_device(workspace.settings.model.device)
    data = workspace.artifacts.read(checkpoint.location, sha256=checkpoint.sha256)
    segmenter = load_checkpoint(data, model_version=checkpoint.model_version, device=device)
    upper = max_entropy(segmenter.spec.label_set.num_classes, sigmoid=segmenter.spec.head == "sigmoid")
    precision = workspace.settings.model.precision
    failures: dict[int, str] = {}
    read = partial(workspace.read_input, policy=segmenter.spec.input_policy)
    # One by one: the last bits of a batch's logits depend on its size, and a push that goes on after a kill has other batches.
    with closing(predict_masks(segmenter, images, read, device=device, precision=precision, batch_size=1)) as stream:
        for item in stream:
            if isinstance(item, Predicted):
                _store(workspace, checkpoint, item, upper, anew=item.image_id in anew)
            else:
                failures[item.image_id] = item.reason
    return failures


def _store(workspace: Workspace, checkpoint: Checkpoint, item: Predicted, upper: float, *, anew: bool) -> None:
    stored = workspace.store_mask(without_specks(item.mask, workspace.settings.labelstudio.min_region_pixels))
    picture = workspace.artifacts.put(encode_png(np.asarray(heatmap(item.entropy, upper=upper))), "picture", ".png")
    with workspace.database.write() as session:
        labeling.store_prediction(
            session,
            Prediction(
                image_id=item.image_id,
                source=source_of(checkpoint),
                checkpoint_id=checkpoint.id,
                mask_location=stored.location,
                mask_sha256=stored.sha256,
                entropy_location=picture.location,
            ),
            anew=anew,
        )


def without_specks(mask: Mask, min_pixels: int) -> Mask:
    """A mask whose specks of fewer than `min_pixels` pixels are merged into their surroundings."""
    return despeckle_planes(mask, min_pixels) if mask.ndim == 3 else despeckle(mask, min_pixels)
