"""A training that was interrupted goes on from its saved state and ends as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.data import LabeledImage
from activeseg.nn.fit import FitResult, fit

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


class Interrupted(Exception):
    pass


class Dropping(nn.Module):
    """A network whose every step depends on dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.score = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.score(self.encoder(x))}


@pytest.fixture
def make(make_segmenter):
    """Segmenters that are equal and need few milliseconds a step."""

    def build() -> Segmenter:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return Segmenter(make_segmenter().spec, Dropping(), "m1")

    return build


@pytest.fixture
def config(recipe):
    # A look and a save that do not fall together, all that a step depends on, and an end between two saves.
    return recipe(steps=11, save_every=3, validate_every=4, patience=9, ema_decay=0.8, class_weights="median_frequency")


def interrupt(segmenter: Segmenter, scenes, config, state: Path, *, after: int, run: str = "") -> None:
    def stop(step: int, loss: float) -> None:
        if step == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(segmenter, scenes, config, device=CPU, validation=scenes, state=state, run=run, on_step=stop)


def assert_equal(one: tuple[Segmenter, FitResult], other: tuple[Segmenter, FitResult]) -> None:
    weights, expected = one[0].module.state_dict(), other[0].module.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert replace(one[1], seconds=0, resumed_at=0, refused=None) == replace(other[1], seconds=0, resumed_at=0, refused=None)


def whole(make, scenes, config) -> tuple[Segmenter, FitResult]:
    segmenter = make()
    return segmenter, fit(segmenter, scenes, config, device=CPU, validation=scenes)


@pytest.mark.parametrize("after", [1, 3, 4, 6, 8, 10, 11])
def test_an_interrupted_training_ends_with_the_same_bits(make, scenes, config, tmp_path: Path, after: int) -> None:
    state = tmp_path / "deep/1.safetensors"
    interrupt(make(), scenes, config, state, after=after)
    torch.manual_seed(99), np.random.seed(99)
    again, told = make(), []
    result = fit(again, scenes, config, device=CPU, validation=scenes, state=state, on_step=lambda step, _: told.append(step))
    assert result.resumed_at == after // 3 * 3
    assert told == list(range(result.resumed_at + 1, 12))
    assert_equal((again, result), whole(make, scenes, config))


def test_several_interruptions_and_the_real_network_too(make_segmenter, scenes, config, tmp_path: Path) -> None:
    state = tmp_path / "1.safetensors"
    for after in (4, 7, 10):
        interrupt(make_segmenter(), scenes, config, state, after=after)
    segmenter = make_segmenter()
    result = fit(segmenter, scenes, config, device=CPU, validation=scenes, state=state)
    assert result.resumed_at == 9
    assert_equal((segmenter, result), whole(make_segmenter, scenes, config))


def test_a_training_that_had_stopped_early_stays_stopped(make, scenes, config, tmp_path: Path, monkeypatch) -> None:
    from tests.nn.test_fit import Judged

    config = config.model_copy(update={"validate_every": 1, "save_every": 1, "patience": 2})
    monkeypatch.setattr("activeseg.nn.fit.evaluate", Judged(0.5, 0.4, 0.3, 0.9))
    interrupt(make(), scenes, config, tmp_path / "1.safetensors", after=3)
    result = fit(make(), scenes, config, device=CPU, validation=scenes, state=tmp_path / "1.safetensors")
    assert (result.steps, result.kept_step, result.resumed_at) == (3, 1, 3)


def cut(state: Path) -> None:
    state.write_bytes(state.read_bytes()[:-100])


def flip_a_bit(state: Path) -> None:
    data = bytearray(state.read_bytes())
    data[-50] ^= 4
    state.write_bytes(data)


def fill_with_text(state: Path) -> None:
    state.write_text("not a saved training", encoding="utf-8")


def empty(state: Path) -> None:
    state.write_bytes(b"")


def replace_by_a_checkpoint(state: Path) -> None:
    safetensors.torch.save_file({"encoder.0.weight": torch.zeros(3)}, state)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, fill_with_text, empty, replace_by_a_checkpoint])
def test_a_damaged_state_means_starting_over(make, scenes, config, tmp_path: Path, caplog, damage) -> None:
    state = tmp_path / "1.safetensors"
    interrupt(make(), scenes, config, state, after=4)
    damage(state)
    segmenter = make()
    result = fit(segmenter, scenes, config, device=CPU, validation=scenes, state=state)
    assert result.resumed_at == 0
    assert "damaged" in (result.refused or "")
    assert "starting over" in caplog.text
    assert_equal((segmenter, result), whole(make, scenes, config))


