"""What the averaged network teaches: pseudo-labels against loops over pixels, and the views they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from activeseg.core.labels import UNLABELED
from activeseg.nn.crops import PASTED_SHARE, draw_views, mixed
from activeseg.nn.data import Kept, UnlabeledImage, UnlabeledSamples
from activeseg.nn.ema import MovingAverage
from activeseg.nn.teacher import MEMORY, Teacher, exclusive_labels, overlapping_labels, pseudo_loss
from activeseg.records import InputPolicy

CPU = torch.device("cpu")
HALVES = InputPolicy(None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def pool_of(*pixels: np.ndarray) -> UnlabeledSamples:
    images = [UnlabeledImage(number, lambda one=one: one) for number, one in enumerate(pixels)]
    return UnlabeledSamples(images, HALVES, Kept(10**9))


def random_probabilities(seed: int, *, sigmoid: bool) -> torch.Tensor:
    logits = 3 * torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(seed))
    return logits.sigmoid() if sigmoid else logits.softmax(dim=1)


def pixels_of(values: torch.Tensor) -> Iterator[tuple[int, int, int]]:
    images, _, height, width = values.shape
    yield from ((n, y, x) for n in range(images) for y in range(height) for x in range(width))


@pytest.fixture
def make_teacher(recipe):
    def make(*, sigmoid: bool = False, module: nn.Module | None = None, **changes: object) -> Teacher:
        average = MovingAverage(module or nn.Conv2d(3, 4, 1), 0.9)
        return Teacher(average, 4, recipe(unlabelled="pseudo", **changes), sigmoid=sigmoid)

    return make


def test_labels_are_the_confident_classes_pixel_by_pixel() -> None:
    probabilities, thresholds = random_probabilities(0, sigmoid=False), torch.tensor([0.5, 0.7, 0.9, 0.95])
    found = exclusive_labels(probabilities, thresholds)
    for n, y, x in pixels_of(probabilities):
        p = probabilities[n, :, y, x].tolist()
        best = max(range(4), key=p.__getitem__)
        assert found[n, y, x] == (best if p[best] >= thresholds[best] else UNLABELED)
    assert found.dtype == torch.uint8
    assert 0 < (found == UNLABELED).sum() < found.numel()


def test_overlapping_classes_are_labelled_present_absent_or_not_at_all() -> None:
    probabilities, thresholds = random_probabilities(1, sigmoid=True), torch.tensor([0.5, 0.7, 0.9, 0.95])
    found = overlapping_labels(probabilities, thresholds, 0.8)
    for n, y, x in pixels_of(probabilities):
        for c in range(4):
            p = float(probabilities[n, c, y, x])
            assert found[n, c, y, x] == (1 if p >= thresholds[c] else 0 if 1 - p >= 0.8 else UNLABELED)
    assert set(found.unique().tolist()) == {0, 1, UNLABELED}


@pytest.mark.parametrize("sigmoid", [False, True])
def test_thresholds_follow_the_mean_confidence_of_each_class(make_teacher, sigmoid) -> None:
    """Three steps, in float64 and loops; class 3 is never predicted."""
    teacher = make_teacher(sigmoid=sigmoid, pseudo_threshold=0.9)
    confidence, counted = [0.0] * 4, [0.0] * 4
    for seed in range(3):
        probabilities = random_probabilities(seed, sigmoid=sigmoid)
        probabilities[:, 3] = 0
        inside = torch.rand(2, 6, 5, generator=torch.Generator().manual_seed(seed)) > 0.3
        teacher.note(probabilities, inside)
        confidence, counted = [MEMORY * v for v in confidence], [MEMORY * v for v in counted]
        for n, y, x in pixels_of(probabilities):
            p = probabilities[n, :, y, x].tolist()
            named = [c for c in range(4) if p[c] >= 0.5] if sigmoid else [max(range(4), key=p.__getitem__)]
            for c in named if inside[n, y, x] else []:
                confidence[c], counted[c] = confidence[c] + p[c], counted[c] + 1
    means = [total / count for total, count in zip(confidence[:3], counted[:3], strict=True)]
    expected = [max(0.5, 0.9 * mean / max(means)) for mean in means] + [0.9]
    assert teacher.thresholds().tolist() == pytest.approx(expected, rel=1e-6)
    assert min(expected) < 0.89


def test_a_class_the_teacher_doubts_gets_labels_that_one_threshold_would_deny_it(make_teacher) -> None:
    teacher = make_teacher(pseudo_threshold=0.9)
    probabilities = torch.zeros(1, 4, 10, 10)
    probabilities[:, 0], probabilities[:, 1] = 0.98, 0.02
    probabilities[:, :2, :, 0] = torch.tensor([0.25, 0.75])[:, None]
    assert set(exclusive_labels(probabilities, teacher.thresholds()).unique().tolist()) == {0, UNLABELED}
    teacher.note(probabilities, torch.ones(1, 10, 10, dtype=torch.bool))
    assert set(exclusive_labels(probabilities, teacher.thresholds()).unique().tolist()) == {0, 1}


def test_no_class_is_labelled_below_one_half_and_none_before_the_first_look_is_lowered(make_teacher) -> None:
    teacher = make_teacher(pseudo_threshold=0.8)
    assert teacher.thresholds().tolist() == pytest.approx([0.8] * 4)
    assert teacher.labelled_share == 0
    doubtful = torch.full((1, 4, 4, 4), 0.2)
    doubtful[:, 2], doubtful[:, 0, :2] = 0.21, 0.999
    teacher.note(doubtful, torch.ones(1, 4, 4, dtype=torch.bool))
    assert teacher.thresholds().tolist() == pytest.approx([0.8, 0.8, 0.5, 0.8])


def test_loss_is_the_mean_over_all_pixels_and_those_without_a_label_add_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 6, 5, generator=generator)
    exclusive = torch.randint(0, 4, (2, 6, 5), generator=generator, dtype=torch.uint8)
    exclusive[:, ::2] = UNLABELED
    log_p, total = logits.double().log_softmax(dim=1), 0.0
    for n, y, x in pixels_of(logits):
        if exclusive[n, y, x] != UNLABELED:
            total -= float(log_p[n, int(exclusive[n, y, x]), y, x])
    share = (exclusive != UNLABELED).float().mean()
    assert float(pseudo_loss({"out": logits}, exclusive, share, weights=None)) == pytest.approx(total / 60, rel=1e-5)
    nothing = torch.full_like(exclusive, UNLABELED)
    assert float(pseudo_loss({"out": logits}, nothing, torch.tensor(0.0), weights=None)) == 0


class ByBrightness(nn.Module):
    """Sure of channel 1 where it is bright, of 0 where it is dark, of nothing in between (the colour of the padding)."""

    def __init__(self, *, sigmoid: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1000.0 if sigmoid else 100.0))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        bright = self.scale * x.mean(dim=1)
        return {"out": torch.stack([-bright, bright, torch.full_like(bright, -1e3), torch.full_like(bright, -1e3)], dim=1)}


@pytest.mark.parametrize("sigmoid", [False, True])
def test_targets_lie_where_the_student_sees_what_they_say(make_teacher, recipe, sigmoid) -> None:
    """Through mirrored windows, padding and CutMix: what is bright in the student's view is labelled 1, what is dark 0."""
    dark_left = np.full((50, 70, 3), 20, np.uint8)
    dark_left[:, 30:] = 235
    dark_above = np.full((44, 50, 3), 235, np.uint8)
    dark_above[:20] = 20
    teacher = make_teacher(sigmoid=sigmoid, module=ByBrightness(sigmoid=sigmoid))
    config, labelled = recipe(crop=(48, 64), scale=(0.6, 1.5), batch_size=3), []
    judged: list[float] = []
    for step in range(10):
        views = draw_views(pool_of(dark_left, dark_above), config, step)
        targets, share = teacher.targets(views, HALVES, CPU, "float32")
        planes = targets[:, :2] if sigmoid else torch.stack([targets, targets], dim=1)
        said = planes[:, 1] != UNLABELED
        gray = views.strong.float().mean(dim=1)
        sure = said & ((gray < 60) | (gray > 160))
        assert ((planes[:, 1] == 1) == (gray > 110))[sure].float().mean() > 0.99
        judged.append(float(sure.sum() / said.sum()))
        inside = mixed(views.inside, views.pasted)
        everything = inside[:, None].expand_as(targets) if sigmoid else inside
        assert (targets[~everything] == UNLABELED).all()
        assert float(share) == pytest.approx(float((targets != UNLABELED).sum() / everything.sum()), rel=1e-6)
        labelled.append(float(share))
    assert np.mean(judged) > 0.6
    assert min(labelled) > 0.5
    assert 0.5 < teacher.labelled_share <= 1


