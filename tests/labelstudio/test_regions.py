from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.errors import AnnotationError, MaskError
from activeseg.labelstudio.bitmask import decode_bitmask, encode_bitmask
from activeseg.labelstudio.regions import mask_to_result, result_to_mask

KINDS = ("brush", "bitmask")
LABELS = LabelSet(("sky & <sun>", 'a "quoted"', "Fußweg 歩道", "void"), ((0, 0, 0),) * 4, 3)
OVERLAPPING = LabelSet(("person", "bag", "void"), ((0, 0, 0),) * 3, 2, overlap=True)
planes = hnp.arrays(np.bool_, st.tuples(st.just(3), st.integers(1, 20), st.integers(1, 20)))
masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.sampled_from([0, 1, 2, 3, UNLABELED])
)


def paint(index: int, where: np.ndarray, origin: str | None, kind: str = "brush") -> dict:
    region = mask_to_result(np.where(where, index, UNLABELED).astype(np.uint8), LABELS, kind=kind)[0]
    return region | ({"origin": origin} if origin else {})


def area(*rows: str) -> np.ndarray:
    return np.array([[sign == "#" for sign in row] for row in rows])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(mask=masks)
def test_a_mask_survives_pixel_by_pixel(kind, mask):
    result = mask_to_result(mask, LABELS, kind=kind)
    height, width = mask.shape
    drawn = result_to_mask(result, LABELS, width=width, height=height)
    assert np.array_equal(drawn.mask, mask)
    assert drawn.regions == len(set(mask.ravel().tolist()) - {UNLABELED})


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(mask=planes)
def test_planes_survive_with_their_overlaps(kind, mask):
    result = mask_to_result(mask, OVERLAPPING, kind=kind)
    drawn = result_to_mask(result, OVERLAPPING, width=mask.shape[2], height=mask.shape[1])
    assert drawn.mask.dtype == np.bool_
    assert np.array_equal(drawn.mask, mask)
    assert drawn.regions == int(mask.any(axis=(1, 2)).sum())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(planes, min_size=1, max_size=3), data=st.data())
def test_where_classes_overlap_a_class_is_the_union_of_its_regions_whoever_drew_them(kind, parts, data):
    shape = parts[0].shape
    parts = [np.resize(part, shape) for part in parts]
    regions = [region for part in parts for region in mask_to_result(part, OVERLAPPING, kind=kind)]
    origins = st.sampled_from(["prediction", "prediction-changed", "manual", None])
    regions = [region | {"origin": data.draw(origins)} for region in data.draw(st.permutations(regions))]
    drawn = result_to_mask(regions, OVERLAPPING, width=shape[2], height=shape[1])
    assert np.array_equal(drawn.mask, np.logical_or.reduce(parts))
    assert drawn.changed == sum(region["origin"] != "prediction" for region in regions)


def test_where_classes_overlap_the_smallest_region_comes_first_and_no_region_means_no_class():
    mask = np.zeros((3, 4, 5), bool)
    mask[0], mask[1, 1:3, 1:3] = True, True
    labels = [region["value"]["brushlabels"] for region in mask_to_result(mask, OVERLAPPING, kind="brush")]
    assert labels == [["bag"], ["person"]]
    assert not result_to_mask([], OVERLAPPING, width=5, height=4).mask.any()


def test_a_mask_of_the_other_kind_is_not_sent():
    with pytest.raises(MaskError, match=r"expected planes \(3, H, W\)"):
        mask_to_result(np.zeros((2, 2), np.uint8), OVERLAPPING, kind="brush")
    with pytest.raises(MaskError, match=r"expected class indices"):
        mask_to_result(np.zeros((4, 2, 2), bool), LABELS, kind="brush")


