"""FCN-32s, FCN-16s and FCN-8s side by side: same recipe, several seeds, IoU and Dice for each class.

    python scripts/compare_strides.py --data DIR --weights FILE --out FOLDER     the table, on labelled images of yours
    python scripts/compare_strides.py --scenes --out FOLDER                      the picture, on drawn scenes

DIR holds train/images train/masks val/images val/masks classes.txt; masks are index PNGs with the images' names. The
networks are fcn_mobilenet_v2 with decoder strides 32, 16 and 8; --vgg16 adds the full VGG16 networks where there is a GPU.
Every finished run is kept in FOLDER, so a study that was killed goes on where it stopped. FOLDER/table.md is the result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_learning import labeled_images, machine

from activeseg.config import TrainingSection
from activeseg.core.labels import LabelSet, parse_classes
from activeseg.nn.checkpoint import (
    NetworkSpec,
    Segmenter,
    checkpoint_bytes,
    import_weights,
    load_checkpoint,
    new_segmenter,
    read_weights,
)
from activeseg.nn.data import LabeledImage
from activeseg.nn.device import pick_device
from activeseg.nn.evaluate import evaluate
from activeseg.nn.fit import fit
from activeseg.nn.zoo import load_pretrained
from activeseg.records import InputPolicy

STRIDES = (32, 16, 8)
NOT_MEASURED = "not measured (no GPU)"


@dataclass(frozen=True)
class Run:
    """One training and its evaluation; equal runs have equal results, so the file of a finished one is its cache."""

    network: str
    stride: int
    seed: int
    data: str
    weights: str | None
    scale: float
    training: dict[str, Any]
    train_folder: str

    @property
    def name(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.network}-stride{self.stride}-seed{self.seed}-{digest}"


def main() -> None:
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.scenes:
        options.data = draw_scenes(options.out / "scenes")
    networks = ["fcn_mobilenet_v2"] + (["vgg16"] if options.vgg16 else [])
    measured = [name for name in networks if name != "vgg16" or torch.cuda.is_available()]
    runs = [run for name in measured for stride in STRIDES for run in runs_of(name, stride, options)]
    results = work(runs, options)
    label_set = parse_classes((options.data / "classes.txt").read_text(encoding="utf-8"))
    text = table(results, networks, label_set, options)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    if options.scenes:
        side_by_side([run for run in runs if run.seed == 0], label_set, options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder in the layout above")
    source.add_argument("--scenes", action="store_true", help="drawn scenes instead; also makes FOLDER/side-by-side.png")
    parser.add_argument("--out", type=Path, required=True, help="FOLDER")
    parser.add_argument("--weights", type=Path, help="MobileNetV2 state dict to start from; without it, from scratch")
    parser.add_argument("--scale", type=float, default=0.5, help="mean and deviation of the weights' input scaling, 0..1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of each training")
    parser.add_argument("--vgg16", action="store_true", help="the full VGG16 networks as well, where there is a GPU")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, each on its share of the cores")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def runs_of(network: str, stride: int, options: argparse.Namespace) -> list[Run]:
    training = recipe(options).model_dump(mode="json")
    folder = "start" if options.scenes else "train"
    weights = str(options.weights) if options.weights and network == "fcn_mobilenet_v2" else None
    return [
        Run(network, stride, seed, str(options.data), weights, options.scale, training | {"seed": seed}, folder)
        for seed in range(options.seeds)
    ]


def recipe(options: argparse.Namespace) -> TrainingSection:
    """The default recipe with a fixed number of steps; no look at the validation images, which are the test here."""
    if options.scenes:
        return TrainingSection(
            steps=options.steps, batch_size=4, crop=(120, 160), learning_rate=0.1, head_lr_factor=2.0, validate_every=0
        )
    return TrainingSection(steps=options.steps, validate_every=0)


def work(runs: list[Run], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Results by run name; what is not in the folder yet is computed."""
    missing = [run for run in runs if not result_file(run, options.out).is_file()]
    say(f"{len(runs) - len(missing)} of {len(runs)} runs are done")
    threads = max(1, torch.get_num_threads() // options.jobs)
    context = multiprocessing.get_context("spawn")
    started = time.monotonic()
    with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (threads,)) as pool:
        waiting = [pool.submit(one_run, run, options.out, options.device) for run in missing]
        for done, future in enumerate(waiting, 1):
            line = future.result()
            left = (time.monotonic() - started) / done * (len(waiting) - done)
            say(f"{line}; about {left / 60:.0f} min left")
    return {run.name: json.loads(result_file(run, options.out).read_text(encoding="utf-8")) for run in runs}


def result_file(run: Run, out: Path) -> Path:
    return out / f"{run.name}.json"


def one_run(run: Run, out: Path, device_name: str) -> str:
    """Train, evaluate, write the result file (last, and at once); returns a line that says how it went."""
    device = pick_device(device_name)
    train, val = (labeled_images(Path(run.data) / split) for split in (run.train_folder, "val"))
    segmenter = untrained(run, parse_classes((Path(run.data) / "classes.txt").read_text(encoding="utf-8")))
    trained = fit(segmenter, train, TrainingSection.model_validate(run.training), device=device)
    result = evaluate(segmenter, val, device=device)
    (out / f"{run.name}.safetensors").write_bytes(checkpoint_bytes(segmenter))
    report = {"run": asdict(run), "machine": machine(device), "seconds": trained.seconds, "images": [len(train), len(val)]}
    report |= {"metrics": asdict(result.metrics)}
    temporary = out / f"{run.name}.part"
    temporary.write_text(json.dumps(report), encoding="utf-8")
    temporary.rename(result_file(run, out))
    return f"{run.name}: mIoU {result.metrics.mean_iou:.4f} in {trained.seconds:.0f} s"


