"""weights -> a checkpoint: a network trained elsewhere joins without a training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa
from torch import Tensor

from activeseg.db import images
from activeseg.db.models import Checkpoint
from activeseg.errors import CheckpointError, LabelSetMismatch
from activeseg.nn.checkpoint import NetworkSpec, Segmenter, checkpoint_bytes, import_weights, new_segmenter, read_weights
from activeseg.nn.zoo import has_aux, load_pretrained, published_categories, published_weights
from activeseg.records import StageReport
from activeseg.workspace import Workspace


def adopt_weights(workspace: Workspace, file: Path | None) -> StageReport:
    """Store a segmentation network's weights as a checkpoint of [model] and [labels]; adopting them again writes nothing.

    file: a .safetensors file or a torch state dict, as torchvision or a checkpoint names its layers; None downloads the
    weights torchvision publishes.

    Raises CheckpointError for weights that do not fit [model], LabelSetMismatch where they have another number of
    classes, ConfigError where torchvision publishes none.
    """
    started = time.monotonic()
    segmenter = _segmenter(workspace, _read(workspace, file))
    artifact = workspace.artifacts.put(checkpoint_bytes(segmenter), "checkpoint", ".safetensors")
    with workspace.database.write() as session:
        known = session.scalar(sa.select(Checkpoint).where(Checkpoint.sha256 == artifact.sha256).limit(1))
        checkpoint = known or Checkpoint(
            model_version=f"{segmenter.spec.architecture}-adopted-{artifact.sha256[:8]}",
            location=artifact.location,
            sha256=artifact.sha256,
            architecture=segmenter.spec.architecture,
            spec=segmenter.spec.as_dict(),
            label_set_id=images.label_set_row(session, workspace.label_set).id,
        )
        session.add(checkpoint)
        version = checkpoint.model_version
    details = {"model_version": version, "classes": segmenter.spec.label_set.num_classes}
    return StageReport("adopt", int(known is None), 0, time.monotonic() - started, details)


def _read(workspace: Workspace, file: Path | None) -> Mapping[str, Tensor]:
    if file is not None:
        return read_weights(import_weights(file))
    architecture = workspace.settings.model.architecture
    published_categories(architecture)  # an encoder alone, which is all there is for some, predicts nothing
    return published_weights(architecture)


def _segmenter(workspace: Workspace, weights: Mapping[str, Tensor]) -> Segmenter:
    """The network with all of its weights from outside, or an error: what starts at random must be trained."""
    model, labels = workspace.settings.model, workspace.label_set
    aux = not has_aux(model.architecture) or any(name.startswith("aux_classifier.") for name in weights)
    policy = workspace.input_policy
    spec = NetworkSpec(model.architecture, model.width, model.decoder_stride, labels, policy, model.upsampling, aux)
    segmenter = new_segmenter(spec, model_version="adopted")
    left = load_pretrained(segmenter.module, model.architecture, weights)
    if not left:
        return segmenter
    layer, reason = next(iter(left.items()))
    if reason == "not in the file":
        raise CheckpointError(
            f"weights hold no trained {model.architecture}: layer {layer} is {reason}; name them in [model] weights "
            "and train, or adopt a segmentation network's"
        )
    raise LabelSetMismatch(
        f"layer {layer} of the weights is for other classes than the {labels.num_classes} of [labels] ({reason}): list the "
        "classes they were trained for; `activeseg weights classes` prints those of torchvision's weights"
    )
