"""What `[training] recipe` gives the keys of that section that are not set."""

from __future__ import annotations

from typing import Any

# What `recipe` gives the keys of [training] that are not set. "modern" is the defaults themselves.
RECIPES: dict[str, dict[str, Any]] = {
    "modern": {},
    # Void as a class of its own is [labels] include_void, and x / 127.5 - 1 is [model] mean and std 0.5.
    "documents": {
        "epochs": 70,
        "batch_size": 64,
        "augment": "none",
        "crop": (224, 224),
        "color_jitter": 0.0,
        "learning_rate": 0.01,
        "head_lr_factor": 1.0,
        "schedule": "constant",
        "momentum": 0.9,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "clip_norm": 0.0,
        "class_weights": "none",
        "ema_decay": 0.0,
        "validate_every": 0,
        "patience": 0,
    },
}
