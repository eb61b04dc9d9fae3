"""Whatever an annotation holds, it becomes a mask of the image's size or one AnnotationError, in bounded memory."""

from __future__ import annotations

import copy
import json
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activeseg.core.labels import LabelSet
from activeseg.errors import AnnotationError
from activeseg.labelstudio.regions import MAX_REGIONS, AnnotatedMask, mask_to_result, result_to_mask

LABELS = LabelSet(("sky", "Fußweg 歩道", "void"), ((0, 0, 0),) * 3, 2)
HEIGHT, WIDTH = 6, 7
MASK = np.random.default_rng(2).integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
RESULTS = {kind: mask_to_result(MASK, LABELS, kind=kind) for kind in ("brush", "bitmask")}

KEYS = ("type", "value", "rle", "brushlabels", "bitmasklabels", "imageDataURL", "original_width", "original_height",
        "image_rotation", "origin", "format", "id")  # fmt: skip
WORDS = ("brushlabels", "bitmasklabels", "prediction", "prediction-changed", "rle", "sky", "void", "data:image/png;base64,")
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(WORDS)
    | st.sampled_from([10**400, -(10**400), WIDTH, HEIGHT, "\ud800", "\0\n\x1b", "x" * 100_000])
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=6),
    max_leaves=12,
)


def read(result: Any, *, overlap: bool = False) -> AnnotatedMask | None:
    """The mask; None where it is refused in one short line that can be stored and shown."""
    try:
        drawn = result_to_mask(result, replace(LABELS, overlap=overlap), width=WIDTH, height=HEIGHT)
    except AnnotationError as error:
        reason = str(error)
        assert reason.isprintable(), reason
        assert 10 < len(reason) < 400
        return None
    assert drawn.mask.shape == ((3, HEIGHT, WIDTH) if overlap else (HEIGHT, WIDTH))
    assert 0 <= drawn.overlap_share <= 1
    assert 0 <= drawn.changed <= drawn.regions == len(result)
    return drawn


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something of a JSON tree can be replaced; of a long list only its beginning."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:8]) if isinstance(tree, list) else ()
    return [*([path] if path else []), *(place for key, inner in items for place in places(inner, (*path, key)))]


def put(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


def peak_of(call: Any) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(trees, st.booleans())
def test_any_json_is_a_mask_or_refused(tree, overlap):
    read(tree, overlap=overlap)
    read([tree], overlap=overlap)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["brush", "bitmask"])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_an_annotation_with_anything_replaced_is_a_mask_or_refused(kind, data):
    result = copy.deepcopy(RESULTS[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        put(result, data.draw(st.sampled_from(places(result))), data.draw(trees))
        if not all(isinstance(region, dict) for region in result):
            break
    read(result)


DEEP = (("type",), ("value",), ("value", "rle"), ("value", "brushlabels"), ("value", "brushlabels", 0), ("original_width",),
        ("image_rotation",), ("origin",))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("depth", [900, 100_000])
@pytest.mark.parametrize("place", DEEP)
def test_nesting_deeper_than_the_stack_is_refused(place, depth):
    nest: Any = []
    for _ in range(depth):
        nest = [nest]
    result = copy.deepcopy(RESULTS["brush"])
    put(result[1], place, nest)
    drawn = read(result)
    assert (drawn is None) == (place != ("origin",)), "only the origin, where unknown, just means that a person drew it"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"original_width": float("nan")}, "drawn on nanx6 pixels; the image has 7x6"),
        ({"original_width": 10**400}, "drawn on a huge numberx6"),
        ({"original_width": None}, "drawn on Nonex6"),
        ({"original_width": -7}, "drawn on -7x6"),
        ({"original_width": "7"}, "drawn on '7'x6"),
        ({"original_width": [7]}, "drawn on list of 1x6"),
        ({"image_rotation": float("nan")}, "rotated by nan"),
        ({"image_rotation": 1e-9}, "rotated by 1e-09"),
        ({"image_rotation": [90]}, "rotated by list of 1"),
        ({"type": None}, "type brushlabels or bitmasklabels, got None"),
        ({"type": ["brushlabels"]}, "type brushlabels or bitmasklabels, got list of 1"),
        ({"type": "x" * 10**6}, "got 'x{60}[.]{3}'$"),
        ({"type": "rectanglelabels"}, "got 'rectanglelabels'"),
        ({"type": "choices"}, "got 'choices'"),
        ({"value": []}, "it has no value"),
        ({"value": {"brushlabels": "sky"}}, "exactly one label, got 'sky'"),
        ({"value": {"brushlabels": []}}, "exactly one label, got list of 0"),
        ({"value": {"brushlabels": ["sky", "void"]}}, "exactly one label, got list of 2"),
        ({"value": {"brushlabels": [["sky"]]}}, "unknown label list of 1; known are sky, Fußweg 歩道, void"),
        ({"value": {"brushlabels": ["Sky"]}}, "unknown label 'Sky'"),
        ({"value": {"brushlabels": ["sky"], "rle": 10**12}}, "RLE must be a list"),
        ({"value": {"brushlabels": ["sky"], "rle": "AAAA"}}, "RLE must be a list"),
        ({"value": {"brushlabels": ["sky"], "rle": [-1] * 20}}, "RLE must be a list"),
        ({"value": {"brushlabels": ["sky"], "rle": [10**400] * 20}}, "RLE must be a list"),
        ({"value": {"brushlabels": ["sky"], "rle": [0] * 10**6}}, "RLE of 1000000 bytes is longer"),
        ({"type": "bitmasklabels", "value": {"bitmasklabels": ["sky"]}}, "a bitmask must be"),
        ({"type": "bitmasklabels", "value": {"bitmasklabels": ["sky"], "imageDataURL": {}}}, "a bitmask must be"),
    ],
    ids=lambda value: str(value)[:60],  # some are megabytes
)  # fmt: skip
def test_what_does_not_describe_the_image_is_refused_with_its_place_and_a_short_reason(change, reason):
    result = [*RESULTS["brush"][:2], RESULTS["brush"][2] | change]
    with pytest.raises(AnnotationError, match=f"region 3 of 3: .*{reason}"):
        result_to_mask(result, LABELS, width=WIDTH, height=HEIGHT)
    assert read(result) is None


def test_more_regions_than_a_person_draws_are_refused_before_any_is_read():
    region = RESULTS["brush"][0]
    assert read([region] * MAX_REGIONS) is not None
    with pytest.raises(AnnotationError, match=f"it has {MAX_REGIONS + 1} regions, more than the {MAX_REGIONS} that are read"):
        result_to_mask([region] * (MAX_REGIONS + 1), LABELS, width=WIDTH, height=HEIGHT)
    assert peak_of(lambda: read([{}] * 1_000_000)) < 9_000_000  # the list itself


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_memory_does_not_grow_with_the_number_of_regions(kind, overlap):
    (region,) = mask_to_result(np.ones((360, 480), np.uint8), LABELS, kind=kind)
    label_set = replace(LABELS, overlap=overlap)

    def peak(count: int) -> int:
        return peak_of(lambda: result_to_mask([region] * count, label_set, width=480, height=360))

    few, many = peak(3), peak(60)
    assert many < few + 50_000
    assert few < 12 * 480 * 360


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_a_browsers_json_is_read_as_it_was_sent(kind):
    assert np.array_equal(read(json.loads(json.dumps(RESULTS[kind]))).mask, MASK)
