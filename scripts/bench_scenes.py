"""Measure the demo's scenes and recipe: drawing speed, colour baseline, training, and three simulated rounds a seed.

    python scripts/bench_scenes.py --seeds 3 --arm entropy --arm random --threads 2

CPU seconds (getrusage) are printed beside wall seconds: on a busy machine only the first say something.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from activeseg.core import metrics
from activeseg.core.entropy import image_entropy
from activeseg.demo.recipe import DEMO_RECIPE
from activeseg.demo.scenes import SCENE_CLASSES, Scene, draw_scene, plan_scenes, scene_seed
from activeseg.nn.checkpoint import NetworkSpec, Segmenter
from activeseg.nn.data import LabeledImage, to_input, to_pixels
from activeseg.nn.evaluate import Evaluation, evaluate
from activeseg.nn.fit import fit
from activeseg.nn.zoo import build_model
from activeseg.records import InputPolicy

CPU = torch.device("cpu")


@dataclass
class Stopwatch:
    """Wall and CPU seconds since it was made."""

    wall: float = field(default_factory=time.monotonic)
    cpu: float = field(default_factory=lambda: _cpu_seconds())

    def __str__(self) -> str:
        return f"{time.monotonic() - self.wall:5.1f} s wall {_cpu_seconds() - self.cpu:5.1f} s cpu"


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--query-size", type=int, default=12)
    parser.add_argument("--arm", action="append", choices=("entropy", "random"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _print_drawing()
    for seed in range(DEMO_RECIPE.seed, DEMO_RECIPE.seed + options.seeds):
        splits = _draw_splits(seed)
        print(f"seed {seed}: RGB nearest neighbour mIoU {nearest_color_miou(splits['start'], splits['val']):.3f}", flush=True)
        for arm in options.arm or ["entropy"]:
            _print_rounds(splits, seed, arm, options.rounds, options.query_size)


def nearest_color_miou(train: Sequence[Scene], test: Sequence[Scene], *, samples: int = 20_000) -> float:
    """mIoU of giving each pixel the class of the training pixel of the nearest colour."""
    from scipy.spatial import cKDTree

    colors = np.concatenate([scene.image.reshape(-1, 3) for scene in train])
    labels = np.concatenate([scene.mask.ravel() for scene in train])
    known = np.flatnonzero(labels != SCENE_CLASSES.ignore_index)
    chosen = np.random.default_rng(0).choice(known, samples, replace=False)
    tree = cKDTree(colors[chosen].astype(np.float64))
    matrix = np.zeros((12, 12), np.int64)
    for scene in test:
        _, nearest = tree.query(scene.image.reshape(-1, 3).astype(np.float64))
        matrix += _confusion(labels[chosen][nearest], scene.mask.ravel())
    return mean_iou(matrix[:11, :11])


def mean_iou(matrix: npt.NDArray[np.int64]) -> float:
    """Mean over the classes present in the truth (rows) of intersection over union."""
    hits, truth = np.diag(matrix), matrix.sum(axis=1)
    union = truth + matrix.sum(axis=0) - hits
    return float((hits[truth > 0] / union[truth > 0]).mean())


def new_segmenter(seed: int) -> Segmenter:
    """An untrained network as the recipe says."""
    model = DEMO_RECIPE.model
    spec = NetworkSpec(
        model.architecture, model.width, model.decoder_stride, SCENE_CLASSES, InputPolicy(None, model.mean, model.std)
    )
    module = build_model(
        model.architecture, SCENE_CLASSES.num_classes, width=model.width, decoder_stride=model.decoder_stride, seed=seed
    )
    return Segmenter(spec, module, f"seed-{seed}")


def labeled(scenes: Sequence[Scene]) -> list[LabeledImage]:
    """Scenes as training images."""
    return [LabeledImage(number, lambda scene=scene: (scene.image, scene.mask)) for number, scene in enumerate(scenes)]  # type: ignore[misc]


def summed_entropy(segmenter: Segmenter, scenes: Sequence[Scene]) -> npt.NDArray[np.float64]:
    """Summed entropy (N,) in nats."""
    segmenter.module.eval()
    values = []
    with torch.inference_mode():
        for first in range(0, len(scenes), 8):
            pixels = torch.stack([to_pixels(scene.image) for scene in scenes[first : first + 8]])
            logits = segmenter.module(to_input(pixels, segmenter.spec.input_policy, CPU))["out"]
            values.append(image_entropy(logits).double().numpy())
    return np.concatenate(values)


def error_correlation(segmenter: Segmenter, scenes: Sequence[Scene], evaluation: Evaluation) -> float:
    """Spearman's rho of summed entropy and 1 - image mIoU."""
    from scipy.stats import spearmanr

    errors = 1 - metrics.mean_present(metrics.class_iou(evaluation.counts))
    return float(spearmanr(summed_entropy(segmenter, scenes), errors).statistic)


