from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from activeseg.errors import ConfigError, MaskError, NotReadyError
from activeseg.nn.checkpoint import checkpoint_bytes
from activeseg.nn.data import LabeledImage
from activeseg.nn.evaluate import evaluate
from activeseg.nn.fit import _lr_factor, _optimizer, fit
from activeseg.nn.zoo import build_model

CPU = torch.device("cpu")


def test_two_images_are_learnt_by_heart(make_segmenter, scenes, recipe) -> None:
    segmenter = make_segmenter()
    before = evaluate(segmenter, scenes, device=CPU).metrics.mean_iou
    result = fit(segmenter, scenes, recipe(steps=60, scale=(1.0, 1.0), warmup_steps=5, learning_rate=0.03), device=CPU)
    after = evaluate(segmenter, scenes, device=CPU).metrics
    assert result.losses[0] == pytest.approx(math.log(4), abs=0.3)
    assert np.mean(result.losses[-10:]) < 0.3
    assert after.mean_iou > max(0.65, before + 0.3)
    assert len(result.losses) == result.steps == 60


def test_the_same_seed_trains_the_same_bits_and_another_does_not(make_segmenter, scenes, recipe) -> None:
    trained = []
    for seed, noise in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(noise), np.random.seed(noise)
        segmenter = make_segmenter()
        fit(segmenter, scenes, recipe(seed=seed), device=CPU)
        trained.append(checkpoint_bytes(segmenter))
    assert trained[0] == trained[1]
    assert trained[0] != trained[2]


def test_global_random_states_and_the_training_flag_stay(make_segmenter, scenes, recipe) -> None:
    segmenter = make_segmenter()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    for flag in (True, False):
        segmenter.module.train(flag)
        fit(segmenter, scenes, recipe(steps=1), device=CPU)
        evaluate(segmenter, scenes, device=CPU)
        assert segmenter.module.training is flag
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_batches_without_a_labelled_pixel_do_no_harm(make_segmenter, scenes, recipe) -> None:
    unlabelled = LabeledImage(1, lambda: (scenes[0].load()[0], np.full((48, 64), 255, np.uint8)))
    segmenter = make_segmenter()
    result = fit(segmenter, [unlabelled], recipe(), device=CPU)
    assert result.losses == (0.0,) * 4
    assert all(torch.isfinite(value).all() for value in segmenter.module.state_dict().values())


def test_one_crop_of_one_feature_is_a_batch(make_segmenter, scenes, recipe) -> None:
    result = fit(make_segmenter(), scenes, recipe(batch_size=1, crop=(8, 8)), device=CPU)
    assert np.isfinite(result.losses).all()


def test_divergence_is_told_with_the_remedy(make_segmenter, scenes, recipe) -> None:
    with pytest.raises(ConfigError, match=r"diverged at step \d+ of 40.*learning_rate \(now 1e\+20\)"):
        fit(make_segmenter(), scenes, recipe(steps=40, learning_rate=1e20, clip_norm=1e20), device=CPU)


def test_poisoned_weights_are_told_before_they_spread(make_segmenter, scenes, recipe) -> None:
    segmenter = make_segmenter()
    with torch.no_grad():
        segmenter.module.score["8"].bias[0] = math.nan
    before = segmenter.module.encoder[0][0].weight.clone()
    with pytest.raises(ConfigError, match="step 1 of 4"):
        fit(segmenter, scenes, recipe(), device=CPU)
    assert torch.equal(segmenter.module.encoder[0][0].weight, before)


def test_progress_is_told_after_every_step(make_segmenter, scenes, recipe) -> None:
    told: list[tuple[int, float]] = []
    result = fit(make_segmenter(), scenes, recipe(), device=CPU, on_step=lambda step, loss: told.append((step, loss)))
    assert told == list(zip((1, 2, 3, 4), result.losses, strict=True))


def test_without_images_the_user_is_told_what_to_do(make_segmenter, recipe) -> None:
    with pytest.raises(NotReadyError, match="dataset import"):
        fit(make_segmenter(), [], recipe(), device=CPU)
    with pytest.raises(NotReadyError, match="dataset import"):
        evaluate(make_segmenter(), [], device=CPU)


def test_a_misfitting_mask_stops_training_and_evaluation(make_segmenter, scenes, recipe) -> None:
    wrong = LabeledImage(99, lambda: (scenes[0].load()[0], np.zeros((10, 10), np.uint8)))
    with pytest.raises(MaskError, match="image 99"):
        fit(make_segmenter(), [wrong], recipe(), device=CPU)
    with pytest.raises(MaskError, match="image 99"):
        evaluate(make_segmenter(), [*scenes, wrong], device=CPU)


def test_each_parameter_is_in_one_group_norms_and_biases_without_decay_and_the_head_faster(recipe) -> None:
    model = build_model("fcn_mobilenet_v2", 3, width=0.25)
    optimizer = _optimizer(model, recipe(learning_rate=0.01, head_lr_factor=5.0, weight_decay=0.1))
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(group_of) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        assert group["peak_lr"] == pytest.approx(0.05 if name.startswith("score.") else 0.01)
        assert group["weight_decay"] == (0.1 if name.endswith("weight") and parameter.ndim == 4 else 0.0), name


def test_the_learning_rate_rises_then_falls_to_zero(recipe) -> None:
    config = recipe(steps=100, warmup_steps=10)
    factors = [_lr_factor(step, config) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert max(factors) == factors[10] == pytest.approx(0.9**0.9)
    assert factors[100] == 0
    assert all(a < b for a, b in pairwise(factors[:11]))
    assert all(a > b for a, b in pairwise(factors[10:]))


@pytest.mark.parametrize("short_side", [None, 33])
def test_evaluation_counts_at_the_masks_own_size(make_segmenter, scenes, label_set, short_side) -> None:
    """Against pixel-by-pixel counting, one image at a time, on images of two sizes."""
    segmenter = make_segmenter(short_side=short_side)
    small = LabeledImage(12, lambda: tuple(array[:40, :50] for array in scenes[0].load()))
    images = [scenes[0], small, scenes[1]]
    evaluation = evaluate(segmenter, images, device=CPU, batch_size=2)
    assert evaluation.image_ids == (10, 12, 11)
    assert evaluation.per_image.shape == (3, 4, 4)
    for image, counted in zip(images, evaluation.per_image, strict=True):
        pixels, mask = image.load()
        predicted = _predicted_alone(segmenter, pixels)
        expected = np.zeros((4, 4), np.int64)
        for true, seen in zip(label_set.to_channels(mask).ravel(), predicted.ravel(), strict=True):
            if true != 255:
                expected[true, seen] += 1
        assert counted.sum() == expected.sum() == (mask != 2).sum()
        assert np.abs(counted - expected).sum() <= 4  # ties between equal logits
    total = evaluation.per_image.sum(axis=0)
    assert evaluation.metrics.pixel_accuracy == pytest.approx(np.trace(total) / total.sum())


def _predicted_alone(segmenter, pixels: np.ndarray) -> np.ndarray:
    from PIL import Image

    side = segmenter.spec.input_policy.short_side or min(pixels.shape[:2])
    scale = side / min(pixels.shape[:2])
    size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR))
    x = torch.tensor(resized / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = segmenter.module.eval()(x)["out"]
    logits = torch.nn.functional.interpolate(logits, size=pixels.shape[:2], mode="bilinear", align_corners=False)
    return logits[0].argmax(0).numpy()
