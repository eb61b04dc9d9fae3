"""The VOC palette is VOC's."""

from __future__ import annotations

import pytest

from activeseg.core.palette import voc_palette

# The 21 classes of VOC 2012 and its border colour, as published with the data.
FIRST = (
    "000000 800000 008000 808000 000080 800080 008080 808080 400000 c00000 408000 "
    "c08000 400080 c00080 408080 c08080 004000 804000 00c000 80c000 004080"
)


def test_the_first_colours_are_the_published_ones() -> None:
    assert " ".join("{:02x}{:02x}{:02x}".format(*color) for color in voc_palette(21)) == FIRST
    assert voc_palette(256)[255] == (224, 224, 192)


def test_no_two_of_the_256_colours_are_alike() -> None:
    assert len(set(voc_palette(256))) == 256


@pytest.mark.parametrize("n", [-1, 257])
def test_there_are_no_more_than_256(n: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 256"):
        voc_palette(n)
