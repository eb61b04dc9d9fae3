from __future__ import annotations

import pytest

from activeseg.wording import counted


@pytest.mark.parametrize(("number", "told"), [(0, "0 images, 0 classes"), (1, "1 image, 1 class"), (2, "2 images, 2 classes")])
def test_one_is_no_plural(number: int, told: str) -> None:
    assert f"{counted(number, 'image')}, {counted(number, 'class', 'classes')}" == told
