"""How the demo trains: few images, a narrow network, and seconds instead of hours."""

from __future__ import annotations

from dataclasses import dataclass

from activeseg.config import ModelSection, TrainingSection


@dataclass(frozen=True, slots=True)
class DemoRecipe:
    """Sizes and settings of the demo on synthetic scenes.

    start, val, pool: numbers of scenes for `write_scenes`. model, training: sections of the settings it writes.
    first_steps: optimiser steps of the very first checkpoint, which has no champion to start from.
    """

    start: int
    val: int
    pool: int
    seed: int
    first_steps: int
    model: ModelSection
    training: TrainingSection


DEMO_RECIPE = DemoRecipe(
    start=24,
    val=40,
    pool=160,
    seed=7,
    # The first checkpoint is trained while Label Studio starts, so it may take a little longer than a round.
    first_steps=240,
    model=ModelSection(
        architecture="fcn_mobilenet_v2",
        # Half the channels cost about half the time; a step at a third measured no cheaper.
        width=0.5,
        decoder_stride=4,
        # x / 127.5 - 1 would do; a smaller deviation lifts the contrast of dusk and haze.
        mean=(0.45, 0.45, 0.45),
        std=(0.25, 0.25, 0.25),
        precision="float32",
    ),
    training=TrainingSection(
        steps=110,
        # Small batches: more steps for the same seconds.
        batch_size=4,
        # Whole scenes: where something is says much about what it is.
        crop=(120, 160),
        scale=(0.9, 1.4),
        # From scratch, with batch norm: ten times the rate that suits pretrained weights.
        learning_rate=0.1,
        head_lr_factor=2.0,
        weight_decay=1e-4,
        warmup_steps=10,
        clip_norm=5.0,
        # So few steps leave nothing to average and nothing to choose from.
        ema_decay=0.0,
        validate_every=0,
        # Each round goes on from the champion: so few steps are too few to begin again from nothing.
        start="champion",
        min_train=8,
        retrain_after=10,
    ),
)

# Real photographs: half size, so that two rounds fit a coffee break on two cores without pretrained weights.
REAL_RECIPE = DemoRecipe(
    start=24,
    val=40,
    pool=120,
    seed=7,
    first_steps=150,
    model=ModelSection(
        architecture="fcn_mobilenet_v2",
        width=0.5,
        decoder_stride=4,
        short_side=180,
        mean=(0.45, 0.45, 0.45),
        std=(0.25, 0.25, 0.25),
        precision="float32",
    ),
    training=TrainingSection(
        steps=100,
        batch_size=8,
        crop=(160, 224),
        scale=(0.9, 1.4),
        learning_rate=0.1,
        head_lr_factor=2.0,
        warmup_steps=10,
        ema_decay=0.0,
        validate_every=0,
        start="champion",
        retrain_after=10,
    ),
)
