from __future__ import annotations

import numpy as np
import pytest
import torch

from activeseg.core.labels import UNLABELED
from activeseg.errors import ImageError, MaskError
from activeseg.nn.crops import draw_batch
from activeseg.nn.data import LabeledImage, Samples, to_input, to_pixels
from activeseg.records import InputPolicy

HALVES = InputPolicy(None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def counted(image: LabeledImage, calls: list[int]) -> LabeledImage:
    def load():
        calls.append(image.image_id)
        return image.load()

    return LabeledImage(image.image_id, load)


def test_decoded_images_are_kept_up_to_the_budget_and_decoded_again_beyond_it(scenes, label_set) -> None:
    calls: list[int] = []
    one_image = 48 * 64 * 4
    samples = Samples([counted(scene, calls) for scene in scenes], label_set, HALVES, budget=one_image)
    for _ in range(3):
        for position in range(2):
            assert torch.equal(samples[position][0], to_pixels(scenes[position].load()[0]))
    assert calls.count(10) == 1
    assert calls.count(11) == 3


def test_channels_replace_class_indices_and_ignored_pixels_are_unlabelled(scenes, label_set) -> None:
    channels = Samples(scenes, label_set, HALVES)[0][1]
    assert np.array_equal(channels.numpy(), label_set.to_channels(scenes[0].load()[1]))
    assert (channels[:, 60:] == UNLABELED).all()
    assert set(channels.unique().tolist()) == {0, 1, 2, UNLABELED}


def test_the_resize_policy_applies_to_image_and_mask(scenes, label_set) -> None:
    pixels, channels = Samples(scenes, label_set, InputPolicy(24))[0]
    assert pixels.shape == (3, 24, 32)
    assert channels.shape == (24, 32)
    assert set(channels.unique().tolist()) <= {0, 1, 2, UNLABELED}


def test_a_step_depends_on_the_seed_and_its_number_only(scenes, label_set, recipe) -> None:
    torch.manual_seed(1)
    samples = Samples(scenes, label_set, HALVES)
    later = [draw_batch(samples, recipe(seed=7), step) for step in (5, 3, 4)]
    np.random.seed(0), torch.manual_seed(2)
    again = [draw_batch(Samples(scenes, label_set, HALVES), recipe(seed=7), step) for step in (5, 3, 4)]
    for (pixels, channels), (pixels_again, channels_again) in zip(later, again, strict=True):
        assert torch.equal(pixels, pixels_again)
        assert torch.equal(channels, channels_again)
    assert not torch.equal(later[0][0], later[1][0])
    assert not torch.equal(later[0][0], draw_batch(samples, recipe(seed=8), 5)[0])


def test_every_image_is_shown_equally_often(scenes, label_set, recipe) -> None:
    calls: list[int] = []
    images = [LabeledImage(number, scenes[0].load) for number in range(7)]
    samples = Samples([counted(image, calls) for image in images], label_set, HALVES, budget=0)
    for step in range(7):
        draw_batch(samples, recipe(batch_size=4), step)
    assert sorted(calls) == sorted(list(range(7)) * 4)


def test_crops_keep_image_and_mask_together(label_set, recipe) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[:, 30:] = 1
    mask[35:] = 4  # channel 3
    pixels = np.stack([np.array([40, 120, 0, 0, 200], np.uint8)[mask]] * 3, axis=2)
    samples = Samples([LabeledImage(1, lambda: (pixels, mask))], label_set, HALVES)
    for step in range(20):
        crops, channels = draw_batch(samples, recipe(crop=(40, 56), scale=(0.5, 2.0), color_jitter=0), step)
        # Away from borders between colours the pixel's colour tells its channel.
        expected = torch.full_like(channels, 254)
        for value, channel in ((40, 0), (120, 1), (200, 3)):
            expected[crops[:, 0] == value] = channel
        known = (expected != 254) & (channels != UNLABELED)
        assert known.float().mean() > 0.3
        assert (expected[known] == channels[known]).float().mean() > 0.97


def test_windows_larger_than_the_image_are_padded_with_nothing_labelled(label_set, recipe) -> None:
    white = np.full((20, 30, 3), 255, np.uint8), np.zeros((20, 30), np.uint8)
    samples = Samples([LabeledImage(1, lambda: white)], label_set, HALVES)
    crops, channels = draw_batch(samples, recipe(crop=(48, 64), scale=(1.0, 1.0), batch_size=8), 0)
    assert crops.shape == (8, 3, 48, 64)
    assert (channels != UNLABELED).sum(dim=(1, 2)).tolist() == [600] * 8
    outside = crops.permute(0, 2, 3, 1)[channels == UNLABELED].float()
    assert outside.std() == 0 or (outside - 127.5).abs().max() < 40  # the mean colour, up to jitter
    corners = {tuple(torch.nonzero(one != UNLABELED)[0].tolist()) for one in channels}
    assert len(corners) > 1


def test_masks_never_get_values_between_two_classes(label_set, overlapping_classes, recipe) -> None:
    """Channels 0 and 3 in a fine pattern: any mixing would give 1 or 2, and 0 and 1 in planes any other value."""
    mask = np.where(np.indices((47, 61)).sum(axis=0) % 3 == 0, 4, 0).astype(np.uint8)
    planes = np.stack([mask == 0, mask == 4, np.zeros_like(mask, bool), mask == 0])
    pixels = np.zeros((47, 61, 3), np.uint8)
    config = recipe(crop=(40, 56), scale=(0.4, 2.5))
    for given, classes, allowed in ((mask, label_set, {0, 3, UNLABELED}), (planes, overlapping_classes, {0, 1, UNLABELED})):
        samples = Samples([LabeledImage(1, lambda given=given: (pixels, given))], classes, InputPolicy(33))
        for augment in ("crop", "none"):
            drawn = [draw_batch(samples, config.model_copy(update={"augment": augment}), step)[1] for step in range(10)]
            assert set(torch.cat(drawn).unique().tolist()) <= allowed


def test_planes_stay_with_their_image(overlapping_classes, recipe) -> None:
    planes = np.zeros((4, 60, 80), np.bool_)
    planes[0, :30], planes[1, :, 40:], planes[3, 20:50, 20:60] = True, True, True
    pixels = (200 * planes[[0, 1, 3]].transpose(1, 2, 0) + 20).astype(np.uint8)  # one colour for each channel
    samples = Samples([LabeledImage(1, lambda: (pixels, planes))], overlapping_classes, HALVES)
    for step in range(10):
        crops, targets = draw_batch(samples, recipe(crop=(40, 56), color_jitter=0), step)
        assert targets.shape == (2, 3, 40, 56)
        known = (targets != UNLABELED) & ((crops < 40) | (crops > 200))
        assert known.float().mean() > 0.5
        assert ((crops > 120) == (targets == 1))[known].float().mean() > 0.99


def test_the_shrunk_mask_lies_where_the_shrunk_image_lies(label_set, recipe) -> None:
    """An edge at an odd place: nearest without half-pixel centres would move it against the bilinear image."""
    mask = np.zeros((90, 90), np.uint8)
    mask[:, 44:] = 1
    pixels = np.repeat((mask * 200)[:, :, None], 3, axis=2)
    samples = Samples([LabeledImage(1, lambda: (pixels, mask))], label_set, HALVES)
    crops, channels = draw_batch(samples, recipe(augment="none", crop=(30, 30), color_jitter=0, batch_size=1), 0)
    assert torch.equal(channels[0], (crops[0, 0] > 100).to(torch.uint8))


def test_without_augmentation_whole_images_are_shown_as_they_are(scenes, label_set, recipe) -> None:
    config = recipe(augment="none", color_jitter=0, crop=(48, 64), batch_size=2)
    samples = Samples(scenes, label_set, HALVES)
    crops, channels = draw_batch(samples, config, 0)
    shown = {crop.numpy().tobytes(): target for crop, target in zip(crops, channels, strict=True)}
    for position in range(2):
        pixels, target = samples[position]
        assert torch.equal(shown[pixels.contiguous().numpy().tobytes()], target)


def test_half_of_the_crops_are_mirrored(label_set, recipe) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[:, 32:] = 1
    image = np.zeros((48, 64, 3), np.uint8), mask
    samples = Samples([LabeledImage(1, lambda: image)], label_set, HALVES)
    left = torch.stack([draw_batch(samples, recipe(scale=(1, 1), batch_size=1), step)[1][0, 0, 0] for step in range(100)])
    assert 30 < (left == 1).sum() < 70


def test_misfitting_masks_name_the_image(label_set) -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    for mask, told in (
        (np.zeros((64, 48), np.uint8), "image 5: mask is 48x64"),
        (np.full((48, 64), 9, np.uint8), "image 5: .*9"),
    ):
        with pytest.raises(MaskError, match=told):
            Samples([LabeledImage(5, lambda mask=mask: (pixels, mask))], label_set, HALVES)[0]


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_only_rgb_bytes_are_pixels(pixels) -> None:
    with pytest.raises(ImageError, match="uint8"):
        to_pixels(pixels)


def test_half_and_half_scaling_is_the_one_of_tensorflow_weights() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    assert torch.allclose(to_input(pixels, HALVES, torch.device("cpu")), pixels / 127.5 - 1, atol=1e-6)


def test_scaling_is_the_one_of_torchvision() -> None:
    from torchvision.transforms.v2.functional import normalize

    pixels = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    policy = InputPolicy()
    expected = normalize(pixels / 255, list(policy.mean), list(policy.std))
    assert torch.allclose(to_input(pixels, policy, torch.device("cpu")), expected, atol=1e-5)
