"""The network before its first optimiser step: what [model] and [labels] describe, with the weights it begins with."""

from __future__ import annotations

from activeseg.nn.checkpoint import NetworkSpec, Segmenter, new_segmenter, read_weights
from activeseg.nn.zoo import load_pretrained
from activeseg.workspace import Workspace


def described_network(workspace: Workspace) -> NetworkSpec:
    """The network of the workspace's configuration."""
    model = workspace.settings.model
    return NetworkSpec(
        model.architecture,
        model.width,
        model.decoder_stride,
        workspace.label_set,
        workspace.input_policy,
        upsampling=model.upsampling,
    )


def initial_network(workspace: Workspace, *, model_version: str, seed: int = 0) -> Segmenter:
    """It with imported weights, published ones or random ones, on the CPU. seed: of whatever begins at random.

    Raises CheckpointError where weights are missing or do not fit.
    """
    model = workspace.settings.model
    segmenter = new_segmenter(described_network(workspace), model_version=model_version, seed=seed)
    if model.weights:
        location = workspace.artifacts.find("weights", model.weights)
        load_pretrained(segmenter.module, model.architecture, read_weights(workspace.artifacts.read(location)))
    elif model.pretrained:
        load_pretrained(segmenter.module, model.architecture)
    return segmenter