@pytest.mark.parametrize("change", [{"seed": 9}, {"learning_rate": 0.5}, {"steps": 12}])
def test_the_state_of_another_training_is_not_used(make, scenes, config, tmp_path: Path, change) -> None:
    state = tmp_path / "1.safetensors"
    interrupt(make(), scenes, config, state, after=4)
    other = config.model_copy(update=change)
    segmenter = make()
    result = fit(segmenter, scenes, other, device=CPU, validation=scenes, state=state)
    assert "another training" in (result.refused or "")
    assert_equal((segmenter, result), whole(make, scenes, other))


@pytest.mark.parametrize("change", ["run", "a training mask", "a validation mask", "nothing"])
def test_the_state_of_another_run_or_of_other_masks_is_not_used(make, scenes, config, tmp_path: Path, change) -> None:
    def named(mask: str) -> list[LabeledImage]:
        return [replace(scenes[0], truth="1 abc"), replace(scenes[1], truth=mask)]

    def train(run: str, training: str, validation: str, state: Path | None = None, on_step=None) -> FitResult:
        images, others = named(training), named(validation)
        return fit(make(), images, config, device=CPU, validation=others, state=state, run=run, on_step=on_step)

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise Interrupted

    state, first = tmp_path / "1.safetensors", {"run": "1 monday", "training": "2 def", "validation": "2 def"}
    with pytest.raises(Interrupted):
        train(**first, state=state, on_step=stop)
    changed = {"run": "run", "a training mask": "training", "a validation mask": "validation"}
    result = train(**first | ({changed[change]: "another"} if change in changed else {}), state=state)
    assert result.resumed_at == (3 if change == "nothing" else 0)
    assert ("another training" in (result.refused or "")) is (change != "nothing")


def test_settings_that_cannot_change_the_weights_do_not_throw_a_state_away(make, scenes, config, tmp_path: Path) -> None:
    state = tmp_path / "1.safetensors"
    interrupt(make(), scenes, config, state, after=4)
    without_effect = {"min_train": 2, "retrain_after": 3, "retrain_days": 1.5, "save_every": 2}
    segmenter = make()
    other = config.model_copy(update=without_effect)
    result = fit(segmenter, scenes, other, device=CPU, validation=scenes, state=state)
    assert result.resumed_at == 3
    assert_equal((segmenter, result), whole(make, scenes, config))


def test_a_state_that_cannot_be_written_is_told_and_training_goes_on(make, scenes, config, tmp_path: Path, caplog) -> None:
    (tmp_path / "training").write_text("no folder", encoding="utf-8")
    segmenter = make()
    result = fit(segmenter, scenes, config, device=CPU, validation=scenes, state=tmp_path / "training/1.safetensors")
    assert_equal((segmenter, result), whole(make, scenes, config))
    assert "after step 3 could not be saved" in caplog.text


def test_a_full_disk_leaves_the_state_before_and_nothing_unfinished(make, scenes, config, tmp_path: Path, monkeypatch) -> None:
    state = tmp_path / "1.safetensors"
    interrupt(make(), scenes, config, state, after=4)
    before = state.read_bytes()

    def fill_the_disk(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half of a sta")
        raise safetensors.SafetensorError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", fill_the_disk)
        interrupt(make(), scenes, config, state, after=10)
    assert [file.name for file in tmp_path.iterdir()] == ["1.safetensors"]
    assert state.read_bytes() == before


def test_a_state_with_other_layers_changes_nothing(make, scenes, config, tmp_path: Path) -> None:
    """The same description, but the code that builds the network changed."""
    state = tmp_path / "1.safetensors"
    interrupt(make(), scenes, config, state, after=4)
    larger = make()
    larger.module.score = nn.Conv2d(8, 4, 3, padding=1)
    result = fit(larger, scenes, config, device=CPU, validation=scenes, state=state)
    assert "other layers" in (result.refused or "")
    assert (result.resumed_at, result.steps) == (0, 11)


def test_a_save_replaces_the_state_at_once(make, scenes, config, tmp_path: Path) -> None:
    """A kill while it writes leaves the state before: the file under its name is never incomplete."""
    state = tmp_path / "1.safetensors"
    interrupt(make(), scenes, config, state, after=4)
    before = state.read_bytes()
    (tmp_path / "1.safetensors.unfinished").write_bytes(b"half of a later stat")
    segmenter = make()
    interrupt(segmenter, scenes, config, state, after=5)
    assert state.read_bytes() == before
    assert fit(segmenter, scenes, config, device=CPU, validation=scenes, state=state).resumed_at == 3
