"""What decides a unit's result, as one number: a file that was made otherwise is told from one that may be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from activeseg.backtest.dataset import ReplayData, Sample
from activeseg.config import Settings
from activeseg.nn.device import pick_device, pick_precision

VERSION = 1
"""Raise it when the replay itself changes what comes out of the same data and settings."""

# Keys of the settings as they were when version 1 was written: they count at whatever value. A key that came later counts
# only where it is not at its default, which is how everything was before there was such a key.
_MODEL = frozenset(
    {
        "architecture", "width", "decoder_stride", "upsampling", "short_side", "mean", "std", "weights", "pretrained",
        "precision",
    }
)  # fmt: skip
_TRAINING = frozenset(
    {
        "batch_size", "augment", "crop", "scale", "color_jitter", "learning_rate", "head_lr_factor", "schedule",
        "momentum", "weight_decay", "warmup_steps", "clip_norm", "class_weights", "ema_decay",
    }
)  # fmt: skip
_LEFT_OUT = {
    # What only decides where or how fast, and what a replay sets itself.
    "model": frozenset({"device"}),
    "training": frozenset(
        {
            "recipe", "steps", "epochs", "validate_every", "patience", "save_every", "seed", "start", "min_train",
            "retrain_after", "retrain_days",
        }
    ),
    # No temperature is fitted in a replay, which has no validation images.
    "scoring": frozenset({"batch_size", "chunk_size", "readers", "devices", "compile", "budget", "temperature"}),
    "selection": frozenset(
        {
            "acquisition", "query_size", "control_share", "bootstrap_size", "val_size", "refill_below", "max_open_tasks",
            "seed", "partial_cells",
        }
    ),
}  # fmt: skip


def base_description(settings: Settings, data: ReplayData) -> dict[str, Any]:
    """What all units of a backtest have in common: network, recipe, classes, images and masks, and the precision that the
    device here computes in."""
    return {
        "version": VERSION,
        "model": _section(settings.model, _MODEL, _LEFT_OUT["model"]) | {"precision": _precision(settings)},
        "training": _section(settings.training, _TRAINING, _LEFT_OUT["training"]),
        "scoring": _section(settings.scoring, frozenset(), _LEFT_OUT["scoring"]),
        "selection": _section(settings.selection, frozenset(), _LEFT_OUT["selection"]),
        "classes": data.label_set.as_dict(),
        # Groups count below; the name of a pattern that finds none is how version 1 said that there are none.
        "group_pattern": settings.pool.group_pattern,
        "pool": _digest_of(data.pool.values()),
        "held": _digest_of(data.held.values()),
    } | ({"groups": digest(data.groups)} if data.groups else {})


def _precision(settings: Settings) -> str:
    """Not the setting: 'auto' means one thing on one machine and another on the next, and their units must not be mixed."""
    picked = pick_precision(pick_device(settings.model.device), settings.model.precision)
    # The first units were made where auto is float32, and call it that.
    return "auto" if picked == "float32" else picked


def digest(value: Any) -> str:
    """sha256 of a JSON value, however its keys are ordered."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def unit_fingerprint(
    base: Mapping[str, Any], *, strategy: str, seed: int, steps: int, labels: Iterable[int], labelled: Iterable[Sample]
) -> str:
    """Of the training on these images and of the choice after it. labels: of all rounds so far and of the next one."""
    return digest(
        {
            "base": base,
            "strategy": strategy,
            "seed": seed,
            "steps": steps,
            "labels": list(labels),
            "labelled": sorted(sample.identity for sample in labelled),
        }
    )


def _section(section: BaseModel, always: frozenset[str], left_out: frozenset[str]) -> dict[str, Any]:
    values = section.model_dump(mode="json", exclude=set(left_out))
    apart = section.model_dump(mode="json", exclude=set(left_out), exclude_defaults=True)
    return {key: value for key, value in values.items() if key in always or key in apart}


def _digest_of(samples: Iterable[Sample]) -> str:
    return digest(sorted(sample.identity for sample in samples))
