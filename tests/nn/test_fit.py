from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from activeseg.config import TrainingSection
from activeseg.errors import ConfigError, ImageError, MaskError, NotReadyError
from activeseg.nn import fit as fit_module
from activeseg.nn.checkpoint import NetworkSpec, checkpoint_bytes, new_segmenter
from activeseg.nn.data import LabeledImage, to_input, to_pixels
from activeseg.nn.ema import MovingAverage
from activeseg.nn.evaluate import evaluate
from activeseg.nn.fit import _descend, _lr_factor, _optimizer, fit
from activeseg.nn.snapshot import Progress
from activeseg.nn.zoo import build_model
from activeseg.records import InputPolicy

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def test_two_images_are_learnt_by_heart(make_segmenter, scenes, recipe) -> None:
    segmenter = make_segmenter()
    before = evaluate(segmenter, scenes, device=CPU).metrics.mean_iou
    result = fit(
        segmenter, scenes, recipe(steps=60, scale=(1.0, 1.0), warmup_steps=5, learning_rate=0.03, ema_decay=0), device=CPU
    )
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
    with pytest.raises(ConfigError, match=r"diverged at step \d+.*learning_rate \(now 1e\+20\)"):
        fit(make_segmenter(), scenes, recipe(steps=40, learning_rate=1e20, clip_norm=1e20), device=CPU)


def test_poisoned_weights_are_told_before_they_spread(make_segmenter, scenes, recipe) -> None:
    segmenter = make_segmenter()
    with torch.no_grad():
        segmenter.module.score["8"].bias[0] = math.nan
    before = segmenter.module.encoder[0][0].weight.clone()
    with pytest.raises(ConfigError, match="step 1 "):
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


@pytest.mark.parametrize("part", ["images", "validation"])
def test_a_broken_image_is_told_by_name_before_the_first_step(make_segmenter, scenes, recipe, part) -> None:
    def load() -> None:
        raise ImageError("the file is gone")

    broken = {"images": scenes, "validation": scenes} | {part: [*scenes, LabeledImage(7, load, uri="/data/seven.png")]}
    told: list[int] = []
    with pytest.raises(ImageError, match=r"^image 7 \(/data/seven\.png\): the file is gone$"):
        fit(
            make_segmenter(),
            broken["images"],
            recipe(batch_size=1, validate_every=0),
            device=CPU,
            validation=broken["validation"],
            on_step=lambda step, _: told.append(step),
        )
    assert told == []


def test_a_gradient_that_is_no_number_is_told_without_a_limit_too(recipe) -> None:
    module = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2)})
    progress = Progress(module, _optimizer(module, recipe()), torch.amp.GradScaler("cpu", enabled=False), None)
    weight = module["encoder"].weight
    loss = (weight - weight.detach()).abs().sqrt().sum()  # 0, and its slope is not finite there
    before = weight.detach().clone()
    with pytest.raises(ConfigError, match=r"diverged at step 1 .loss 0.0, gradient norm nan"):
        _descend(progress, [loss], recipe(clip_norm=0))
    assert torch.equal(weight, before)


def test_weights_that_overflowed_in_the_last_step_are_not_kept(make_segmenter, scenes, recipe) -> None:
    config = recipe(steps=1, learning_rate=1e38, clip_norm=0, ema_decay=0, warmup_steps=0, momentum=0)
    with pytest.raises(ConfigError, match=r"diverged at step 1 .its weights are not finite"):
        fit(make_segmenter(), scenes, config, device=CPU)


