"""Optimiser steps per second of `activeseg train` against a bare loop, in one process and in turn.

    OMP_NUM_THREADS=1 python scripts/bench_train.py --data DIR --steps 60

The command is the real one: a workspace with imported images, `train_challenger`, the default recipe. It reads, crops and
varies images, normalises, clips, averages weights, looks at the validation split and saves its state. The bare loop has the
same network, batch, precision and optimiser; its batches lie in memory as the network takes them, and it does zero_grad,
forward, cross_entropy, backward and step. After every --block steps of the command come as many bare ones, so that what
else the machine does meets both. Steps with a look or a save are taken out of the blocks and spread over their interval.

DIR holds train/images train/masks val/images val/masks classes.txt; without it, synthetic scenes of 480x360 are drawn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from activeseg.config import ModelSection, Settings, TrainingSection
from activeseg.core.labels import UNLABELED
from activeseg.db import lease, migrate
from activeseg.db.database import Database
from activeseg.db.models import Split
from activeseg.demo.scenes import write_scenes
from activeseg.nn.device import autocast, describe_device, pick_device, pick_precision
from activeseg.nn.zoo import build_model
from activeseg.stages.dataset import import_dataset
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace, open_workspace

LOOKS_IN_RUN = 2
"""Looks and saves while it measures; each is charged as often as the recipe has it."""

LEAST_BLOCKS = 2
"""A middle half needs two values."""


class BareLoop:
    """The least there is to a training step."""

    def __init__(self, settings: Settings, classes: int) -> None:
        model, training = settings.model, settings.training
        self.device, self.precision = pick_device(model.device), model.precision
        options = {"width": model.width, "decoder_stride": model.decoder_stride, "upsampling": model.upsampling}
        self.module = build_model(model.architecture, classes, **options).to(self.device).train()  # type: ignore[arg-type]
        self.optimizer = torch.optim.SGD(
            self.module.parameters(),
            lr=1e-3,
            momentum=training.momentum,
            nesterov=True,
            weight_decay=training.weight_decay,
            fused=True,
        )
        shape = (training.batch_size, *training.crop)
        self.batches = itertools.cycle([self._batch(shape, classes) for _ in range(4)])

    def _batch(self, shape: tuple[int, int, int], classes: int) -> tuple[torch.Tensor, torch.Tensor]:
        count, height, width = shape
        pixels = torch.randn(count, 3, height, width).contiguous(memory_format=torch.channels_last)
        return pixels.to(self.device), torch.randint(0, classes, shape).to(self.device)

    def run(self, steps: int) -> None:
        """Take steps."""
        for pixels, targets in itertools.islice(self.batches, steps):
            self.optimizer.zero_grad()
            with autocast(self.device, self.precision):
                scores = self.module(pixels)["out"]
            F.cross_entropy(scores.float(), targets, ignore_index=UNLABELED).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()


@dataclass(frozen=True)
class Spent:
    """Wall and processor seconds, of one moment or between two."""

    wall: float
    processor: float

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall - other.wall, self.processor - other.processor)


class Meter:
    """`on_progress` of the command: times its steps, and lets the bare loop run in between."""

    def __init__(self, bare: BareLoop, *, block: int, skip: int, every: int) -> None:
        self.bare, self.block, self.skip, self.every = bare, block, skip, every
        self.with_look: list[Spent] = []
        self.blocks: list[tuple[Spent, Spent]] = []
        self.in_block: list[Spent] = []
        self.to_skip = skip
        self.last = self._now()

    def __call__(self, done: int, planned: int) -> None:
        spent = self._now() - self.last
        if done % self.every == 0 or done == planned:
            self.with_look.append(spent)
        elif self.to_skip:
            self.to_skip -= 1  # the first step, and on a GPU the batches that were drawn while the bare loop ran
        else:
            self.in_block.append(spent)
        if len(self.in_block) == self.block:
            self._compare()
        self.last = self._now()

    def _compare(self) -> None:
        before = self._now()
        self.bare.run(self.block)
        spent = self._now() - before
        command, bare = mean(self.in_block), Spent(spent.wall / self.block, spent.processor / self.block)
        self.blocks.append((command, bare))
        self.in_block, self.to_skip = [], self.skip if self.bare.device.type == "cuda" else 0
        say(f"  command {1000 * command.wall:7.1f} ms a step, bare {1000 * bare.wall:7.1f} ms")

    def _now(self) -> Spent:
        if self.bare.device.type == "cuda":
            torch.cuda.synchronize(self.bare.device)
        return Spent(time.perf_counter(), time.process_time())


def mean(values: list[Spent]) -> Spent:
    return Spent(statistics.fmean(one.wall for one in values), statistics.fmean(one.processor for one in values))


def main() -> None:
    options = parse_options()
    require_blocks(options)
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder, workspace_in(Path(folder), options) as workspace:
        settings = workspace.settings
        bare = BareLoop(settings, workspace.label_set.num_classes)
        bare.run(3)
        device = bare.device
        meter = Meter(bare, block=options.block, skip=skipped(device), every=settings.training.validate_every)
        say(f"{describe_device(device)}, {torch.get_num_threads()} threads, {settings.model.architecture}")
        with lease.holding(workspace.database):
            report = train_challenger(workspace, reason="bench", on_progress=meter)
    print(json.dumps(summary(meter, settings, options) | {"command_seconds": round(report.seconds, 1)}))


def skipped(device: torch.device) -> int:
    """Steps that are not counted in the beginning."""
    return 6 if device.type == "cuda" else 2


def require_blocks(options: argparse.Namespace) -> None:
    """End here where the options leave too few blocks to compare."""
    device, every = pick_device(options.device), interval(options.steps)
    looks = options.steps // every + bool(options.steps % every)
    counted, skip = options.steps - looks, skipped(device)
    # Beside a GPU every block has steps of its own that are not counted.
    needed = LEAST_BLOCKS * options.block + skip * (LEAST_BLOCKS if device.type == "cuda" else 1)
    if counted < needed:
        sys.exit(
            f"--steps {options.steps} leaves {counted} steps without a look; {LEAST_BLOCKS} blocks of --block {options.block} "
            f"need {needed}: raise --steps or lower --block"
        )


def interval(steps: int) -> int:
    """Steps between looks, and between saves."""
    return max(1, steps // LOOKS_IN_RUN)


def summary(meter: Meter, settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {
        "device": describe_device(meter.bare.device),
        "precision": pick_precision(meter.bare.device, settings.model.precision),
        "threads": torch.get_num_threads(),
        "architecture": settings.model.architecture,
        "batch": settings.training.batch_size,
        "crop": settings.training.crop,
        "validation_images": options.val,
        "blocks": len(meter.blocks),
        "wall": ratios(meter, "wall"),
    }
    # Of one thread, the processor seconds say the same and do not count the time that others had the core.
    return report | ({"processor": ratios(meter, "processor")} if meter.bare.device.type == "cpu" else {})


def ratios(meter: Meter, clock: str) -> dict[str, Any]:
    """Steps per second, and the command's share of the bare loop's, by one of the clocks."""
    blocks = [(getattr(command, clock), getattr(bare, clock)) for command, bare in meter.blocks]
    usual = statistics.median(command for command, _ in blocks)
    looking = statistics.median(getattr(one, clock) for one in meter.with_look) - usual
    a_step = looking / TrainingSection().validate_every
    return {
        "steps_per_second": round(1 / usual, 3),
        "bare_steps_per_second": round(1 / statistics.median(bare for _, bare in blocks), 3),
        "ratio_without_looks_and_saves": spread([bare / command for command, bare in blocks]),
        "ratio": spread([bare / (command + a_step) for command, bare in blocks]),
        "seconds_of_a_look_and_a_save": round(looking, 2),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, and the middle half of the blocks."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "from": round(low, 3), "to": round(high, 3)}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder in the layout above")
    parser.add_argument("--images", type=int, default=36, help="labelled training images")
    parser.add_argument("--val", type=int, default=8, help="validation images")
    parser.add_argument("--steps", type=int, default=60, help="steps of the command; the bare loop takes about as many")
    parser.add_argument("--block", type=int, default=2, help="steps before it is the other's turn (on a GPU rather 50)")
    parser.add_argument("--architecture", default=ModelSection().architecture)
    parser.add_argument("--batch", type=int, default=TrainingSection().batch_size)
    parser.add_argument("--crop", type=int, nargs=2, default=TrainingSection().crop, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    return parser.parse_args()


@contextmanager
def workspace_in(folder: Path, options: argparse.Namespace) -> Iterator[Workspace]:
    """A workspace with imported images, as a user would have it."""
    data = folder / "data"
    if options.data is None:
        write_scenes(data, train=options.images, val=options.val, pool=1, seed=0, width=480, height=360)
        parts = {Split.TRAIN: data / "start", Split.VAL: data / "val"}
        classes = data / "classes.txt"
    else:
        parts = {Split.TRAIN: data / "train", Split.VAL: data / "val"}
        for split, count in ((Split.TRAIN, options.images), (Split.VAL, options.val)):
            copy_some(options.data / parts[split].name, parts[split], count)
        classes = options.data / "classes.txt"
    (folder / "pool").mkdir()
    every = interval(options.steps)
    settings = Settings(
        root=folder,
        labels={"file": classes},
        pool={"images": "pool"},
        model={"architecture": options.architecture, "device": options.device, "precision": options.precision},
        training={
            "steps": options.steps,
            "batch_size": options.batch,
            "crop": options.crop,
            "validate_every": every,
            "save_every": every,
        },
    )
    database = Database(settings.database_url)
    migrate.upgrade(database)
    database.close()
    with open_workspace(settings) as workspace:
        with lease.holding(workspace.database):
            for split, part in parts.items():
                import_dataset(workspace, str(part / "images"), part / "masks", split)
        yield workspace


def copy_some(source: Path, target: Path, count: int) -> None:
    """The first images of a folder and their masks."""
    for kind in ("images", "masks"):
        (target / kind).mkdir(parents=True)
    files = sorted(file for file in (source / "images").iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    for file in files[:count]:
        shutil.copyfile(file, target / "images" / file.name)
        shutil.copyfile(source / "masks" / f"{file.stem}.png", target / "masks" / f"{file.stem}.png")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