def test_half_of_the_students_view_comes_from_the_window_before(recipe) -> None:
    flat = [np.full((60, 80, 3), value, np.uint8) for value in (10, 90, 170, 250)]
    shares, corners = [], set()
    for step in range(10):
        views = draw_views(pool_of(*flat), recipe(batch_size=4, scale=(1.0, 1.0), crop=(48, 64)), step)
        assert sorted(int(one.unique()) for one in views.weak) == [10, 90, 170, 250]  # each comes once, in its own colours
        for place in range(4):
            whole, other = views.strong[place][:, ~views.pasted[place]], views.strong[place][:, views.pasted[place]]
            assert len(whole.unique()) == len(other.unique()) == 1
            again = views.strong[place - 1][:, ~views.pasted[place - 1]]
            assert other.unique() == again.unique()
        shares += views.pasted.float().mean(dim=(1, 2)).tolist()
        corners |= {tuple(torch.nonzero(one)[0].tolist()) for one in views.pasted}
    assert np.mean(shares) == pytest.approx(PASTED_SHARE, abs=0.02)
    assert len(corners) > 10


def test_views_depend_on_the_seed_and_the_step_only_and_show_all_images_equally_often(recipe) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (50, 66, 3), np.uint8) for _ in range(7)]
    calls: list[int] = []

    def load(number: int) -> np.ndarray:
        calls.append(number)
        return images[number]

    pool = UnlabeledSamples([UnlabeledImage(n, lambda n=n: load(n)) for n in range(7)], HALVES, Kept(0))
    config = recipe(batch_size=4, seed=5)
    first = [draw_views(pool, config, step) for step in range(7)]
    assert sorted(calls) == sorted(list(range(7)) * 4)
    torch.manual_seed(1), np.random.seed(1)
    again = [draw_views(pool_of(*images), config, step) for step in reversed(range(7))][::-1]
    assert all(torch.equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True))
    other = draw_views(pool_of(*images), config.model_copy(update={"seed": 6}), 0)
    assert not torch.equal(first[0].weak, other.weak)


def test_unlabelled_images_take_only_the_memory_that_labelled_ones_left(recipe) -> None:
    calls: list[int] = []
    image = UnlabeledImage(1, lambda: calls.append(1) or np.zeros((10, 10, 3), np.uint8))
    for free, expected in ((300, 1), (299, 3)):
        calls.clear()
        pool = UnlabeledSamples([replace(image)], HALVES, Kept(free))
        for _ in range(3):
            assert pool[0].shape == (3, 10, 10)
        assert len(calls) == expected