def test_pixels_under_no_region_get_the_fill():
    result = [paint(1, area("#..", "..."), None)]
    assert result_to_mask(result, LABELS, width=3, height=2, fill=2).mask.tolist() == [[1, 2, 2], [2, 2, 2]]
    assert result_to_mask([], LABELS, width=2, height=1).mask.tolist() == [[UNLABELED, UNLABELED]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_person_drew_lies_above_untouched_predictions_whatever_the_order(kind):
    result = [
        paint(0, area("##.."), "prediction-changed", kind),
        paint(1, area(".###"), "prediction", kind),
        paint(2, area("..#."), "manual", kind),
        paint(3, area("###."), "prediction", kind),
    ]
    drawn = result_to_mask(result, LABELS, width=4, height=1)
    assert drawn.mask.tolist() == [[0, 0, 2, 1]]
    assert (drawn.regions, drawn.changed) == (4, 2)


def test_a_link_between_two_regions_says_nothing_about_pixels():
    regions = [paint(0, area("##."), "prediction"), paint(1, area("..#"), "manual")]
    link = {"type": "relation", "from_id": regions[0]["id"], "to_id": regions[1]["id"], "direction": "right"}
    linked = result_to_mask([regions[0], link, regions[1]], LABELS, width=3, height=1)
    assert linked.mask.tolist() == [[0, 0, 1]]
    assert (linked.regions, linked.changed) == (2, 1)


def test_of_two_strokes_the_later_wins():
    result = [paint(0, area("##."), "manual"), paint(1, area(".##"), "manual")]
    assert result_to_mask(result, LABELS, width=3, height=1).mask.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_predictions_a_person_edited_the_first_one_wins_as_on_the_screen(kind):
    result = [
        paint(0, area("###..."), "prediction-changed", kind),
        paint(1, area("..###."), "prediction-changed", kind),
        paint(2, area("#####."), "prediction", kind),
    ]
    drawn = result_to_mask(result, LABELS, width=6, height=1)
    assert drawn.mask.tolist() == [[0, 0, 0, 1, 1, UNLABELED]]
    assert (drawn.regions, drawn.changed) == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    areas=st.lists(hnp.arrays(np.bool_, (4, 5)), max_size=6),
    overlap=st.booleans(),
    data=st.data(),
)
def test_masks_and_overlap_shares_are_what_painting_by_the_rules_gives(kind, areas, overlap, data):
    label_set = replace(LABELS, overlap=overlap)
    origins = [data.draw(st.sampled_from(["prediction", "prediction-changed", "manual", None])) for _ in areas]
    classes = [data.draw(st.integers(0, 3)) for _ in areas]
    areas = [area | np.eye(4, 5, k=data.draw(st.integers(0, 3)), dtype=bool) for area in areas]  # none is empty
    result = [paint(*region, kind) for region in zip(classes, areas, origins, strict=True)]
    drawn = result_to_mask(result, label_set, width=5, height=4, fill=3)

    height = {"prediction": 0, "prediction-changed": 1}
    for y, x in np.ndindex(4, 5):
        under = [n for n, area in enumerate(areas) if area[y, x]]
        # Highest layer; within it the later one, but of edited predictions the earlier one.
        top = max(
            under, key=lambda n: (height.get(origins[n], 2), -n if origins[n] == "prediction-changed" else n), default=None
        )
        if overlap:
            assert set(np.flatnonzero(drawn.mask[:, y, x])) == {classes[n] for n in under}
        else:
            assert drawn.mask[y, x] == (3 if top is None else classes[top])
    assert drawn.overlap_share == pytest.approx(np.mean(sum(np.stack(areas).astype(int)) > 1) if areas else 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_untouched_prediction_of_exclusive_classes_has_no_overlap_and_a_stroke_over_it_has_its_own_share(kind):
    result = [paint(0, area("##.."), "prediction", kind), paint(1, area("..##"), "prediction", kind)]
    assert result_to_mask(result, LABELS, width=4, height=1).overlap_share == 0.0
    result.append(paint(2, area(".#.."), "manual", kind))
    assert result_to_mask(result, LABELS, width=4, height=1).overlap_share == 0.25
    assert result_to_mask([], LABELS, width=4, height=1).overlap_share == 0.0


@pytest.mark.parametrize("origin", ["manual", None])
def test_what_a_person_drew_lies_above_what_they_edited(origin):
    result = [paint(1, area(".#."), origin), paint(0, area("##."), "prediction-changed"), paint(3, area("###"), "prediction")]
    assert result_to_mask(result, LABELS, width=3, height=1).mask.tolist() == [[0, 1, 3]]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_region_numbers_differ_for_sixty_classes_of_the_same_shape_and_stay_when_repeated(kind, overlap):
    sixty = LabelSet(tuple(f"class {n}" for n in range(60)), ((0, 0, 0),) * 60, overlap=overlap)
    mask = np.ones((60, 3, 4), bool) if overlap else np.arange(60, dtype=np.uint8).reshape(6, 10)
    first, second = (mask_to_result(mask, sixty, kind=kind) for _ in range(2))
    assert len({region["id"] for region in first}) == len(first) == 60
    assert first == second


def test_region_numbers_are_unique_and_stable():
    mask = np.array([[0, 1], [2, 3]], np.uint8)
    first, second = (mask_to_result(mask, LABELS, kind="brush") for _ in range(2))
    assert len({region["id"] for region in first}) == 4
    assert first == second


def test_a_mask_with_unknown_values_is_not_sent():
    with pytest.raises(MaskError, match="9"):
        mask_to_result(np.array([[9]], np.uint8), LABELS, kind="brush")


def bitmask_of(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_a_browsers_soft_rgba_bitmask_is_cut_at_half_opacity():
    alpha = np.array([[0, 127, 128, 255]], np.uint8)
    rgba = np.dstack([np.zeros((1, 4, 3), np.uint8), alpha])
    assert decode_bitmask(bitmask_of(Image.fromarray(rgba)), 1, 4).tolist() == [[False, False, True, True]]


BOMB = bitmask_of(Image.new("1", (20_000, 20_000)))
GOOD = paint(0, area("#."), None)
GOOD_BITMASK = paint(0, area("#."), None, "bitmask")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "rectanglelabels"}, "type brushlabels or bitmasklabels"),
        ({"value": None}, "no value"),
        ({"original_width": 4}, "drawn on 4x1 pixels; the image has 2x1"),
        ({"image_rotation": 90}, "rotated by 90"),
        ({"value": GOOD["value"] | {"brushlabels": ["dragon"]}}, "unknown label 'dragon'"),
        ({"value": GOOD["value"] | {"brushlabels": ["void", "void"]}}, "exactly one label"),
        ({"value": {"rle": GOOD["value"]["rle"]}}, "exactly one label"),
        ({"value": {"brushlabels": ["void"]}}, "RLE"),
        ({"value": {"brushlabels": ["void"], "rle": {"a": 1}}}, "RLE"),
    ],
)
def test_what_does_not_fit_the_image_is_refused_with_its_place_and_reason(change, reason):
    with pytest.raises(AnnotationError, match=f"region 2 of 2: .*{reason}"):
        result_to_mask([GOOD, GOOD | change], LABELS, width=2, height=1)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "data:image/png"),
        ("http://127.0.0.1/mask.png", "data:image/png"),
        ("data:image/png;base64,%%%", "not a readable PNG"),
        ("data:image/png;base64,", "2x1"),
        (bitmask_of(Image.new("1", (1, 2))), "2x1"),
        (BOMB, "2x1"),
        (encode_bitmask(area("#."))[:-40], "not a readable PNG"),
    ],
    ids=["missing", "address", "no base64", "empty", "size", "bomb", "cut"],
)
def test_hostile_bitmasks_are_refused_with_the_reason(url, reason):
    region = GOOD_BITMASK | {"value": {"bitmasklabels": ["void"], "imageDataURL": url}}
    with pytest.raises(AnnotationError, match=reason):
        result_to_mask([region], LABELS, width=2, height=1)


@pytest.mark.parametrize("result", [None, "[]", {"a": 1}, [None], [[]], ["x"]])
def test_a_result_that_is_no_list_of_regions_is_refused(result):
    with pytest.raises(AnnotationError):
        result_to_mask(result, LABELS, width=2, height=1)
