"""Evaluation counts what is there, pixel by pixel, for classes of both kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import special

from activeseg.core.labels import LabelSet
from activeseg.nn.batches import Loaded, batches_by_size
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.data import LabeledImage
from activeseg.nn.evaluate import evaluate
from activeseg.nn.prefetch import map_ahead

CPU = torch.device("cpu")


def planes(number: int, size: tuple[int, int]) -> LabeledImage:
    """Noise, and rectangles of each class that overlap."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 256, size=(*size, 3), dtype=np.uint8)
    mask = np.zeros((4, *size), np.bool_)
    for plane in mask:
        top, left = random.integers(0, size[0] // 2), random.integers(0, size[1] // 2)
        plane[top : top + size[0] // 2, left : left + size[1] // 2] = True
    return LabeledImage(10 + number, lambda: (pixels, mask))


def logits_alone(segmenter: Segmenter, pixels: np.ndarray) -> np.ndarray:
    """(C, H, W) float64 at the image's size, computed for this image only."""
    side = segmenter.spec.input_policy.short_side or min(pixels.shape[:2])
    scale = side / min(pixels.shape[:2])
    size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR))
    x = torch.tensor(resized / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = segmenter.module.eval()(x)["out"]
    logits = torch.nn.functional.interpolate(logits, size=pixels.shape[:2], mode="bilinear", align_corners=False)
    return logits[0].double().numpy()


@pytest.mark.parametrize("short_side", [None, 33])
def test_evaluation_counts_at_the_masks_own_size(make_segmenter, scenes, label_set: LabelSet, short_side) -> None:
    """Against pixel-by-pixel counting, one image at a time, on images of two sizes."""
    segmenter = make_segmenter(short_side=short_side)
    small = LabeledImage(12, lambda: tuple(array[:40, :50] for array in scenes[0].load()))
    images = [scenes[0], small, scenes[1]]
    evaluation = evaluate(segmenter, images, device=CPU, precision="float32", batch_size=2)
    assert evaluation.image_ids == (10, 12, 11)
    assert evaluation.counts.shape == (3, 3, 4)
    total, nll = np.zeros((4, 4), np.int64), []
    for image, counted in zip(images, evaluation.counts, strict=True):
        pixels, mask = image.load()
        logits = logits_alone(segmenter, pixels)
        matrix = np.zeros((4, 4), np.int64)
        log_p = special.log_softmax(logits, axis=0)
        for (y, x), true in np.ndenumerate(label_set.to_channels(mask)):
            if true != 255:
                matrix[true, logits[:, y, x].argmax()] += 1
                nll.append(-log_p[true, y, x])
        assert counted[1].tolist() == matrix.sum(axis=1).tolist()
        assert counted[1].sum() == counted[2].sum() == (mask != 2).sum()
        assert np.abs(counted[0] - np.diag(matrix)).sum() <= 4  # ties between equal logits
        assert np.abs(counted[2] - matrix.sum(axis=0)).sum() <= 4
        total += matrix
    assert evaluation.confusion is not None
    assert np.abs(evaluation.confusion - total).sum() <= 12
    assert np.trace(evaluation.confusion) == evaluation.counts[:, 0].sum()
    assert evaluation.metrics.pixel_accuracy == pytest.approx(np.trace(total) / total.sum(), abs=1e-3)
    assert evaluation.calibration.nll == pytest.approx(np.mean(nll), rel=1e-4)


@pytest.mark.parametrize("short_side", [None, 33])
def test_overlapping_classes_are_counted_one_by_one(make_overlapping, overlapping_classes, short_side) -> None:
    segmenter = make_overlapping(short_side=short_side)
    images = [planes(0, (40, 52)), planes(1, (33, 44)), planes(2, (40, 52))]
    evaluation = evaluate(segmenter, images, device=CPU, precision="float32", batch_size=2)
    assert evaluation.confusion is None
    assert evaluation.image_ids == (10, 11, 12)
    right, nll, several = [], [], 0
    for image, counted in zip(images, evaluation.counts, strict=True):
        pixels, mask = image.load()
        logits = logits_alone(segmenter, pixels)
        seen, valid = special.expit(logits) > 0.5, ~mask[2]
        several += (seen.sum(axis=0) > 1).sum()
        for channel, index in enumerate((0, 1, 3)):
            true, said, z = mask[index][valid], seen[channel][valid], logits[channel][valid]
            expected = [(true & said).sum(), true.sum(), said.sum()]
            assert np.abs(counted[:, channel] - expected).max() <= 2  # logits that are zero but for rounding
            right += (true == said).tolist()
            nll += np.where(true, np.logaddexp(0, -z), np.logaddexp(0, z)).tolist()
    assert several
    hits, truth, predicted = evaluation.counts.sum(axis=0)
    np.testing.assert_allclose(evaluation.metrics.iou, hits / (truth + predicted - hits))
    assert evaluation.metrics.pixel_accuracy == pytest.approx(np.mean(right), abs=1e-3)
    assert evaluation.calibration.nll == pytest.approx(np.mean(nll), rel=1e-4)
    records = evaluation.by_class(overlapping_classes)
    assert [(record.class_index, record.name) for record in records] == [(0, "sky"), (1, "road"), (3, "car")]
    assert [record.smoothed_iou for record in records] == list(evaluation.smoothed.iou)


def test_the_planes_of_waiting_images_take_a_bit_a_pixel(
    make_overlapping, overlapping_classes: LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dozens of images may wait for others of their size; a photograph's planes take a quarter of a gigabyte."""
    waited: list[Loaded] = []
    readers: list[int] = []

    def watched(images, batch_size):
        yield from batches_by_size((waited.append(one) or one for one in images), batch_size)

    def counted(function, items, *, workers, ahead):
        readers.append(workers)
        return map_ahead(function, items, workers=workers, ahead=ahead)

    monkeypatch.setattr("activeseg.nn.evaluate.batches_by_size", watched)
    monkeypatch.setattr("activeseg.nn.evaluate.map_ahead", counted)
    images = [planes(number, (40, 52)) for number in range(3)]
    evaluate(make_overlapping(), images, device=CPU, batch_size=2)
    assert readers == [2]
    assert [one.tag.mask.nbytes for one in waited] == [4 * 40 * 52 / 8] * 3
    for one, image in zip(waited, images, strict=True):
        expected = overlapping_classes.to_channels(image.load()[1])
        np.testing.assert_array_equal(one.tag.channels(overlapping_classes), expected)


def test_a_network_that_is_right_everywhere_has_full_marks(scenes, make_segmenter, label_set: LabelSet) -> None:
    """Logits made from the truth: 1 for every class that occurs, nothing for the one that does not."""

    class Oracle(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            truth = [torch.from_numpy(label_set.to_channels(scene.load()[1])).long() for scene in scenes]
            planes = [torch.nn.functional.one_hot(one.clamp(max=3), 4).movedim(-1, 0) * 50.0 for one in truth]
            return {"out": torch.stack(planes)}

    spec = make_segmenter().spec
    evaluation = evaluate(Segmenter(spec, Oracle(), "oracle"), scenes, device=CPU, batch_size=2)
    assert evaluation.overall()["mean_iou"] == evaluation.overall()["pixel_accuracy"] == 1
    assert (evaluation.calibration.nll, evaluation.calibration.ece) == (pytest.approx(0), pytest.approx(0))
    assert np.isnan(evaluation.metrics.iou[3])
    assert evaluation.smoothed.iou[3] == 1
    assert evaluation.overall()["smoothed_iou"] == pytest.approx(1)


def test_every_figure_has_its_name(make_segmenter, scenes) -> None:
    overall = evaluate(make_segmenter(), scenes, device=CPU).overall()
    assert list(overall) == ["mean_iou", "mean_dice", "pixel_accuracy", "nll", "ece", "smoothed_iou", "smoothed_dice"]
    assert np.isfinite(list(overall.values())).all()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_fitted_temperature_lowers_the_likelihood_loss_and_counts_nothing_else(
    make_segmenter, make_overlapping, scenes, overlap: bool
) -> None:
    segmenter = make_overlapping() if overlap else make_segmenter()
    images = [planes(number, (40, 52)) for number in range(3)] if overlap else list(scenes)
    first = evaluate(segmenter, images, device=CPU, fit_temperature=True)
    assert first.fitted is not None
    assert first.scaled is None
    found = round(first.fitted.temperature, 2)
    assert found != 1.0
    again = evaluate(segmenter, images, device=CPU, temperature=found)
    assert again.scaled is not None
    assert again.scaled.nll < again.calibration.nll == first.calibration.nll
    for beside in (found - 0.1, found + 0.1):
        other = evaluate(segmenter, images, device=CPU, temperature=beside)
        assert other.scaled is not None
        assert other.scaled.nll > again.scaled.nll or beside < 0.2
    assert np.array_equal(again.counts, first.counts)
    assert again.fitted is None
