"""The comparison of `activeseg train` with a bare loop says at the start that it has too few steps to compare."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from scripts import bench_train
from scripts.bench_train import LEAST_BLOCKS, Meter, interval, parse_options, require_blocks, skipped

CPU = torch.device("cpu")


def options(monkeypatch: pytest.MonkeyPatch, *words: object):
    monkeypatch.setattr("sys.argv", ["bench_train.py", "--device", "cpu", *map(str, words)])
    return parse_options()


def measured_blocks(steps: int, block: int) -> int:
    """How many the meter has after a training of so many steps."""
    bare = SimpleNamespace(device=CPU, run=lambda count: None)
    meter = Meter(bare, block=block, skip=skipped(CPU), every=interval(steps))  # type: ignore[arg-type]
    for done in range(1, steps + 1):
        meter(done, steps)
    return len(meter.blocks)


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_options_are_refused_just_where_they_leave_too_few_blocks(monkeypatch, block: int) -> None:
    for steps in range(1, 30):
        given = options(monkeypatch, "--steps", steps, "--block", block)
        if measured_blocks(steps, block) >= LEAST_BLOCKS:
            require_blocks(given)
            continue
        with pytest.raises(SystemExit, match=f"--steps {steps} leaves .* raise --steps or lower --block"):
            require_blocks(given)


def test_nothing_is_trained_with_such_options(monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("it began")

    options(monkeypatch, "--steps", 5)
    monkeypatch.setattr(bench_train, "workspace_in", fail)
    with pytest.raises(SystemExit, match="2 blocks of --block 2 need 6"):
        bench_train.main()


def test_the_defaults_are_enough(monkeypatch) -> None:
    require_blocks(options(monkeypatch))
