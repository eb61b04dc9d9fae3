"""Weights from outside: whatever their file is, no code in it runs and no memory is taken that its bytes do not hold."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import hostile_data
import pytest

from activeseg.errors import CheckpointError
from activeseg.nn.checkpoint import NetworkSpec, import_weights, read_spec
from activeseg.records import InputPolicy
from tests.factories import CLASSES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_that_run_code_or_unpack_to_anything_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    """A zip, the older format and bare pickles with code in them, a tar, packed members, tensors larger than their file, and
    headers without end."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, (ending, data) in enumerate(hostile_data.hostile_weights(tmp_path / "trace")):
        file = folder / f"{number}{ending}"
        file.write_bytes(data)
        with pytest.raises(CheckpointError):
            import_weights(file)
        assert list(tmp_path.iterdir()) == [folder], number
        assert len(list(folder.iterdir())) == number + 1


def test_a_description_without_end_is_damage() -> None:
    header = b"[" * 100_000
    with pytest.raises(CheckpointError, match="damaged"):
        read_spec(struct.pack("<Q", len(header)) + header, "weights")


@pytest.mark.parametrize("width", [1e300, -1.0, 0.0, float("nan"), float("inf"), 5.0])
def test_a_description_of_a_network_without_measure_builds_none(width: float) -> None:
    spec = NetworkSpec("fcn_mobilenet_v2", 1.0, 8, CLASSES, InputPolicy(None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    described = {"format": 1, "spec": spec.as_dict() | {"width": width}}
    header = json.dumps({"__metadata__": {"activeseg": json.dumps(described)}}).encode()
    with pytest.raises(CheckpointError, match="width"):
        read_spec(struct.pack("<Q", len(header)) + header, "weights")
