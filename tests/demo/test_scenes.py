"""The demo's scenes: deterministic, street-like, and hard enough to mean something."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

from activeseg.core.entropy import image_entropy
from activeseg.core.labels import parse_classes
from activeseg.core.metrics import class_iou, mean_present
from activeseg.demo.recipe import DEMO_RECIPE
from activeseg.demo.scenes import SCENE_CLASSES, Scene, draw_scene, plan_scenes, scene_seed, write_scenes
from activeseg.errors import ConfigError
from activeseg.imaging.decode import decode_image
from activeseg.imaging.masks import decode_mask
from activeseg.nn.checkpoint import NetworkSpec, Segmenter
from activeseg.nn.data import LabeledImage, to_input, to_pixels
from activeseg.nn.evaluate import evaluate
from activeseg.nn.fit import fit
from activeseg.nn.zoo import build_model
from activeseg.records import InputPolicy

VOID = SCENE_CLASSES.index_of("void")
CPU = torch.device("cpu")
STEPS = 450
"""Fewer than the demo trains in all; mIoU is then 0.04 and the correlation 0.14 above what is asked for."""


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in range(60)]


def test_the_same_seed_draws_the_same_scene_and_another_seed_another_one() -> None:
    first, again, other = draw_scene(3), draw_scene(3), draw_scene(4)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.mask, other.mask)


@pytest.mark.parametrize(("width", "height"), [(160, 120), (97, 65), (320, 240)])
def test_a_scene_has_the_size_asked_for(width: int, height: int) -> None:
    scene = draw_scene(1, width=width, height=height)
    assert (scene.image.shape, scene.image.dtype) == ((height, width, 3), np.uint8)
    assert (scene.mask.shape, scene.mask.dtype) == ((height, width), np.uint8)


def test_a_tiny_scene_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 32 x 32"):
        draw_scene(1, width=16)


@pytest.mark.slow
def test_masks_hold_classes_only_and_every_class_is_seen_somewhere(scenes: list[Scene]) -> None:
    counts = sum(np.bincount(scene.mask.ravel(), minlength=256) for scene in scenes)
    assert counts[12:].sum() == 0
    assert (counts[:12] > 0).all()


@pytest.mark.slow
def test_large_things_are_common_and_small_ones_rare(scenes: list[Scene]) -> None:
    counts = sum(np.bincount(scene.mask.ravel(), minlength=12) for scene in scenes)
    share = dict(zip(SCENE_CLASSES.names, counts / counts.sum(), strict=True))
    assert min(share["road"], share["sky"], share["building"]) > 0.08
    assert max(share[name] for name in ("sign", "pedestrian", "bicyclist", "fence", "void")) < 0.05
    assert any(not (scene.mask == SCENE_CLASSES.index_of("pedestrian")).any() for scene in scenes)


@pytest.mark.slow
def test_road_lies_below_the_sky(scenes: list[Scene]) -> None:
    for scene in scenes:
        sky, road = (np.nonzero(scene.mask == SCENE_CLASSES.index_of(name))[0] for name in ("sky", "road"))
        assert not sky.size or not road.size or sky.mean() < road.mean()


@pytest.mark.slow
def test_scenes_differ_strongly_in_light(scenes: list[Scene]) -> None:
    brightness = np.array([scene.image.mean() for scene in scenes])
    assert brightness.max() > 2 * brightness.min()


@pytest.mark.slow
def test_frames_of_a_clip_are_neighbours_but_not_equal() -> None:
    alike = [np.mean(draw_scene(seed).mask == draw_scene(seed, frame=1).mask) for seed in range(12)]
    apart = [np.mean(draw_scene(seed).mask == draw_scene(seed + 100).mask) for seed in range(12)]
    assert np.mean(alike) > np.mean(apart) + 0.15
    assert max(alike) < 1.0


def test_written_scenes_can_be_read_back_and_masks_of_the_pool_lie_apart(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=3, val=2, pool=5, seed=1)
    assert parse_classes((tmp_path / "classes.txt").read_text()) == SCENE_CLASSES
    for images, masks, count in (
        ("start/images", "start/masks", 3),
        ("val/images", "val/masks", 2),
        ("pool/images", "truth/masks", 5),
    ):
        names = sorted(file.name for file in (tmp_path / images).iterdir())
        assert names == sorted(file.name for file in (tmp_path / masks).iterdir())
        assert len(names) == count
        image = decode_image((tmp_path / images / names[0]).read_bytes(), max_pixels=10**6)
        mask = decode_mask((tmp_path / masks / names[0]).read_bytes())
        assert image.shape[:2] == mask.shape == (120, 160)
        SCENE_CLASSES.check_mask(mask)
    assert sorted(folder.name for folder in (tmp_path / "pool").iterdir()) == ["images"]


def test_no_clip_falls_into_two_splits() -> None:
    splits: dict[str, set[int]] = {}
    for split, clip, _ in plan_scenes({"start": 20, "val": 20, "pool": 60}, 5):
        splits.setdefault(split, set()).add(clip)
    assert sum(len(clips) for clips in splits.values()) == len(set().union(*splits.values()))
    assert len(splits["pool"]) < 60


def test_writing_again_writes_nothing_and_another_folder_gets_the_same_bytes(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    for folder in ("a", "b"):
        write_scenes(tmp_path / folder, train=2, val=1, pool=3, seed=9, on_progress=lambda *call: calls.append(call))
    assert calls[:6] == [(done, 6) for done in range(1, 7)]
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "a").rglob("*.png")}
    write_scenes(tmp_path / "a", train=2, val=1, pool=3, seed=9)
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps


def test_a_killed_run_is_completed_by_the_next_one(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=2, val=1, pool=3, seed=9)
    whole = _digests(tmp_path)
    next((tmp_path / "pool/images").iterdir()).unlink()
    next((tmp_path / "val/masks").iterdir()).unlink()
    write_scenes(tmp_path, train=2, val=1, pool=3, seed=9)
    assert _digests(tmp_path) == whole


def test_a_folder_with_other_scenes_is_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=1, val=1, pool=1, seed=1)
    with pytest.raises(ConfigError, match="holds other scenes"):
        write_scenes(tmp_path, train=1, val=1, pool=1, seed=2)


@pytest.mark.slow
def test_scenes_need_more_than_colour_and_entropy_finds_the_errors() -> None:
    """Colour alone fails, the network beats it by 0.2 mIoU, and its summed entropy follows its error."""
    # As many labelled scenes as the demo has in all; both classifiers learn from the same ones.
    start, unseen = _splits(DEMO_RECIPE.start + 96, 60)
    colour = _nearest_colour_miou(start, unseen[:30])
    assert colour <= 0.5

    segmenter = _train(start)
    evaluation = evaluate(segmenter, _labeled(unseen), device=CPU, precision="float32")
    miou = evaluation.metrics.mean_iou
    assert miou >= colour + 0.2, f"network {miou:.3f}, nearest colour {colour:.3f}"

    errors = 1 - mean_present(class_iou(evaluation.counts))
    correlation = spearmanr(_summed_entropy(segmenter, unseen), errors).statistic
    assert correlation >= 0.4, f"Spearman {correlation:.2f}"


def _splits(start: int, val: int) -> tuple[list[Scene], list[Scene]]:
    splits: dict[str, list[Scene]] = {"start": [], "val": []}
    for split, clip, frame in plan_scenes({"start": start, "val": val}, DEMO_RECIPE.seed):
        splits[split].append(draw_scene(scene_seed(DEMO_RECIPE.seed, clip), frame=frame))
    return splits["start"], splits["val"]


def _train(scenes: list[Scene]) -> Segmenter:
    model = DEMO_RECIPE.model
    spec = NetworkSpec(
        model.architecture, model.width, model.decoder_stride, SCENE_CLASSES, InputPolicy(None, model.mean, model.std)
    )
    module = build_model(model.architecture, SCENE_CLASSES.num_classes, width=model.width, decoder_stride=model.decoder_stride)
    segmenter = Segmenter(spec, module, "test")
    config = DEMO_RECIPE.training.model_copy(update={"steps": STEPS})
    fit(segmenter, _labeled(scenes), config, device=CPU, precision="float32")
    return segmenter


def _labeled(scenes: list[Scene]) -> list[LabeledImage]:
    return [LabeledImage(i, lambda scene=scene: (scene.image, scene.mask)) for i, scene in enumerate(scenes)]  # type: ignore[misc]


def _summed_entropy(segmenter: Segmenter, scenes: list[Scene]) -> npt.NDArray[np.float64]:
    segmenter.module.eval()
    with torch.inference_mode():
        inputs = [to_input(to_pixels(scene.image)[None], segmenter.spec.input_policy, CPU) for scene in scenes]
        return np.concatenate([image_entropy(segmenter.module(x)["out"]).double().numpy() for x in inputs])


def _nearest_colour_miou(train: list[Scene], test: list[Scene]) -> float:
    colours = np.concatenate([scene.image.reshape(-1, 3) for scene in train]).astype(np.float64)
    labels = np.concatenate([scene.mask.ravel() for scene in train])
    chosen = np.random.default_rng(0).choice(np.flatnonzero(labels != VOID), 20_000, replace=False)
    tree, matrix = cKDTree(colours[chosen]), np.zeros((12, 12), np.int64)
    for scene in test:
        truth, predicted = scene.mask.ravel(), labels[chosen][tree.query(scene.image.reshape(-1, 3))[1]]
        np.add.at(matrix, (truth[truth != VOID], predicted[truth != VOID]), 1)
    return _mean_iou(matrix[:11, :11])


def _mean_iou(matrix: npt.NDArray[np.int64]) -> float:
    hits, truth = np.diag(matrix), matrix.sum(axis=1)
    return float((hits / (truth + matrix.sum(axis=0) - hits).clip(1))[truth > 0].mean())


def _digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
