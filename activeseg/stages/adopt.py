"""weights -> a checkpoint: a network trained elsewhere joins without a training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa
from torch import Tensor

from activeseg.core.labels import LabelSet
from activeseg.db import images
from activeseg.db.models import Checkpoint
from activeseg.errors import CheckpointError, LabelSetMismatch
from activeseg.nn.checkpoint import (
    NetworkSpec,
    Segmenter,
    checkpoint_bytes,
    import_weights,
    new_segmenter,
    read_spec,
    read_weights,
)
from activeseg.nn.zoo import has_aux, load_pretrained, published_label_set, published_weights
from activeseg.records import StageReport
from activeseg.workspace import Workspace


def adopt_weights(workspace: Workspace, file: Path | None) -> StageReport:
    """Store a segmentation network's weights as a checkpoint of [model] and [labels]; adopting them again writes nothing.

    file: a .safetensors file or a torch state dict, as torchvision or a checkpoint names its layers; None downloads the
    weights torchvision publishes.

    A checkpoint says which classes, network and input it was trained for, and so does torchvision of its own; of a bare
    state dict only the number of classes is known.

    Raises CheckpointError for weights that do not fit [model], LabelSetMismatch where they are for other classes,
    ConfigError where torchvision publishes none.
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
        weights = read_weights(import_weights(file))
        described = read_spec(file.read_bytes(), str(file)) if file.suffix == ".safetensors" else None
        if described is not None:
            _require_same_network(file, described, _spec(workspace, aux=described.aux))
        return weights
    architecture = workspace.settings.model.architecture
    # An encoder alone, which is all there is for some, has no classes and predicts nothing.
    _require_published_classes(architecture, published_label_set(architecture), workspace.label_set)
    return published_weights(architecture)


def _spec(workspace: Workspace, *, aux: bool) -> NetworkSpec:
    model, labels = workspace.settings.model, workspace.label_set
    policy = workspace.input_policy
    return NetworkSpec(model.architecture, model.width, model.decoder_stride, labels, policy, model.upsampling, aux)


def _require_same_network(file: Path, theirs: NetworkSpec, ours: NetworkSpec) -> None:
    if not theirs.label_set.same_classes(ours.label_set):
        raise LabelSetMismatch(
            f"checkpoint {file} knows the classes {theirs.label_set.sentence()}; [labels] has {ours.label_set.sentence()}: "
            f"set {theirs.label_set.settings_unlike(ours.label_set)} as it was there, or train a new checkpoint"
        )
    there, here = _settings(theirs), _settings(ours)
    unlike = [f"{key} {there[key]} (here {here[key]})" for key in here if there[key] != here[key]]
    if unlike:
        raise CheckpointError(f"checkpoint {file} was trained with {', '.join(unlike)}: set [model] to the same")


def _settings(spec: NetworkSpec) -> dict[str, object]:
    """A spec by the keys of [model]."""
    network = {"architecture": spec.architecture, "width": spec.width, "decoder_stride": spec.decoder_stride}
    policy = replace(spec.input_policy, reduced=False)  # follows from short_side, and older checkpoints do not know of it
    return network | {"upsampling": spec.upsampling} | policy.as_dict()


def _require_published_classes(architecture: str, published: LabelSet, labels: LabelSet) -> None:
    # An ignored class has no channel.
    names = tuple(labels.names[index] for index in labels.channels)
    if names != published.names or labels.overlap:
        raise LabelSetMismatch(
            f"torchvision's {architecture} knows the classes {published.sentence()}; [labels] has {labels.sentence()}: save "
            "what `activeseg weights classes` prints as the file of [labels]"
        )


def _segmenter(workspace: Workspace, weights: Mapping[str, Tensor]) -> Segmenter:
    """The network with all of its weights from outside, or an error: what starts at random must be trained."""
    model, labels = workspace.settings.model, workspace.label_set
    aux = not has_aux(model.architecture) or any(name.startswith("aux_classifier.") for name in weights)
    segmenter = new_segmenter(_spec(workspace, aux=aux), model_version="adopted")
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
