"""images -> embeddings, before there is a model: what the pretrained encoder sees in them, for a first query that spreads."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice

import safetensors.torch
from torch import nn

from activeseg.db import embeddings, images
from activeseg.db.models import Round, RoundStatus
from activeseg.errors import ConfigError
from activeseg.initial import initial_network
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.device import pick_device
from activeseg.nn.infer import score_images
from activeseg.records import ImageRef, ImageScore, StageReport
from activeseg.workspace import Workspace

Progress = Callable[[int, int], None]
"""Called with (images done, images planned)."""


def embed_pool(workspace: Workspace, round_id: int, *, on_progress: Progress | None = None) -> StageReport:
    """Embed the pool with the network's start weights for this first round, which then chooses by k-center.

    Commits [scoring] chunk_size images at a time, so a killed run goes on. A round that is chosen already is left alone.
    Images that cannot be read are quarantined with the reason. Raises ConfigError where the start weights are random,
    CheckpointError where they cannot be had.
    """
    started = time.monotonic()
    with workspace.database.read() as session:
        if session.get_one(Round, round_id).status != RoundStatus.OPEN:
            return StageReport("embed", seconds=time.monotonic() - started)
    segmenter = _start_network(workspace)
    name = _name(workspace, segmenter)
    with workspace.database.write() as session:
        embedder = embeddings.embedder(session, name)
        planned = embeddings.count_missing(session, embedder, embeddings.in_pool())
    done, failed = _embed(workspace, segmenter, embedder, lambda count: on_progress and on_progress(count, planned))
    with workspace.database.write() as session:
        row = session.get_one(Round, round_id)
        told = {"embedder": name, "val_size": workspace.settings.selection.val_size}
        # A new dictionary: changes inside one are not seen.
        row.acquisition, row.selection = "kcenter", {**(row.selection or {}), **told}
    return StageReport("embed", done, failed, time.monotonic() - started, {"weights": segmenter.model_version})


def require_start_weights(workspace: Workspace) -> None:
    """Raises ConfigError where the network would start at random: what it sees then tells nothing."""
    model = workspace.settings.model
    if not model.weights and not model.pretrained:
        raise ConfigError(
            '[selection] bootstrap = "kcenter" compares images by pretrained weights, and [model] has none: '
            '`activeseg weights import FILE`, or set [model] pretrained = true or bootstrap = "random"'
        )


def _start_network(workspace: Workspace) -> Segmenter:
    """The network as a first training would begin with it, named by its weights."""
    require_start_weights(workspace)
    weights = workspace.settings.model.weights
    return initial_network(workspace, model_version=weights[:12] if weights else "published")


def _name(workspace: Workspace, segmenter: Segmenter) -> str:
    """Of the embedder: by everything that decides an embedding besides the image."""
    encoder = segmenter.module.encoder
    assert isinstance(encoder, nn.Module)
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    how = {
        "architecture": segmenter.spec.architecture,
        "input_policy": segmenter.spec.input_policy.as_dict(),
        "precision": workspace.settings.model.precision,
        "weights": hashlib.sha256(safetensors.torch.save(weights)).hexdigest(),
    }
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
    return f"start weights of {segmenter.spec.architecture}, {digest}"


def _embed(workspace: Workspace, segmenter: Segmenter, embedder: int, told: Callable[[int], object]) -> tuple[int, int]:
    """Images embedded, and images that could not be."""
    done, failed = 0, 0
    stream = score_images(
        segmenter,
        _missing(workspace, embedder),
        partial(workspace.read_input, policy=segmenter.spec.input_policy),
        device=pick_device(workspace.settings.model.device),
        precision=workspace.settings.model.precision,
        batch_size=workspace.settings.scoring.batch_size,
        readers=workspace.settings.scoring.readers,
    )
    with closing(stream):
        while chunk := list(islice(stream, workspace.settings.scoring.chunk_size)):
            vectors = {one.image_id: one.feature for one in chunk if isinstance(one, ImageScore) and one.feature}
            bad = {one.image_id: one.reason for one in chunk if not isinstance(one, ImageScore)}
            with workspace.database.write() as session:
                embeddings.insert(session, embedder, vectors)
                images.quarantine(session, bad)
            done, failed = done + len(vectors), failed + len(bad)
            told(done + failed)
    return done, failed


def _missing(workspace: Workspace, embedder: int) -> Iterator[ImageRef]:
    for page in embeddings.missing_pages(workspace.database, embedder, embeddings.in_pool()):
        yield from page
