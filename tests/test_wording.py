from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from activeseg.wording import counted, moment


@pytest.mark.parametrize(("number", "told"), [(0, "0 images, 0 classes"), (1, "1 image, 1 class"), (2, "2 images, 2 classes")])
def test_one_is_no_plural(number: int, told: str) -> None:
    assert f"{counted(number, 'image')}, {counted(number, 'class', 'classes')}" == told


@pytest.mark.parametrize(
    ("month", "zone", "told"),
    [
        (1, "Europe/Berlin", "2026-01-02 00:30 CET"),
        (7, "Europe/Berlin", "2026-07-02 01:30 CEST"),
        (1, "America/Sao_Paulo", "2026-01-01 20:30 -03"),
        (1, "UTC", "2026-01-01 23:30 UTC"),
    ],
)
def test_a_moment_is_told_in_its_zone_with_the_zones_name(month: int, zone: str, told: str) -> None:
    assert moment(datetime(2026, month, 1, 23, 30, tzinfo=UTC), ZoneInfo(zone)) == told
