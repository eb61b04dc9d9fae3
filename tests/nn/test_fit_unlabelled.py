"""Training with pseudo-labels: the whole recipe against a loop written out here, killed and resumed, with broken images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from activeseg.core.labels import UNLABELED
from activeseg.errors import ImageError
from activeseg.nn.checkpoint import Segmenter, checkpoint_bytes
from activeseg.nn.crops import draw_batch, draw_views, mixed
from activeseg.nn.data import Kept, LabeledImage, Samples, UnlabeledImage, UnlabeledSamples, to_input
from activeseg.nn.ema import MovingAverage
from activeseg.nn.fit import _optimizer, _set_learning_rates, fit
from tests.nn.conftest import banded_scene
from tests.nn.test_resume import Interrupted, assert_equal

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
PSEUDO = {"unlabelled": "pseudo", "unlabelled_after": 2, "pseudo_threshold": 0.5, "unlabelled_weight": 0.7, "ema_decay": 0.8}


class Decided(nn.Module):
    """A network of few milliseconds a step that is sure of some pixels from the beginning."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.score = nn.Conv2d(8, classes, 1)
        nn.init.normal_(self.score.weight, std=1.0)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.score(self.encoder(x))}


def small(real: Callable[..., Segmenter]) -> Callable[[], Segmenter]:
    """Segmenters that are equal, with the classes of a real one."""

    def build() -> Segmenter:
        spec = real().spec
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return Segmenter(spec, Decided(spec.label_set.num_classes), "m1")

    return build


@pytest.fixture
def make(make_segmenter):
    return small(make_segmenter)


@pytest.fixture
def unlabelled() -> list[UnlabeledImage]:
    """Three scenes without their masks."""
    return [UnlabeledImage(number, lambda number=number: banded_scene(number % 2)[0], f"/pool/{number}") for number in range(3)]


def summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, targets.long(), ignore_index=UNLABELED, reduction="sum")


def plain_loop(segmenter, scenes, unlabelled, config, *, pseudo: bool) -> list[float]:
    """The recipe in a few lines; with pseudo_threshold 0.5 every class's threshold is 0.5 whatever the teacher said before."""
    policy, module = segmenter.spec.input_policy, segmenter.module.train()
    samples = Samples(scenes, segmenter.spec.label_set, policy)
    pool = UnlabeledSamples(unlabelled, policy, Kept(0))
    optimizer, average = _optimizer(module, config), MovingAverage(module, config.ema_decay)
    losses = []
    for step in range(config.steps):
        _set_learning_rates(optimizer, step, config.steps, config)
        pixels, targets = draw_batch(samples, config, step)
        if not pseudo or step < config.unlabelled_after:
            loss = summed(module(to_input(pixels, policy, CPU))["out"], targets) / (targets != UNLABELED).sum()
        else:
            weak, strong, pasted, inside = draw_views(pool, config, step)
            with torch.no_grad():
                p, guess = average.module(to_input(weak, policy, CPU))["out"].softmax(dim=1).max(dim=1)
            guess = mixed(torch.where((p >= 0.5) & inside, guess, UNLABELED), pasted)
            loss = summed(module(to_input(pixels, policy, CPU))["out"], targets) / (targets != UNLABELED).sum()
            out = module(to_input(strong, policy, CPU))["out"]
            loss = loss + 0.7 * summed(out, guess) / mixed(inside, pasted).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
        optimizer.step()
        average.update(step)
        losses.append(float(loss.detach()))
    module.load_state_dict(average.module.state_dict())
    return losses


def test_without_the_option_the_bits_are_those_of_the_plain_recipe(make, scenes, unlabelled, recipe) -> None:
    def forbidden() -> None:
        raise AssertionError("an unlabelled image was read")

    reference, segmenter = make(), make()
    config = recipe(**PSEUDO | {"unlabelled": "none"})
    losses = plain_loop(reference, scenes, unlabelled, config, pseudo=False)
    result = fit(segmenter, scenes, config, device=CPU, precision="float32", unlabelled=[UnlabeledImage(9, forbidden)])
    assert result.losses == tuple(losses)
    assert checkpoint_bytes(reference) == checkpoint_bytes(segmenter)
    assert (result.unlabelled, result.labelled_share, result.thresholds) == (0, None, ())
    alone = make()
    fit(alone, scenes, recipe(ema_decay=0.8), device=CPU, precision="float32")
    assert checkpoint_bytes(alone) == checkpoint_bytes(segmenter)


