"""How well a few labelled images teach the network: validation mIoU for random subsets, one per seed.

DIR holds train/images train/masks val/images val/masks classes.txt; masks are index PNGs with the images' names. Seed s
draws the images, the initial score layers, the order and the crops. Lines for people go to stderr, JSON to stdout.

It is the default recipe but for the looks at the validation images: the figure is taken on all of them, and weights chosen
by the same images would flatter it. So the averaged weights of the last step are measured.

--set unlabelled=pseudo learns from the training images that were not drawn as well, without their masks. --hold-out takes the
training images whose names match away and measures on them instead of val.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from activeseg.config import TrainingSection
from activeseg.core.labels import LabelSet, parse_classes
from activeseg.imaging.decode import Decoded, decode_image
from activeseg.imaging.masks import decode_mask
from activeseg.nn.checkpoint import NetworkSpec, Segmenter, import_weights, new_segmenter, read_weights
from activeseg.nn.data import Array, LabeledImage, UnlabeledImage
from activeseg.nn.device import pick_device, pick_precision
from activeseg.nn.evaluate import evaluate
from activeseg.nn.fit import fit
from activeseg.nn.zoo import load_pretrained
from activeseg.records import InputPolicy

MAX_PIXELS = 100_000_000


def main() -> None:
    options = parse_options()
    device = pick_device(options.device)
    label_set = parse_classes((options.data / "classes.txt").read_text(encoding="utf-8"))
    train, val = (labeled_images(options.data / split) for split in ("train", "val"))
    if options.hold_out:
        held_out = re.compile(options.hold_out)
        val = [image for image in train if held_out.search(image.uri)]
        train = [image for image in train if not held_out.search(image.uri)]
    config = TrainingSection.model_validate({"steps": options.steps} | dict(options.set))
    report: dict[str, Any] = {
        "machine": machine(device),
        "recipe": config.model_dump(),
        "images": options.images,
        "draw": options.draw,
        "short_side": options.short_side,
        "width": options.width,
        "decoder_stride": options.decoder_stride,
        "hold_out": options.hold_out,
    }
    report |= {"of": len(train), "validation_images": len(val), "weights": str(options.weights) if options.weights else None}
    say(f"{report['machine']}\n{options.images} of {len(train)} images, {config.steps} steps, weights {options.weights}")
    runs: list[dict[str, Any]] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        runs.append(one_seed(seed, train, val, label_set, config, device, options))
        say("seed {seed}: mIoU {mean_iou:.4f}, {seconds:.0f} s of training, {step_seconds:.2f} s a step".format(**runs[-1]))
    report |= {"runs": runs, "summary": summarize([run["mean_iou"] for run in runs])}
    say("mean {mean:.4f}, spread (max - min) {spread:.4f}, standard deviation {std:.4f}".format(**report["summary"]))
    print(json.dumps(report))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in the layout above")
    parser.add_argument("--weights", type=Path, help="MobileNetV2 state dict (.pth or .safetensors); without it, from scratch")
    parser.add_argument("--mean", type=float, default=0.5, help="of the input scaling the weights were made with")
    parser.add_argument("--std", type=float, default=0.5, help="of the input scaling the weights were made with")
    parser.add_argument("--images", type=int, default=36, help="labelled images per seed")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--draw", type=int, help="draw the images with this seed every time: shows how much training alone varies"
    )
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps")
    parser.add_argument(
        "--set",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=JSON",
        help="another key of [training], e.g. crop=[120,160]",
    )
    parser.add_argument("--short-side", type=int, help="shrink the images to this many pixels (default: as they are)")
    parser.add_argument("--width", type=float, default=1.0, help="channel multiplier of the encoder")
    parser.add_argument("--decoder-stride", type=int, default=8, help="stride of the finest score layer")
    parser.add_argument("--hold-out", metavar="REGEX", help="measure on the training images whose names match")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads of the network (default: all cores)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def key_value(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def one_seed(
    seed: int,
    train: list[LabeledImage],
    val: list[LabeledImage],
    label_set: LabelSet,
    config: TrainingSection,
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, Any]:
    chosen = random.Random(seed if options.draw is None else options.draw).sample(train, options.images)
    segmenter = untrained(seed, label_set, options)
    drawn = {image.image_id for image in chosen}
    rest = [
        UnlabeledImage(image.image_id, partial(pixels_of, image), image.uri) for image in train if image.image_id not in drawn
    ]
    seeded = config.model_copy(update={"seed": seed})
    result = fit(segmenter, chosen, seeded, device=device, unlabelled=rest, on_step=show_progress(config))
    started = time.monotonic()
    metrics = evaluate(segmenter, val, device=device).metrics
    return {
        "seed": seed,
        "mean_iou": metrics.mean_iou,
        "pixel_accuracy": metrics.pixel_accuracy,
        "iou": dict(zip([label_set.names[index] for index in label_set.channels], metrics.iou, strict=True)),
        "loss_of_last_50_steps": statistics.fmean(result.losses[-50:]),
        "unlabelled": result.unlabelled,
        "labelled_share": result.labelled_share,
        "thresholds": result.thresholds,
        "seconds": result.seconds,
        "step_seconds": result.seconds / result.steps,
        "evaluation_seconds": time.monotonic() - started,
    }


def untrained(seed: int, label_set: LabelSet, options: argparse.Namespace) -> Segmenter:
    policy = InputPolicy(options.short_side, (options.mean,) * 3, (options.std,) * 3)
    spec = NetworkSpec("fcn_mobilenet_v2", options.width, options.decoder_stride, label_set, policy)
    segmenter = new_segmenter(spec, model_version=f"bench-{seed}", seed=seed)
    if options.weights:
        load_pretrained(segmenter.module, spec.architecture, read_weights(import_weights(options.weights)))
    return segmenter


def labeled_images(folder: Path) -> list[LabeledImage]:
    files = sorted(file for file in (folder / "images").iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    masks = [folder / "masks" / f"{file.stem}.png" for file in files]
    pairs = enumerate(zip(files, masks, strict=True))
    return [LabeledImage(number, partial(load, *pair), uri=pair[0].name) for number, pair in pairs]


def load(image: Path, mask: Path) -> tuple[Array, Array]:
    return decode_image(image.read_bytes(), max_pixels=MAX_PIXELS), decode_mask(mask.read_bytes())


def pixels_of(image: LabeledImage) -> Array:
    pixels, _ = image.load()
    assert not isinstance(pixels, Decoded)
    return pixels


def show_progress(config: TrainingSection) -> Any:
    def on_step(step: int, loss: float) -> None:
        if step % 50 == 0 or step == config.steps:
            say(f"  step {step} of {config.steps}: loss {loss:.3f}")

    return on_step


def summarize(values: list[float]) -> dict[str, float]:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "spread": max(values) - min(values), "std": std}


def machine(device: torch.device) -> dict[str, Any]:
    on_cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu
    return {
        "device": f"{device.type}: {name}",
        "precision": pick_precision(device, "auto"),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