def untrained(run: Run, label_set: LabelSet) -> Segmenter:
    policy = InputPolicy(None, (run.scale,) * 3, (run.scale,) * 3)
    architecture = f"fcn{run.stride}s_vgg16" if run.network == "vgg16" else run.network
    stride = 8 if run.network == "vgg16" else run.stride
    segmenter = new_segmenter(NetworkSpec(architecture, 1.0, stride, label_set, policy), model_version=run.name, seed=run.seed)
    if run.weights:
        load_pretrained(segmenter.module, architecture, read_weights(import_weights(Path(run.weights))))
    return segmenter


def table(results: dict[str, dict[str, Any]], networks: list[str], label_set: LabelSet, options: argparse.Namespace) -> str:
    """Markdown: a column for each network, 'mean ± half the range' over the seeds in percent; first IoU, then Dice."""
    columns = [(network, stride) for network in networks for stride in STRIDES]
    by_column = {column: [one for one in results.values() if _column(one) == column] for column in columns}
    heads = [f"{network}, stride {stride}" if network != "vgg16" else f"FCN-{stride}s, VGG16" for network, stride in columns]
    lines = []
    for measure in ("iou", "dice"):
        title = {"iou": "IoU", "dice": "Dice"}[measure]
        lines += [f"| {title} (%) | {' | '.join(heads)} |", f"|---|{'---|' * len(columns)}"]
        for channel, index in enumerate(label_set.channels):
            cells = [cell([one["metrics"][measure][channel] for one in by_column[column]]) for column in columns]
            lines.append(f"| {label_set.names[index]} | {' | '.join(cells)} |")
        means = [cell([statistics.fmean(present(one["metrics"][measure])) for one in by_column[c]]) for c in columns]
        lines += [f"| **mean over the classes present** | {' | '.join(means)} |"]
        if measure == "iou":
            accuracy = [cell([one["metrics"]["pixel_accuracy"] for one in by_column[column]]) for column in columns]
            lines += [f"| pixel accuracy | {' | '.join(accuracy)} |", ""]
    any_result = next(iter(results.values()))
    sizes = "{} training and {} validation images".format(*any_result["images"])
    lines += ["", f"{options.seeds} seeds, {options.steps} steps, {sizes}; {json.dumps(any_result['machine'])}"]
    return "\n".join(lines) + "\n"


def _column(result: dict[str, Any]) -> tuple[str, int]:
    return result["run"]["network"], result["run"]["stride"]


def present(values: list[float]) -> list[float]:
    return [value for value in values if value == value]


def cell(values: list[float]) -> str:
    values = [100 * value for value in present(values)]
    if not values:
        return NOT_MEASURED
    return f"{statistics.fmean(values):.1f} ± {(max(values) - min(values)) / 2:.1f}"


def draw_scenes(folder: Path) -> Path:
    """Drawn scenes in the layout of --data."""
    from activeseg.demo.scenes import write_scenes

    write_scenes(folder, train=120, val=40, pool=0, seed=7)
    return folder


def side_by_side(runs: list[Run], label_set: LabelSet, options: argparse.Namespace) -> None:
    """FOLDER/side-by-side.png: a row for each of three scenes: image, one prediction for each stride, truth."""
    from PIL import Image

    from activeseg.explain.sheet import Lettering, framed, legend_block, line_up, stack, text_block, with_margin
    from activeseg.imaging.coloring import colorize
    from activeseg.nn.batches import Loaded
    from activeseg.nn.data import decoded, to_pixels
    from activeseg.nn.infer import at_size, forward

    models = [
        load_checkpoint((options.out / f"{run.name}.safetensors").read_bytes(), model_version=run.name, device="cpu")
        for run in runs
    ]
    letters, rows = Lettering(), []
    headings = ["image", *(f"stride {run.stride} (FCN-{run.stride}s)" for run in runs), "truth"]
    scenes: list[LabeledImage] = labeled_images(options.data / "val")[3:12:3]
    for scene in scenes:
        found, truth = scene.load()
        pixels = decoded(found).pixels
        size = (pixels.shape[0], pixels.shape[1])
        pictures = [Image.fromarray(pixels)]
        for model in models:
            logits = forward(model, [Loaded(0, to_pixels(pixels), size)], device=torch.device("cpu"), precision="float32")
            winners = at_size(logits, size)[0].argmax(dim=0).to(torch.uint8).numpy()
            pictures.append(colorize(label_set.to_indices(winners), label_set))
        pictures.append(colorize(truth, label_set))
        rows.append([framed(one.resize((one.width * 2, one.height * 2), Image.Resampling.NEAREST)) for one in pictures])
    widths = [picture.width for picture in rows[0]]
    seen = np.unique(np.concatenate([scene.load()[1].ravel() for scene in scenes]))
    legend = [(label_set.names[i], label_set.colors[i]) for i in seen.tolist() if i < len(label_set.names)]
    blocks = [line_up([text_block(text, width, letters) for text, width in zip(headings, widths, strict=True)], widths)]
    blocks += [line_up(row, widths) for row in rows]
    blocks.append(legend_block(legend, sum(widths), letters))
    with_margin(stack(blocks)).save(options.out / "side-by-side.png", optimize=True)
    say(f"wrote {options.out / 'side-by-side.png'}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
