from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from activeseg.core.entropy import reduce_logits
from activeseg.errors import DeviceMemoryError, ImageError, NonFiniteScoreError
from activeseg.imaging.decode import Decoded, resize_short_side
from activeseg.nn import batches
from activeseg.nn.batches import find_batch_size
from activeseg.nn.infer import predict_masks, score_images
from activeseg.nn.pace import Pace
from activeseg.nn.scoring import pack, unpack
from activeseg.records import ImageRef, ImageScore, ScoreFailure

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SIZES = [(48, 64), (40, 50), (48, 64), (33, 90), (48, 64), (40, 50), (1, 1), (48, 64)]


def refs(count: int = len(SIZES)) -> list[ImageRef]:
    return [ImageRef(100 + number, f"mem:{number}", "") for number in range(count)]


def read(image: ImageRef) -> np.ndarray:
    number = image.image_id - 100
    return np.random.default_rng(number).integers(0, 256, size=(*SIZES[number % len(SIZES)], 3), dtype=np.uint8)


@pytest.fixture
def sure_segmenter(make_segmenter):
    """Random weights whose predictions differ from place to place."""
    segmenter = make_segmenter()
    with torch.no_grad():
        for layer in segmenter.module.score.values():
            layer.weight.mul_(300)
    return segmenter


