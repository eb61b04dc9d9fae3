"""Run lengths and polygons are those of the COCO API, bit for bit; what is none is refused before anything is allocated."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as api

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.errors import DataError, MaskError
from activeseg.imaging import coco
from activeseg.imaging.coco import decode_counts, draw_polygons, encode_rle, run_lengths
from activeseg.imaging.coco_files import CocoWriter, parse_coco
from tests.factories import CLASSES

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))
OVERLAP = LabelSet(CLASSES.names, CLASSES.colors, CLASSES.ignore_index, overlap=True)


def runs_by_hand(mask: np.ndarray) -> list[int]:
    """One pixel after the other, down the columns."""
    counts, value = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != value:
                counts.append(0)
                value = not value
            counts[-1] += 1
    return counts


@given(MASKS)
def test_run_lengths_are_those_counted_pixel_by_pixel(mask: np.ndarray) -> None:
    assert run_lengths(mask).tolist() == runs_by_hand(mask)
    assert np.array_equal(decode_counts(runs_by_hand(mask), mask.shape), mask)


@given(MASKS)
def test_run_lengths_as_text_are_those_of_the_coco_api(mask: np.ndarray) -> None:
    ours, theirs = encode_rle(mask), api.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (ours["counts"].encode(), ours["size"]) == (theirs["counts"], theirs["size"])
    assert np.array_equal(decode_counts(ours["counts"], mask.shape), mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 70_000), (70_000, 1), (479, 361), (2048, 1024)])
def test_long_runs_and_odd_sizes_too(shape: tuple[int, int]) -> None:
    for mask in (np.zeros(shape, bool), np.ones(shape, bool), np.random.default_rng(0).random(shape) < 0.0005):
        assert encode_rle(mask)["counts"].encode() == api.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        assert np.array_equal(decode_counts(encode_rle(mask)["counts"], shape), mask)


@pytest.mark.slow
@given(st.data(), st.integers(1, 30), st.integers(1, 30))
def test_polygons_cover_the_pixels_that_the_coco_api_gives_them(data: st.DataObject, height: int, width: int) -> None:
    point = st.tuples(st.floats(-8, width + 8), st.floats(-8, height + 8))
    corners = data.draw(st.lists(st.lists(point, min_size=3, max_size=8), min_size=1, max_size=3))
    polygons = [[value for pair in polygon for value in pair] for polygon in corners]
    expected = api.decode(api.merge(api.frPyObjects(polygons, height, width)))
    assert np.array_equal(draw_polygons(polygons, (height, width)), expected.astype(bool))


@pytest.mark.slow
@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda data: data.decode("latin-1")))
def test_whatever_text_comes_is_a_mask_of_this_size_or_an_error(text: str) -> None:
    with suppress(MaskError):
        assert decode_counts(text, (7, 5)).shape == (7, 5)


def peak_of(call: Callable[[], None]) -> int:
    """Bytes that a call held at most."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    "counts",
    [
        [1 << 39], [1 << 62], [-1, 36], [35.0], [True] * 35, ["35"], [1 << 900], [20, 16], [],
        "", "P" * 3, "ooooooooooooooooooo0", "oooooo?", "ä", "31 3", "0" * 3_000_000, [0] * 3_000_000,
    ],
    ids=lambda counts: str(counts)[:20],
)  # fmt: skip
def test_hostile_run_lengths_are_refused_in_little_memory(counts: Any) -> None:
    def refuse() -> None:
        with pytest.raises(MaskError, match=r"^segmentation: "):
            decode_counts(counts, (7, 5))

    assert peak_of(refuse) < 1_000_000


@pytest.mark.parametrize(
    ("polygon", "told"),
    [
        ([1, 1, 2, 2], "three points or more"),
        ([1, 1, 2, 2, 3], "three points or more"),
        ([1, 1, 2, 2, 3, None], "three points or more"),
        ([1, 1, 2, 2, 3, float("nan")], "three points or more"),
        ([1, 1, 2, 2, 3, 10**400], "three points or more"),
        (["1", 1, 2, 2, 3, 4], "three points or more"),
        ("polygon", "three points or more"),
        ([1, 1, 2, 2, 3, 1e8], "far outside of its image of 5x7"),
    ],
)
def test_hostile_polygons_are_refused(polygon: Any, told: str) -> None:
    with pytest.raises(MaskError, match=told):
        draw_polygons([polygon], (7, 5))


def test_an_outline_without_end_is_refused_before_it_is_drawn() -> None:
    zigzag = [value for step in range(3000) for value in (0, 0, 2000, 2000 - step % 2)]

    def refuse() -> None:
        with pytest.raises(MaskError, match=f"at most {coco.MAX_OUTLINE} are drawn"):
            draw_polygons([zigzag], (2000, 2000))

    assert peak_of(refuse) < 20_000_000


