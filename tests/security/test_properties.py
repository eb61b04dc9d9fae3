"""Whatever comes as a mask, a region, a class list or a settings file: a value, or one error of ours."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activeseg.config import load_settings
from activeseg.core.labels import parse_classes
from activeseg.errors import AnnotationError, ConfigError, MaskError
from activeseg.imaging.masks import decode_mask, decode_planes, encode_mask, encode_planes
from activeseg.labelstudio.bitmask import encode_bitmask
from activeseg.labelstudio.brush import encode_rle
from activeseg.labelstudio.regions import result_to_mask
from tests.factories import CLASSES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
few = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

AREA = np.indices((6, 9)).sum(axis=0) % 3 == 0
MASK = encode_mask(AREA.astype(np.uint8))
PLANES = encode_planes(np.stack([AREA, ~AREA]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Some bytes changed, and perhaps the end cut off."""
    data = bytearray(whole)
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=6)):
        data[place] = value
    return bytes(data[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else data)


@few
@given(data=damaged(MASK) | damaged(PLANES) | st.binary(max_size=200))
def test_a_mask_is_small_and_whole_or_refused(data: bytes) -> None:
    for read in (lambda: decode_mask(data, max_pixels=500), lambda: decode_planes(data, 2, max_pixels=500)):
        try:
            found = read()
        except MaskError:
            continue
        assert 0 < found.size <= 1000


@st.composite
def regions(draw: st.DrawFn) -> Any:
    """A region of ours with some of its parts replaced by anything."""
    brush = draw(st.booleans())
    stream = draw(damaged(bytes(encode_rle(AREA))))
    value: dict[str, Any] = {"brushlabels": ["ball"], "format": "rle", "rle": list(stream)}
    if not brush:
        url = encode_bitmask(AREA)
        head, _, body = url.partition(",")
        value = {"bitmasklabels": ["ball"], "imageDataURL": f"{head},{draw(damaged(body.encode())).decode('latin-1')}"}
    region: dict[str, Any] = {"type": "brushlabels" if brush else "bitmasklabels", "value": value}
    region |= {"original_width": 9, "original_height": 6, "image_rotation": 0}
    for target in (region, value):
        if draw(st.integers(0, 3)) == 0:
            target[draw(st.sampled_from(sorted(target)))] = draw(JSON)
    return region


@few
@given(result=st.lists(regions() | JSON, max_size=3) | JSON)
def test_regions_are_a_mask_of_the_images_size_or_refused(result: Any) -> None:
    try:
        found = result_to_mask(result, CLASSES, width=9, height=6)
    except AnnotationError:
        return
    assert found.mask.shape == (6, 9)


@few
@given(text=st.text(max_size=200) | st.from_regex(r"([a-z]{1,3} #[0-9a-f]{6}( ignore)?\n){0,4}"), overlap=st.booleans())
def test_a_class_list_is_one_or_refused(text: str, overlap: bool) -> None:
    try:
        found = parse_classes(text, overlap=overlap)
    except ConfigError:
        return
    assert 0 < len(found.names) <= 255


SECTIONS = st.sampled_from(
    ["pool", "labels", "model", "training", "selection", "labelstudio", "schedule", "serve", "alerts", "log"]
)
KEYS = st.sampled_from(
    ["images", "max_pixels", "file", "width", "mean", "crop", "url", "timezone", "port", "round", "seed", "x"]
)
VALUES = st.sampled_from(
    ['""', "-1", "0", "1e400", "nan", "[]", "{}", "true", "[[]]", "1979-05-27", '"\\u0000"', "9" * 5000, "["]
)


@few
@given(parts=st.lists(st.tuples(SECTIONS, KEYS, VALUES | st.text(max_size=20)), max_size=3), tail=st.binary(max_size=20))
def test_settings_are_settings_or_one_line(tmp_path: Path, parts: list[tuple[str, str, str]], tail: bytes) -> None:
    file = tmp_path / "activeseg.toml"
    text = "".join(f"[{section}]\n{key} = {value}\n" for section, key, value in parts)
    file.write_bytes(text.encode("utf-8", "surrogatepass") + tail)
    with suppress(ConfigError):
        load_settings(file)
