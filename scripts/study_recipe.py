"""How much a training recipe scatters: the same images, other training seeds, at several numbers of labels.

    python scripts/study_recipe.py --data DIR --weights FILE --out FOLDER [--hold-out REGEX] [--images 7 37 110 all]
        [--seeds 3] [--set KEY=VALUE ...] [--workers N]

Before strategies are compared, a recipe must be able to tell them apart: its spread over training seeds on one fixed set
has to be small beside the differences that are looked for. The sets are nested and drawn at random once (--draw); a seed
decides the initial score layers, the order and the crops. --set changes keys of [training]; looks at validation images are
off, so the weights measured are those of the last step. Measured on the images of train whose names match --hold-out
(which are then not trained on), else on val.

Each finished run is a JSON file in FOLDER, named by what decides it: a killed study goes on, and recipes can be compared
later. FOLDER/table.md is written at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_learning import load, machine, say

from activeseg.config import TrainingSection
from activeseg.core.labels import parse_classes
from activeseg.nn.checkpoint import NetworkSpec, import_weights, new_segmenter, read_weights
from activeseg.nn.data import LabeledImage
from activeseg.nn.evaluate import evaluate
from activeseg.nn.fit import fit
from activeseg.nn.zoo import load_pretrained
from activeseg.records import InputPolicy


def main() -> None:
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    train, held_out = divided(options.data, options.hold_out)
    line = random.Random(options.draw).sample(sorted(train), len(train))
    recipe = TrainingSection(**{"validate_every": 0, **dict(options.set)})
    sizes = [len(line) if size == "all" else int(size) for size in options.images]
    plan = [(size, seed) for size in sizes for seed in range(options.seeds)]
    jobs = {run_name(recipe, line[:size], held_out, seed, options): (size, seed) for size, seed in plan}
    missing = {name: job for name, job in jobs.items() if not (options.out / f"{name}.json").is_file()}
    say(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them done; measured on {len(held_out)} images")
    started = time.monotonic()
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as workers:
        running = {
            workers.submit(one_run, options, recipe, line[:size], held_out, seed, name): name
            for name, (size, seed) in missing.items()
        }
        for number, done in enumerate(as_completed(running), 1):
            found = done.result()
            left = (time.monotonic() - started) / number * (len(missing) - number)
            say(f"{found['images']} images, seed {found['seed']}: {found['mean_iou']:.4f}; about {left / 60:.0f} min left")
    write_table(options.out, recipe, [read(options.out / f"{name}.json") for name in jobs])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/images train/masks [val/...] classes.txt")
    parser.add_argument("--weights", type=Path, required=True, help="MobileNetV2 state dict (.pth or .safetensors)")
    parser.add_argument("--mean", type=float, default=0.5, help="of the input scaling the weights were made with")
    parser.add_argument("--std", type=float, default=0.5, help="of the input scaling the weights were made with")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hold-out", help="regular expression: images of train that are measured on")
    parser.add_argument("--images", nargs="+", default=["7", "37", "110", "all"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draw", type=int, default=0, help="of the images")
    parser.add_argument("--set", nargs="*", type=setting, default=[], metavar="KEY=VALUE", help="keys of [training], as JSON")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count(), help="processes, of one thread each")
    return parser.parse_args()


def setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, json.loads(value)


def divided(data: Path, hold_out: str | None) -> tuple[list[str], list[str]]:
    """Names of images, relative to `data`: to train on, and to measure on."""
    train = names(data, "train")
    if not hold_out:
        return train, names(data, "val")
    held_out = [name for name in train if re.search(hold_out, Path(name).name)]
    return [name for name in train if name not in set(held_out)], held_out


def names(data: Path, split: str) -> list[str]:
    files = sorted((data / split / "images").iterdir())
    return [str(file.relative_to(data)) for file in files if file.suffix.lower() in (".png", ".jpg", ".jpeg")]


def labeled(data: Path, name: str, number: int) -> LabeledImage:
    image = data / name
    return LabeledImage(number, partial(load, image, image.parents[1] / "masks" / f"{image.stem}.png"))


def run_name(recipe: TrainingSection, images: list[str], held_out: list[str], seed: int, options: argparse.Namespace) -> str:
    weights = hashlib.sha256(options.weights.read_bytes()).hexdigest()
    decides = [
        recipe.model_dump(mode="json", exclude_defaults=True),
        images,
        held_out,
        seed,
        weights,
        options.mean,
        options.std,
    ]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def one_run(
    options: argparse.Namespace, recipe: TrainingSection, chosen: list[str], held_out: list[str], seed: int, name: str
) -> dict[str, Any]:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    label_set = parse_classes((options.data / "classes.txt").read_text(encoding="utf-8"))
    policy = InputPolicy(None, (options.mean,) * 3, (options.std,) * 3)
    spec = NetworkSpec("fcn_mobilenet_v2", 1.0, 8, label_set, policy)
    segmenter = new_segmenter(spec, model_version=name, seed=seed)
    load_pretrained(segmenter.module, spec.architecture, read_weights(import_weights(options.weights)))
    images = [labeled(options.data, one, number) for number, one in enumerate(sorted(chosen))]
    result = fit(segmenter, images, recipe.model_copy(update={"seed": seed}), device=device)
    measured = evaluate(segmenter, [labeled(options.data, one, number) for number, one in enumerate(held_out)], device=device)
    found = {
        "images": len(chosen),
        "seed": seed,
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
        "machine": machine(device),
        "iou": dict(zip([label_set.names[index] for index in label_set.channels], measured.metrics.iou, strict=True)),
        "seconds": result.seconds,
        "loss_of_last_50_steps": statistics.fmean(result.losses[-50:]),
        **measured.overall(),
    }
    file = options.out / f"{name}.json"
    file.with_suffix(".new").write_text(json.dumps(found, indent=1), encoding="utf-8")
    file.with_suffix(".new").replace(file)
    return found


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def write_table(out: Path, recipe: TrainingSection, runs: list[dict[str, Any]]) -> None:
    changed = ", ".join(f"{key} {value}" for key, value in recipe.model_dump(mode="json", exclude_defaults=True).items())
    lines = [f"Recipe: {changed or 'the defaults'}.", "", "| images | mIoU of each seed | mean | max - min | deviation |"]
    lines.append("|---|---|---|---|---|")
    for size in sorted({run["images"] for run in runs}):
        found = sorted((run["seed"], 100 * run["mean_iou"]) for run in runs if run["images"] == size)
        values = [value for _, value in found]
        spread, deviation = max(values) - min(values), statistics.stdev(values) if len(values) > 1 else 0.0
        each = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {size} | {each} | {statistics.fmean(values):.2f} | {spread:.2f} | {deviation:.2f} |")
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    say("\n".join(lines))


if __name__ == "__main__":
    main()