def probabilities(segmenter, pixels: np.ndarray) -> np.ndarray:
    x = torch.tensor(pixels / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        return segmenter.module.eval()(x)["out"].double().softmax(1)[0].numpy()


def test_scores_equal_those_of_one_image_at_a_time(sure_segmenter) -> None:
    results = list(score_images(sure_segmenter, refs(), read, device=CPU, precision="float32", batch_size=3))
    assert sorted(result.image_id for result in results) == [ref.image_id for ref in refs()]
    for result in results:
        pixels = read(ImageRef(result.image_id, "", ""))
        p = probabilities(sure_segmenter, pixels)
        entropies, winner = scipy_entropy(p, axis=0), p.argmax(0)
        ordered = np.sort(p, axis=0)
        assert isinstance(result, ImageScore)
        assert result.valid_pixels == winner.size
        assert result.entropy_sum == pytest.approx(entropies.sum(), rel=1e-4)
        assert result.entropy_mean == pytest.approx(entropies.mean(), rel=1e-4)
        assert result.entropy_share == pytest.approx((entropies > math.log(4) / 2).mean(), abs=2 / winner.size)
        assert result.margin_mean == pytest.approx((1 - ordered[-1] + ordered[-2]).mean(), rel=1e-3)
        assert result.least_confidence_mean == pytest.approx((1 - ordered[-1]).mean(), rel=1e-3, abs=1e-6)
        assert sum(result.grid) == pytest.approx(result.entropy_sum)
        assert [one.class_index for one in result.classes] == [0, 1, 3, 4]
        for channel, one in enumerate(result.classes):
            region = winner == channel
            assert one.channel_entropy_sum == pytest.approx(-(p[channel] * np.log(p[channel])).sum(), rel=1e-3, abs=1e-3)
            assert one.region_pixels == pytest.approx(region.sum(), abs=2)
            if one.region_pixels > 50:
                assert one.region_entropy_sum == pytest.approx(entropies[region].sum(), rel=2e-2)
                assert one.mean_confidence == pytest.approx(p[channel][region].mean(), rel=1e-2)
            if one.region_pixels == 0:
                assert one.mean_confidence is None


def test_entropies_are_summed_at_the_size_of_the_input_policy(make_segmenter) -> None:
    [score] = score_images(make_segmenter(short_side=96), refs(1), read, device=CPU)
    assert score.valid_pixels == 96 * 128


def test_images_of_one_size_come_back_in_order(make_segmenter) -> None:
    same = [ref for ref in refs(24) if SIZES[(ref.image_id - 100) % len(SIZES)] == (48, 64)]
    results = score_images(make_segmenter(), same, read, device=CPU, batch_size=3)
    assert [result.image_id for result in results] == [ref.image_id for ref in same]


def test_results_come_before_all_images_are_taken(make_segmenter) -> None:
    taken: list[int] = []

    def images() -> Iterator[ImageRef]:
        for ref in refs(200):
            taken.append(ref.image_id)
            yield ref

    results = score_images(make_segmenter(), images(), lambda ref: read(ImageRef(100, "", "")), device=CPU, batch_size=2)
    assert next(results).image_id == 100
    assert len(taken) < 12
    results.close()


def test_odd_sizes_do_not_wait_for_ever(make_segmenter) -> None:
    """One image of a size of its own at the front is scored long before the end."""
    sizes = iter([(50, 50)] + [(33, 33 + number % 20) for number in range(60)])
    by_id = {100 + number: size for number, size in enumerate(sizes)}

    def read_odd(ref: ImageRef) -> np.ndarray:
        return np.zeros((*by_id[ref.image_id], 3), np.uint8)

    ids = [result.image_id for result in score_images(make_segmenter(), refs(61), read_odd, device=CPU, batch_size=2)]
    assert sorted(ids) == sorted(by_id)
    assert ids.index(100) < 20


def test_large_images_make_smaller_batches(make_segmenter, monkeypatch) -> None:
    monkeypatch.setattr(batches, "MAX_BATCH_PIXELS", 2 * 48 * 64)
    sizes: list[int] = []
    segmenter = make_segmenter()
    segmenter.module.encoder[0].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    list(score_images(segmenter, refs(), lambda ref: read(ImageRef(100, "", "")), device=CPU, batch_size=8))
    assert sizes == [2, 2, 2, 2]
    monkeypatch.setattr(batches, "MAX_BATCH_PIXELS", 10)
    assert len(list(score_images(segmenter, refs(2), read, device=CPU))) == 2


def test_a_bad_image_fails_alone(make_segmenter) -> None:
    def read_some(ref: ImageRef) -> np.ndarray:
        if ref.image_id == 102:
            raise ImageError("truncated")
        return read(ref) if ref.image_id != 105 else np.zeros((4, 4), np.uint8)

    for run in (score_images, predict_masks):
        results = {result.image_id: result for result in run(make_segmenter(), refs(), read_some, device=CPU)}
        assert len(results) == len(SIZES)
        assert results[102] == ScoreFailure(102, "truncated")
        assert isinstance(results[105], ScoreFailure)
        assert sum(isinstance(result, ScoreFailure) for result in results.values()) == 2


def test_other_errors_of_reading_are_not_hidden(make_segmenter) -> None:
    def fail(ref: ImageRef) -> np.ndarray:
        raise ConnectionError("bucket is gone")

    with pytest.raises(ConnectionError, match="bucket"):
        list(score_images(make_segmenter(), refs(), fail, device=CPU))


def test_a_score_that_is_no_number_raises_and_names_the_image(make_segmenter) -> None:
    segmenter = make_segmenter()
    with torch.no_grad():
        segmenter.module.score["8"].bias[1] = math.nan
    for run in (score_images, predict_masks):
        with pytest.raises(NonFiniteScoreError, match=r"image 100 \(mem:0\)"):
            list(run(segmenter, refs(1), read, device=CPU))


def test_the_module_is_left_as_it_was_between_results(make_segmenter) -> None:
    segmenter = make_segmenter()
    segmenter.module.train()
    statistics = segmenter.module.encoder[0][1].running_mean.clone()
    for _ in score_images(segmenter, refs(), read, device=CPU, batch_size=2):
        assert segmenter.module.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert torch.equal(segmenter.module.encoder[0][1].running_mean, statistics)
    segmenter.module(torch.rand(2, 3, 33, 33))["out"].sum().backward()  # still trains


@pytest.mark.parametrize("short_side", [None, 40])
def test_masks_and_maps_have_the_images_own_size(make_segmenter, label_set, short_side) -> None:
    segmenter = make_segmenter(short_side=short_side)
    for layer in segmenter.module.score.values():
        torch.nn.init.normal_(layer.weight, std=3.0)
    for prediction in predict_masks(segmenter, refs(), read, device=CPU, batch_size=3):
        size = SIZES[prediction.image_id - 100]
        assert prediction.mask.shape == prediction.entropy.shape == size
        assert prediction.mask.dtype == np.uint8
        assert prediction.entropy.dtype == np.float32
        assert set(np.unique(prediction.mask)) == set(prediction.confidences) <= {0, 1, 3, 4}
        assert all(0 < confidence <= 1 for confidence in prediction.confidences.values())
        assert 0 <= prediction.entropy.min() <= prediction.entropy.max() <= math.log(4) + 1e-5


def test_a_prediction_equals_the_one_of_the_image_alone(sure_segmenter, label_set) -> None:
    for prediction in predict_masks(sure_segmenter, refs(), read, device=CPU, precision="float32", batch_size=3):
        p = probabilities(sure_segmenter, read(ImageRef(prediction.image_id, "", "")))
        assert (prediction.mask == label_set.to_indices(p.argmax(0).astype(np.uint8))).mean() > 0.999
        assert np.allclose(prediction.entropy, scipy_entropy(p, axis=0), atol=1e-3)
        winner = p.max(0)
        for index, confidence in prediction.confidences.items():
            region = prediction.mask == index
            if region.sum() > 50:
                assert confidence == pytest.approx(winner[region].mean(), rel=1e-2)


def yes(segmenter, pixels: np.ndarray) -> np.ndarray:
    """Each class's own probability (C, H, W) float64."""
    x = torch.tensor(pixels / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        return segmenter.module.eval()(x)["out"].double().sigmoid()[0].numpy()


def binary_entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p) + (1 - p) * np.log1p(-p))