def test_pseudo_labels_train_as_the_plain_recipe_says(make, scenes, unlabelled, recipe) -> None:
    reference, segmenter = make(), make()
    config = recipe(steps=8, learning_rate=0.03, **PSEUDO)
    losses = plain_loop(reference, scenes, unlabelled, config, pseudo=True)
    result = fit(segmenter, scenes, config, device=CPU, precision="float32", unlabelled=unlabelled)
    assert result.losses == pytest.approx(losses, rel=1e-4)
    assert result.unlabelled == 3
    assert 0 < (result.labelled_share or 0) < 1
    assert len(result.thresholds) == 4
    without = make()
    fit(without, scenes, config.model_copy(update={"unlabelled": "none"}), device=CPU)
    assert checkpoint_bytes(without) != checkpoint_bytes(segmenter)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("after", [1, 4, 8])
def test_an_interrupted_training_on_unlabelled_images_ends_with_the_same_bits(
    make_segmenter, make_overlapping, scenes, unlabelled, recipe, tmp_path: Path, after: int, overlap: bool
) -> None:
    make = small(make_overlapping if overlap else make_segmenter)
    images = [LabeledImage(one.image_id, lambda one=one: planes(*one.load())) for one in scenes] if overlap else scenes
    config = recipe(**PSEUDO | {"steps": 9, "save_every": 3, "pseudo_threshold": 0.6, "learning_rate": 0.05})

    def train(segmenter, **options):
        return fit(segmenter, images, config, device=CPU, unlabelled=unlabelled, **options)

    def stop(step: int, loss: float) -> None:
        if step == after:
            raise Interrupted

    state, whole, again = tmp_path / "1.safetensors", make(), make()
    expected = train(whole)
    with pytest.raises(Interrupted):
        train(make(), state=state, on_step=stop)
    result = train(again, state=state)
    assert result.resumed_at == after // 3 * 3
    assert_equal((again, result), (whole, expected))


def planes(pixels, mask):
    return pixels, np.stack([mask == index for index in (0, 1, 2, 3)])


def test_other_unlabelled_images_are_another_training(make, scenes, unlabelled, recipe, tmp_path: Path) -> None:
    config = recipe(**PSEUDO | {"save_every": 1})
    fit(make(), scenes, config, device=CPU, unlabelled=unlabelled, state=tmp_path / "1")
    result = fit(make(), scenes, config, device=CPU, unlabelled=unlabelled[:2], state=tmp_path / "1")
    assert "another training" in (result.refused or "")


def test_broken_unlabelled_images_are_left_out_and_told(make, scenes, unlabelled, recipe, caplog) -> None:
    def load() -> None:
        raise ImageError("the file is gone")

    broken = [unlabelled[0], UnlabeledImage(7, load, "/pool/seven.png"), *unlabelled[1:]]
    segmenter, without = make(), make()
    result = fit(segmenter, scenes, recipe(**PSEUDO), device=CPU, unlabelled=broken)
    assert result.left_out == {7: "image 7 (/pool/seven.png): the file is gone"}
    assert "1 of 4 unlabelled images cannot be read and are left out: image 7" in caplog.text
    fit(without, scenes, recipe(**PSEUDO), device=CPU, unlabelled=unlabelled)
    assert checkpoint_bytes(segmenter) == checkpoint_bytes(without)


def test_without_any_unlabelled_image_the_labels_train_alone(make, scenes, recipe) -> None:
    segmenter, without = make(), make()
    result = fit(segmenter, scenes, recipe(**PSEUDO), device=CPU)
    fit(without, scenes, recipe(ema_decay=0.8), device=CPU)
    assert result.unlabelled == 0
    assert checkpoint_bytes(segmenter) == checkpoint_bytes(without)
