from __future__ import annotations

import numpy as np
import pytest
import torch

from activeseg.nn.checkpoint import checkpoint_bytes, load_checkpoint
from activeseg.nn.data import UnlabeledImage
from activeseg.nn.evaluate import evaluate
from activeseg.nn.fit import fit
from activeseg.nn.infer import predict_masks, score_images
from activeseg.nn.pace import Pace
from activeseg.records import ImageRef

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")


def read(image: ImageRef) -> np.ndarray:
    return np.random.default_rng(image.image_id).integers(0, 256, size=(90, 121, 3), dtype=np.uint8)


def test_scores_and_masks_equal_those_of_the_cpu(make_segmenter) -> None:
    segmenter = make_segmenter()
    images = [ImageRef(number, "", "") for number in range(5)]
    on_cpu = list(score_images(segmenter, images, read, device=torch.device("cpu"), precision="float32"))
    on_gpu = list(score_images(segmenter, images, read, device=CUDA, precision="float32"))
    for expected, score in zip(on_cpu, on_gpu, strict=True):
        assert score.entropy_sum == pytest.approx(expected.entropy_sum, rel=1e-3)
    for precision in ("float32", "bfloat16"):
        assert len(list(predict_masks(segmenter, images, read, device=CUDA, precision=precision))) == 5


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_network_that_was_scored_with_still_trains(make_segmenter, scenes, recipe, precision) -> None:
    segmenter = make_segmenter()
    before = torch.cuda.get_rng_state()
    list(score_images(segmenter, [ImageRef(1, "", "")], read, device=CUDA, precision=precision))
    result = fit(segmenter, scenes, recipe(steps=20), device=CUDA, precision=precision)
    assert result.losses[-1] < result.losses[0]
    assert torch.equal(torch.cuda.get_rng_state(), before)
    loaded = load_checkpoint(checkpoint_bytes(segmenter), model_version="m2", device="cpu")
    on_gpu = evaluate(segmenter, scenes, device=CUDA, precision="float32").metrics.pixel_accuracy
    assert evaluate(loaded, scenes, device=torch.device("cpu")).metrics.pixel_accuracy == pytest.approx(on_gpu, abs=0.01)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_unlabelled_images_teach_on_a_gpu_too(make_segmenter, scenes, recipe, precision) -> None:
    pool = [UnlabeledImage(one.image_id, lambda one=one: one.load()[0]) for one in scenes]
    config = recipe(steps=30, unlabelled="pseudo", unlabelled_after=10, pseudo_threshold=0.5, learning_rate=0.03, ema_decay=0.8)
    result = fit(make_segmenter(), scenes, config, device=CUDA, precision=precision, unlabelled=pool)
    assert result.labelled_share
    assert all(0.5 <= threshold <= 1 for threshold in result.thresholds)


def test_a_gpu_finds_its_batch_size_and_compiled_scores_are_the_same(make_segmenter, tmp_path) -> None:
    segmenter = make_segmenter()
    images = [ImageRef(number, "", "") for number in range(40)]
    scores, paces = {}, {mode: Pace() for mode in ("never", "always")}
    for mode, pace in paces.items():
        found = score_images(
            segmenter, images, read, device=CUDA, precision="float32", batch_size=0, compile=mode, cache=tmp_path, pace=pace
        )
        scores[mode] = [one.entropy_sum for one in found]
    assert len(scores["never"]) == len(images)
    assert scores["always"] == pytest.approx(scores["never"], rel=1e-4)
    assert paces["always"].compiled_images or paces["always"].not_compiled
    assert all(1 <= pace.batch_size <= 256 for pace in paces.values())