def _print_rounds(splits: dict[str, list[Scene]], seed: int, arm: str, rounds: int, query_size: int) -> None:
    labels, pool = list(splits["start"]), list(splits["pool"])
    random = np.random.default_rng(seed)
    segmenter = new_segmenter(seed)
    for number in range(rounds + 1):
        steps = DEMO_RECIPE.training.steps if number else DEMO_RECIPE.first_steps
        config = DEMO_RECIPE.training.model_copy(update={"steps": steps, "seed": seed})
        watch = Stopwatch()
        if config.start == "pretrained":
            segmenter = new_segmenter(seed)
        result = fit(segmenter, labeled(labels), config, device=CPU, precision="float32")
        spent = str(watch)
        evaluation = evaluate(segmenter, labeled(splits["val"]), device=CPU, precision="float32")
        rho = error_correlation(segmenter, splits["val"], evaluation)
        print(
            f"  {arm:8} round {number}: {len(labels):3} images {steps} steps {spent}, loss {result.losses[-1]:.2f}, "
            f"val mIoU {evaluation.metrics.mean_iou:.3f}, Spearman {rho:.2f}  {_by_class(evaluation)}",
            flush=True,
        )
        scores = summed_entropy(segmenter, pool) if arm == "entropy" else random.random(len(pool))
        chosen = set(np.argsort(-scores)[:query_size].tolist())
        labels += [pool[i] for i in chosen]
        pool = [scene for i, scene in enumerate(pool) if i not in chosen]


def _by_class(evaluation: Evaluation) -> str:
    values = evaluation.metrics.iou
    return " ".join(f"{SCENE_CLASSES.names[number][:4]} {value:.2f}" for number, value in enumerate(values))


def _print_drawing() -> None:
    watch, count = Stopwatch(), 60
    scenes = [draw_scene(seed) for seed in range(count)]
    print(f"drawing: {1000 * (_cpu_seconds() - watch.cpu) / count:.1f} ms cpu a scene")
    pixels = np.bincount(np.concatenate([scene.mask.ravel() for scene in scenes]), minlength=12)
    named = zip(SCENE_CLASSES.names, 100 * pixels / pixels.sum(), strict=True)
    shares = ", ".join(f"{name} {share:.1f}" for name, share in named)
    print(f"per cent of pixels: {shares}", flush=True)


def _draw_splits(seed: int) -> dict[str, list[Scene]]:
    splits: dict[str, list[Scene]] = {"start": [], "val": [], "pool": []}
    sizes = {"start": DEMO_RECIPE.start, "val": DEMO_RECIPE.val, "pool": DEMO_RECIPE.pool}
    for split, clip, frame in plan_scenes(sizes, seed):
        splits[split].append(draw_scene(scene_seed(seed, clip), frame=frame))
    return splits


def _confusion(prediction: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    counted = truth != SCENE_CLASSES.ignore_index
    pairs = truth[counted].astype(np.int64) * 12 + prediction[counted]
    return np.bincount(pairs, minlength=144).reshape(12, 12)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