def test_scores_of_overlapping_classes_are_sums_of_binary_entropies(make_overlapping) -> None:
    segmenter = make_overlapping()
    for result in score_images(segmenter, refs(), read, device=CPU, precision="float32", batch_size=3):
        p = yes(segmenter, read(ImageRef(result.image_id, "", "")))
        entropies = binary_entropy(p)
        assert isinstance(result, ImageScore)
        assert result.entropy_sum == pytest.approx(entropies.sum(), rel=1e-4)
        assert result.entropy_share == pytest.approx((entropies.sum(0) > 3 * math.log(2) / 2).mean(), abs=2 / entropies[0].size)
        assert [one.class_index for one in result.classes] == [0, 1, 3]
        for channel, one in enumerate(result.classes):
            region = p[channel] > 0.5
            assert one.channel_entropy_sum == pytest.approx(entropies[channel].sum(), rel=1e-4)
            assert one.region_pixels == pytest.approx(region.sum(), abs=2)
            if one.region_pixels > 50:
                assert one.region_entropy_sum == pytest.approx(entropies.sum(0)[region].sum(), rel=2e-2)
                assert one.mean_confidence == pytest.approx(p[channel][region].mean(), rel=1e-2)


def test_masks_of_overlapping_classes_are_planes(make_overlapping, overlapping_classes) -> None:
    segmenter, several, none = make_overlapping(), 0, 0
    for prediction in predict_masks(segmenter, refs(), read, device=CPU, precision="float32", batch_size=3):
        p = yes(segmenter, read(ImageRef(prediction.image_id, "", "")))
        size = SIZES[prediction.image_id - 100]
        assert (prediction.mask.shape, prediction.mask.dtype) == ((4, *size), np.bool_)
        overlapping_classes.check_mask(prediction.mask)
        assert not prediction.mask[2].any()  # nothing is predicted as the ignored class
        assert (prediction.mask[[0, 1, 3]] == (p > 0.5)).mean() > 0.999
        assert np.allclose(prediction.entropy, binary_entropy(p).sum(0), atol=1e-3)
        assert set(prediction.confidences) == {index for index in range(4) if prediction.mask[index].any()}
        for index, confidence in prediction.confidences.items():
            region = prediction.mask[index]
            if region.sum() > 50:
                assert confidence == pytest.approx(p[[0, 1, 3].index(index)][region].mean(), rel=1e-2)
        several += (prediction.mask.sum(axis=0) > 1).sum()
        none += (~prediction.mask.any(axis=0)).sum()
    assert several
    assert none