def test_no_limit_leaves_the_gradient_as_it_comes(make_segmenter, scenes, recipe) -> None:
    """The norm that is taken to see divergence must not change a bit."""
    unlimited, wide = make_segmenter(), make_segmenter()
    fit(unlimited, scenes, recipe(clip_norm=0), device=CPU)
    fit(wide, scenes, recipe(clip_norm=1e30), device=CPU)
    assert_same_weights(unlimited.module.state_dict(), wide.module.state_dict())


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
    factors = [_lr_factor(step, 100, config) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert max(factors) == factors[10] == pytest.approx(0.9**0.9)
    assert factors[100] == 0
    assert all(a < b for a, b in pairwise(factors[:11]))
    assert all(a > b for a, b in pairwise(factors[10:]))
    constant = [_lr_factor(step, 100, recipe(schedule="constant", warmup_steps=0)) for step in range(101)]
    assert constant == [1.0] * 101


def test_epochs_become_steps(make_segmenter, scenes, recipe) -> None:
    told: list[int] = []
    result = fit(
        make_segmenter(), scenes, recipe(epochs=3, batch_size=4), device=CPU, on_step=lambda step, _: told.append(step)
    )
    assert told == [1, 2]  # 3 passes over 2 images, 4 at a time
    assert result.steps == recipe(epochs=3, batch_size=4).planned_steps(2) == 2


class Judged:
    """Stands in for `evaluate`: gives these mIoUs in turn and keeps the weights it was shown."""

    def __init__(self, *mean_ious: float) -> None:
        self.mean_ious, self.seen = list(mean_ious), []

    def __call__(self, segmenter, images, **options: object) -> SimpleNamespace:
        self.seen.append({name: value.clone() for name, value in segmenter.module.state_dict().items()})
        return SimpleNamespace(metrics=SimpleNamespace(mean_iou=self.mean_ious[len(self.seen) - 1]))


@pytest.mark.parametrize("decay", [0, 0.9])
def test_the_weights_of_the_best_look_are_kept(make_segmenter, scenes, recipe, monkeypatch, decay) -> None:
    judged = Judged(0.2, math.nan, 0.6, 0.6, 0.5)
    monkeypatch.setattr(fit_module, "evaluate", judged)
    segmenter = make_segmenter()
    config = recipe(steps=9, validate_every=2, ema_decay=decay)
    result = fit(segmenter, scenes, config, device=CPU, validation=scenes)
    assert [(look.step, look.mean_iou) for look in result.looks] == [(2, 0.2), (4, None), (6, 0.6), (8, 0.6), (9, 0.5)]
    assert (result.kept_step, result.steps, result.stopped) == (6, 9, "all steps done")
    assert_same_weights(segmenter.module.state_dict(), judged.seen[2])
    assert not torch.equal(judged.seen[2]["encoder.0.0.weight"], judged.seen[3]["encoder.0.0.weight"])


def test_training_stops_early_when_looks_get_no_better(make_segmenter, scenes, recipe, monkeypatch) -> None:
    monkeypatch.setattr(fit_module, "evaluate", Judged(0.3, 0.5, 0.4, 0.5, 0.1, 0.9))
    config = recipe(steps=12, validate_every=2, patience=3)
    result = fit(make_segmenter(), scenes, config, device=CPU, validation=scenes)
    assert (result.steps, len(result.losses), result.kept_step) == (10, 10, 4)
    assert result.stopped == "3 looks without a better one"


def test_without_validation_images_the_last_weights_are_kept(make_segmenter, scenes, recipe) -> None:
    one, other = make_segmenter(), make_segmenter()
    result = fit(one, scenes, recipe(validate_every=1), device=CPU)
    fit(other, scenes, recipe(validate_every=0), device=CPU, validation=scenes)
    assert (result.looks, result.kept_step) == ((), 4)
    assert_same_weights(one.module.state_dict(), other.module.state_dict())


def test_looks_do_not_change_the_training(make_segmenter, scenes, recipe) -> None:
    looked = fit(make_segmenter(), scenes, recipe(validate_every=1), device=CPU, validation=scenes)
    assert looked.losses == fit(make_segmenter(), scenes, recipe(), device=CPU).losses
    assert len(looked.looks) == 4


def test_the_average_is_the_one_computed_by_hand() -> None:
    network = torch.nn.BatchNorm1d(3)
    average = MovingAverage(network, 0.5)
    expected = {name: value.double().clone() for name, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        with torch.no_grad():
            network.weight.copy_(torch.randn(3, generator=generator))
        network(torch.randn(5, 3, generator=generator))  # moves the running statistics and their counter
        average.update(step)
        share = 1 - min(0.5, (1 + step) / (10 + step))
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[name] += share * (network.state_dict()[name].double() - expected[name])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.allclose(average.module.state_dict()[name].double(), expected[name], atol=1e-6), name
    assert average.module.num_batches_tracked == network.num_batches_tracked == 12
    assert not torch.allclose(average.module.weight, network.weight)


def test_two_overlapping_shapes_are_learnt(overlapping_classes) -> None:
    """A square and a bar that cross, on a ground of neither: each pixel's classes are told apart, the crossing has both."""
    rows, columns = np.mgrid[:48, :64]
    square, bar = (rows > 8) & (rows < 34) & (columns > 10) & (columns < 40), (rows > 20) & (rows < 44) & (columns > 24)
    planes = np.stack([square, bar, np.zeros_like(square), rows >= 0])
    planes[2, :, 60:] = True  # ignored
    pixels = np.stack([200 * square + 20, 200 * bar + 20, np.full_like(rows, 90)], axis=2).astype(np.uint8)
    policy = InputPolicy(None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    spec = NetworkSpec("fcn_mobilenet_v2", 0.25, 4, overlapping_classes, policy)
    segmenter = new_segmenter(spec, model_version="m1")
    config = TrainingSection(
        steps=60, batch_size=2, crop=(48, 64), scale=(1, 1), color_jitter=0, learning_rate=0.05, ema_decay=0
    )
    result = fit(segmenter, [LabeledImage(1, lambda: (pixels, planes))], config, device=CPU)
    assert result.losses[0] == pytest.approx(math.log(2), abs=0.2)
    segmenter.module.eval()
    with torch.no_grad():
        predicted = segmenter.module(to_input(to_pixels(pixels)[None], policy, CPU))["out"][0, :, :, :60] > 0
    for channel, truth in enumerate((square, bar, rows >= 0)):
        counted = torch.from_numpy(truth[:, :60])
        assert (predicted[channel] & counted).sum() / (predicted[channel] | counted).sum() > 0.7, channel


def test_median_frequency_weights_reach_the_loss(make_segmenter, scenes, recipe) -> None:
    plain, weighted = (
        fit(make_segmenter(), scenes, recipe(class_weights=name, steps=2), device=CPU).losses
        for name in ("none", "median_frequency")
    )
    assert plain != weighted


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_float16_overflow_leaves_the_step_out_and_other_steps_are_as_without_scaling(make_segmenter, scenes, recipe) -> None:
    """The scaler works on CPUs as well; there it scales float32."""

    def descended(scaler: torch.amp.GradScaler) -> dict[str, torch.Tensor]:
        module = make_segmenter().module.train()
        progress = Progress(module, _optimizer(module, recipe(), fused=False), scaler, None)
        pixels = torch.linspace(-1, 1, 3 * 48 * 64).reshape(1, 3, 48, 64)
        loss = torch.nn.functional.cross_entropy(module(pixels)["out"], torch.ones(1, 48, 64, dtype=torch.long))
        _descend(progress, [loss], recipe())
        return dict(module.named_parameters())

    overflowing = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10_000)
    assert_same_weights(descended(overflowing), dict(make_segmenter().module.named_parameters()))
    assert overflowing.get_scale() == 2.0**126
    plain, scaled = descended(torch.amp.GradScaler("cpu", enabled=False)), descended(torch.amp.GradScaler("cpu"))
    for name, value in plain.items():
        assert torch.allclose(value, scaled[name], atol=1e-6), name
    assert not torch.equal(plain["score.8.weight"], make_segmenter().module.score["8"].weight)
