from __future__ import annotations

import pytest
import torch

from activeseg.errors import ConfigError
from activeseg.nn.device import autocast, pick_device, pick_precision


def test_auto_takes_cuda_where_there_is_one() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "mps", "cuda:x", "cuda:99"])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        pick_device(name)


def test_precision_decides_what_convolutions_compute_in() -> None:
    device = torch.device("cpu")
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(device, precision):
            assert torch.nn.functional.conv2d(torch.rand(1, 1, 3, 3), torch.rand(1, 1, 1, 1)).dtype == dtype
    assert pick_precision(device, "auto") in ("float32", "bfloat16")
    with pytest.raises(ConfigError, match="float16"):
        pick_precision(device, "float16")