def test_planes_are_cut_from_logits_at_the_images_own_size(make_overlapping) -> None:
    """Logits are resized, then compared with one half: no plane has the blocks of a smaller one."""
    segmenter = make_overlapping(short_side=24)
    [prediction] = predict_masks(segmenter, refs(1), read, device=CPU)
    captured: list[torch.Tensor] = []
    segmenter.module.register_forward_hook(lambda module, inputs, output: captured.append(output["out"]))
    [again] = predict_masks(segmenter, refs(1), read, device=CPU)
    resized = torch.nn.functional.interpolate(captured[0], size=SIZES[0], mode="bilinear", align_corners=False)[0]
    assert np.array_equal(prediction.mask[[0, 1, 3]], (resized.double().sigmoid() > 0.5).numpy())
    assert np.array_equal(prediction.mask, again.mask)


def scarce(segmenter, most_pixels: int, monkeypatch, error: type[BaseException] = torch.OutOfMemoryError) -> list[int]:
    """Let the network run out of memory for batches with more pixels than that; returns the sizes it was asked for."""
    asked: list[int] = []
    features = segmenter.module.features

    def limited(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        asked.append(len(x))
        if x[:, 0].numel() > most_pixels:
            raise error("CUDA out of memory. Tried to allocate 20.00 GiB\nand more")
        return features(x)

    monkeypatch.setattr(segmenter.module, "features", limited)
    return asked


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_out_of_memory_halves_the_batch_and_loses_no_image(make_segmenter, monkeypatch, error) -> None:
    segmenter = make_segmenter()
    same = [ref for ref in refs(48) if SIZES[(ref.image_id - 100) % len(SIZES)] == (48, 64)]
    expected = list(score_images(segmenter, same, read, device=CPU, batch_size=2))
    asked = scarce(segmenter, 3 * 48 * 64, monkeypatch, error)
    found = list(score_images(segmenter, same, read, device=CPU, batch_size=8))
    assert [one.image_id for one in found] == [ref.image_id for ref in same]
    assert [one.entropy_sum for one in found] == pytest.approx([one.entropy_sum for one in expected], rel=1e-5)
    assert asked[:4] == [8, 4, 2, 2]
    assert max(asked[7:]) == 2  # what did not fit once is not tried again


def test_libraries_say_in_their_own_words_that_memory_is_short() -> None:
    assert batches.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not batches.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_an_image_too_large_for_the_memory_fails_alone_and_last(make_segmenter, monkeypatch) -> None:
    segmenter = make_segmenter()
    large = {100, 105}

    def sized(ref: ImageRef) -> np.ndarray:
        return np.zeros((90, 120, 3) if ref.image_id in large else (48, 64, 3), np.uint8)

    scarce(segmenter, 2 * 48 * 64, monkeypatch)
    pace = Pace()
    found = list(score_images(segmenter, refs(), sized, device=CPU, batch_size=2, pace=pace))
    assert (pace.images, pace.failed) == (len(SIZES) - len(large), len(large))
    failed = {one.image_id: one.reason for one in found if isinstance(one, ScoreFailure)}
    assert failed.keys() == large
    assert all("120x90" in reason and "short_side" in reason for reason in failed.values())
    assert len(found) == len(SIZES)


@pytest.mark.parametrize("small", [range(100, 103), range(130, 133)])
def test_any_number_of_images_too_large_for_the_memory_fail_alone(make_segmenter, monkeypatch, small: range) -> None:
    """Also where they come first: before any is known to fit."""
    segmenter = make_segmenter()

    def sized(ref: ImageRef) -> np.ndarray:
        return np.zeros((48, 64, 3) if ref.image_id in small else (90, 120, 3), np.uint8)

    scarce(segmenter, 2 * 48 * 64, monkeypatch)
    found = list(score_images(segmenter, refs(40), sized, device=CPU, batch_size=2))
    assert sorted(one.image_id for one in found if isinstance(one, ImageScore)) == list(small)
    failed = {one.image_id: one.reason for one in found if isinstance(one, ScoreFailure)}
    assert len(failed) == 37
    assert all("120x90" in reason and "short_side" in reason for reason in failed.values())


def test_a_memory_that_no_image_fits_into_is_told_before_the_whole_pool_was_tried(make_segmenter, monkeypatch) -> None:
    segmenter = make_segmenter()
    asked = scarce(segmenter, 0, monkeypatch)
    with pytest.raises(DeviceMemoryError, match="short_side"):
        list(score_images(segmenter, refs(1000), lambda ref: read(ImageRef(100, "", "")), device=CPU, batch_size=1))
    assert len(asked) < 100


def test_memory_that_is_gone_altogether_is_no_image_s_fault(make_segmenter, monkeypatch) -> None:
    segmenter = make_segmenter()
    scarce(segmenter, 0, monkeypatch)
    with pytest.raises(DeviceMemoryError, match="short_side"):
        list(score_images(segmenter, refs(), read, device=CPU))
    segmenter = make_segmenter()
    results = score_images(segmenter, refs(), lambda ref: read(ImageRef(100, "", "")), device=CPU, batch_size=1)
    next(results)
    scarce(segmenter, 0, monkeypatch)  # it fitted a moment ago
    with pytest.raises(DeviceMemoryError, match="another process"):
        list(results)


def test_other_errors_of_the_network_are_raised(make_segmenter, monkeypatch) -> None:
    segmenter = make_segmenter()
    monkeypatch.setattr(segmenter.module, "features", lambda x: x @ x)
    with pytest.raises(RuntimeError, match=r"mat|size|shape"):
        list(score_images(segmenter, refs(1), lambda ref: np.zeros((40, 50, 3), np.uint8), device=CPU))


def test_the_batch_size_is_found_by_trying() -> None:
    memory, speed = 20, {1: 1.0, 2: 1.2, 4: 1.6, 8: 2.0, 16: 3.0}

    def seconds(images: int) -> float:
        if images > memory:
            raise torch.OutOfMemoryError
        return speed[images]

    assert find_batch_size(seconds) == 16
    speed[8] = 3.2  # no faster per image than 4 of them
    assert find_batch_size(seconds) == 4
    memory = 0
    assert find_batch_size(seconds) == 1


def test_statistics_survive_being_packed_into_less_than_a_kilobyte() -> None:
    statistics = reduce_logits(torch.randn(3, 4, 21, 30))
    found = unpack(pack(statistics), 4)
    for name in ("entropy_sum", "valid_pixels", "entropy_share", "grid", "region_pixels", "mean_confidence"):
        one, other = getattr(found, name), getattr(statistics, name)
        assert one.dtype == other.dtype
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    assert pack(reduce_logits(torch.randn(1, 21, 8, 8))).nbytes < 1000


def test_images_may_come_decoded_as_the_network_wants_them(make_segmenter) -> None:
    segmenter = make_segmenter(short_side=96)
    whole = list(score_images(segmenter, refs(), read, device=CPU))
    policy = segmenter.spec.input_policy

    def ready(ref: ImageRef) -> Decoded:
        pixels = read(ref)
        return Decoded(resize_short_side(pixels, policy.short_side), pixels.shape[:2])

    assert list(score_images(segmenter, refs(), ready, device=CPU)) == whole
    for prediction in predict_masks(segmenter, refs(), ready, device=CPU):
        assert prediction.mask.shape == SIZES[prediction.image_id - 100]