def written(masks: dict[str, np.ndarray], label_set: LabelSet) -> Any:
    stream = io.StringIO()
    writer = CocoWriter(stream, label_set)
    for name, mask in masks.items():
        writer.add(name, mask)
    writer.close()
    return json.loads(stream.getvalue())


INDICES = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 1, 2, 3, UNLABELED]))


@given(st.lists(INDICES, max_size=4))
def test_a_file_that_was_written_gives_the_same_masks(masks: list[np.ndarray]) -> None:
    named = {f"{number}.png": mask for number, mask in enumerate(masks)}
    document = written(named, CLASSES)
    file = parse_coco(document)
    assert dict(file.problems) == {}
    assert list(file.images) == list(named)
    for name, mask in named.items():
        assert np.array_equal(file.mask(name, mask.shape, CLASSES, fill=UNLABELED), mask)


@given(arrays(np.bool_, st.tuples(st.just(4), st.integers(1, 9), st.integers(1, 9))))
def test_overlapping_planes_come_back_too(planes: np.ndarray) -> None:
    file = parse_coco(written({"a.png": planes}, OVERLAP))
    assert np.array_equal(file.mask("a.png", planes.shape[1:], OVERLAP, fill=0), planes)


@pytest.mark.slow
@given(INDICES)
def test_area_and_box_are_what_the_coco_api_measures(mask: np.ndarray) -> None:
    for annotation in written({"a.png": mask}, CLASSES)["annotations"]:
        segmentation = annotation["segmentation"] | {"counts": annotation["segmentation"]["counts"].encode()}
        assert annotation["area"] == api.area(segmentation)
        assert annotation["bbox"] == api.toBbox(segmentation).tolist()
        assert np.array_equal(api.decode(segmentation).astype(bool), mask == annotation["category_id"] - 1)


def small() -> Any:
    """A file of one image of 5x7, written by hand."""
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 5, "height": 7}],
        "categories": [{"id": 90, "name": "ball"}, {"id": 91, "name": "dog"}, {"id": 2, "name": "ground"}],
        "annotations": [annotation([[0, 0, 5, 0, 5, 7, 0, 7]], 2), annotation([[1, 1, 3, 1, 3, 3, 1, 3]], 90)],
    }


def annotation(segmentation: Any, category: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": category, "segmentation": segmentation}


def test_categories_are_classes_by_name_and_later_annotations_lie_over_earlier_ones() -> None:
    mask = parse_coco(small()).mask("a.png", (7, 5), CLASSES, fill=0)
    assert set(np.unique(mask)) == {1, 2}
    assert (mask[1:3, 1:3] == 2).all()


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (annotation([[0, 0, 5, 0, 5, 7]], 91), "category 'dog' is no class; the class list has: sky, ground, ball, void"),
        (annotation([[0, 0, 5, 0, 5, 7]], 5), "category 5 is not in the categories of the COCO file"),
        (annotation([[0, 0, 5, 0, 5, 7]], [5]), r"category \[5\] is not in"),
        (annotation([], 90), "expected polygons .* or run lengths"),
        (annotation(None, 90), "expected polygons .* or run lengths"),
        (annotation({"size": [7, 5], "counts": {"a": 1}}, 90), "expected polygons .* or run lengths"),
        (annotation({"size": [5, 7], "counts": [35]}, 90), r"its size \[height, width\] is \[5, 7\]"),
        (annotation({"size": [7, 5], "counts": [35, 1 << 39]}, 90), "its runs cover .* pixels, its image of 5x7 has 35"),
    ],
)
def test_what_does_not_describe_the_image_is_told(broken: dict[str, Any], told: str) -> None:
    document = small()
    document["annotations"].append(broken)
    with pytest.raises(MaskError, match=told):
        parse_coco(document).mask("a.png", (7, 5), CLASSES, fill=UNLABELED)


def test_an_image_of_another_size_than_the_file_says_is_refused() -> None:
    with pytest.raises(MaskError, match="says that it is 5x7, it is 7x5 when it stands upright"):
        parse_coco(small()).mask("a.png", (5, 7), CLASSES, fill=UNLABELED)


def test_images_listed_twice_cost_themselves_and_their_annotations() -> None:
    document = small()
    document["images"] += [{"id": 2, "file_name": "a.png"}, {"id": "x"}, 7, {"id": 9, "file_name": "c.png"}]
    file = parse_coco(document)
    assert list(file.images) == ["c.png"]
    assert file.problems["a.png"] == "its file name or its id is listed more than once"
    assert file.problems["images"].startswith("2 of them have")


@pytest.mark.parametrize("identity", [True, 1.0, "1", None, 2, [1], "\ud800"])
def test_an_annotation_of_no_listed_image_refuses_the_file(identity: Any) -> None:
    document = small()
    document["annotations"].append(annotation([[0, 0, 5, 0, 5, 7]], 90) | {"image_id": identity})
    with pytest.raises(DataError, match="annotation 3 belongs to no listed image: its image_id is ") as caught:
        parse_coco(document)
    str(caught.value).encode()
    with pytest.raises(DataError, match="annotation 3 belongs to no listed image: its image_id is None"):
        parse_coco(document | {"annotations": [*small()["annotations"], "annotation"]})


def test_a_category_of_two_names_refuses_the_file_and_one_listed_twice_does_not() -> None:
    document = small()
    document["categories"].append({"id": 2, "name": "ground"})
    assert parse_coco(document).categories[2] == "ground"
    document["categories"].append({"id": 90, "name": "sky"})
    with pytest.raises(DataError, match="category 90 is listed with two names: 'ball' and 'sky'"):
        parse_coco(document)


@pytest.mark.parametrize("identity", [True, 1.0, "1"])
def test_a_category_id_that_is_no_whole_number_fails_its_image(identity: Any) -> None:
    document = small()
    document["categories"].append({"id": 1, "name": "sky"})
    document["annotations"].append(annotation([[0, 0, 5, 0, 5, 7]], identity))
    with pytest.raises(MaskError, match=f"category {identity!r} is not in the categories"):
        parse_coco(document).mask("a.png", (7, 5), CLASSES, fill=UNLABELED)


HALF = "\ud800"


@pytest.mark.parametrize(
    "change",
    [
        {"images": [{"id": 1, "file_name": f"{HALF}.png", "width": 5, "height": 7}]},
        {"images": [{"id": 1, "file_name": "a.png", "width": HALF, "height": 7}]},
        {"categories": [{"id": 90, "name": HALF}, {"id": 2, "name": "ground"}]},
        {"annotations": [annotation(HALF, 2)]},
        {"annotations": [annotation({"size": HALF, "counts": [35]}, 2)]},
        {"annotations": [annotation({"size": [7, 5], "counts": HALF}, 2)]},
        {"annotations": [annotation([[0, 0, 5, 0, 5, HALF]], 2)]},
        {"annotations": [annotation([[0, 0, 5, 0, 5, 7]], HALF)]},
    ],
)
def test_halves_of_characters_cost_their_image_and_can_be_told(change: dict[str, Any]) -> None:
    file = parse_coco(small() | change)
    told = [*file.problems, *file.problems.values()]
    if "a.png" in file.images:
        with pytest.raises(MaskError) as caught:
            file.mask("a.png", (7, 5), CLASSES, fill=UNLABELED)
        told.append(str(caught.value))
    assert told
    "".join(told).encode()


def test_more_annotations_or_polygons_than_are_read_are_refused() -> None:
    polygon = [0, 0, 5, 0, 5, 7]
    document = small()
    document["annotations"] = [annotation([polygon], 2)] * 2_000
    parse_coco(document).mask("a.png", (7, 5), CLASSES, fill=UNLABELED)
    document["annotations"].append(annotation([polygon], 2))
    with pytest.raises(MaskError, match="it has 2001 annotations, more than the 2000 that are read: merge some"):
        parse_coco(document).mask("a.png", (7, 5), CLASSES, fill=UNLABELED)
    document["annotations"] = [annotation([polygon] * 20_001, 2)]
    with pytest.raises(MaskError, match="it has 20001 polygons, more than the 20000 that are read: give run lengths"):
        parse_coco(document).mask("a.png", (7, 5), CLASSES, fill=UNLABELED)


def test_a_small_polygon_on_a_large_picture_costs_its_box_only() -> None:
    size = (3000, 4000)
    square = [10, 10, 20, 10, 20, 20, 10, 20]
    assert peak_of(lambda: draw_polygons([square], size) is None) < 3000 * 4000 * 1.1


def test_an_image_without_annotations_is_annotated_only_if_our_exporter_says_so() -> None:
    nothing = np.full((2, 3), UNLABELED, np.uint8)
    document = written({"a.png": nothing, "b.png": np.zeros((2, 3), np.uint8)}, CLASSES)
    assert [image.get("activeseg_annotated") for image in document["images"]] == [True, None]
    assert all(image.annotated for image in parse_coco(document).images.values())
    del document["images"][0]["activeseg_annotated"]
    assert [image.annotated for image in parse_coco(document).images.values()] == [False, True]


@pytest.mark.parametrize("document", [None, [], {}, {"images": [], "annotations": {}, "categories": []}, "text"])
def test_what_is_no_coco_file_is_refused(document: Any) -> None:
    with pytest.raises(DataError, match="expected a COCO file: an object with lists of images, annotations and categories"):
        parse_coco(document)
