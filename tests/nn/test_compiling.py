"""When a compiled network takes over: by measured costs, never with other numbers, and never at the price of a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from activeseg.core.enlarging import Enlargement
from activeseg.core.reduction import can_compile
from activeseg.nn.compiling import Cost, Ledger, Takeover, compile_module
from activeseg.nn.infer import score_images
from activeseg.nn.network import Network
from activeseg.nn.pace import Pace
from activeseg.nn.scoring import PixelsToFeatures
from activeseg.records import ImageScore, InputPolicy
from tests.nn.test_infer import SIZES, read, refs

LANDSCAPE, PORTRAIT = (4, 3, 6, 8), (4, 3, 8, 6)


class Bench:
    """A takeover of two computations that take as long as they are told to, on a clock of their own."""

    def __init__(self, *, compiled: float = 0.5, compiling: float = 20.0, left: float = 1e6, **rest) -> None:
        self.now, self.compiled_shapes, self.calls = 0.0, set[torch.Size](), list[str]()
        self.seconds = {"eager": 1.0, "compiled": compiled, "compiling": compiling}
        self.pace = Pace()
        options = {"mode": "auto", "expected": Cost(20.0, 0.5), "clock": lambda: self.now} | rest
        self.takeover = Takeover(self.eager, self.compiled, left=lambda: left, pace=self.pace, **options)

    def eager(self, pixels: Tensor) -> Tensor:
        self.calls.append("eager")
        self.now += self.seconds["eager"]
        return pixels.double().sum(dim=(1, 2, 3))[:, None]

    def compiled(self, pixels: Tensor) -> Tensor:
        self.calls.append("compiled")
        self.now += self.seconds["compiled"] + (self.seconds["compiling"] if pixels.shape not in self.compiled_shapes else 0)
        self.compiled_shapes.add(pixels.shape)
        return pixels.double().sum(dim=(1, 2, 3))[:, None] * self.seconds.get("factor", 1.0)

    def run(self, batches: int, shape: tuple[int, ...] = LANDSCAPE) -> list[Tensor]:
        return [self.takeover(torch.full(shape, number, dtype=torch.uint8)) for number in range(batches)]


@pytest.mark.parametrize(("left", "takes_over"), [(159, False), (161, True)])
def test_compiling_begins_where_what_it_saves_exceeds_what_it_costs(left: float, takes_over: bool) -> None:
    """A quarter of a second an image, half of which is saved, against 20 seconds: 160 images."""
    bench = Bench(left=left)
    results = bench.run(6)
    assert bench.calls[:3] == ["eager"] * 3
    assert ("compiled" in bench.calls) == takes_over
    assert bench.pace.compiled_images == (3 * 4 if takes_over else 0)
    assert bench.pace.images == 6 * 4
    assert [float(one[0]) for one in results] == [number * 3 * 6 * 8 for number in range(6)]


def test_seconds_of_compiling_are_counted_apart() -> None:
    bench = Bench()
    with bench.pace.waiting("device"):
        bench.run(6)
    assert bench.pace.compile_seconds >= 20
    assert bench.pace.waited["device"] <= 0  # on the real clock next to nothing went by


def test_what_was_measured_before_decides_the_next_time(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "costs.json")
    Bench(ledger=ledger, compiling=300.0, compiled=0.9).run(6)
    dear = Bench(ledger=ledger, left=2000)  # 2000 images x 0.25 s x 30 % = 150 s < 300 s
    dear.run(6)
    assert "compiled" not in dear.calls
    (tmp_path / "costs.json").write_text("{not json")
    assert ledger.get("anything") is None


def test_one_second_in_which_others_took_the_cores_does_not_forbid_compiling_for_ever(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "costs.json")
    disturbed = Bench(ledger=ledger, compiled=1.2)
    disturbed.run(6)
    assert disturbed.pace.compiled_images == 0
    again = Bench(ledger=ledger)
    again.run(6)
    assert again.pace.compiled_images == 3 * 4


def test_a_compiled_network_that_gave_other_numbers_is_not_compiled_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "costs.json")
    wrong = Bench(ledger=ledger)
    wrong.seconds["factor"] = 1.01
    wrong.run(6)
    assert "compiled" in wrong.calls
    again = Bench(ledger=ledger)
    again.run(6)
    assert "compiled" not in again.calls


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"compiled": 0.99}, "no faster"),
        ({"factor": 1.01}, "other numbers"),
        ({"hinders": lambda: "no C++ compiler"}, "no C\\+\\+ compiler"),
    ],
)
def test_a_compiled_network_that_does_not_serve_is_left_alone_and_the_reason_kept(change: dict, reason: str) -> None:
    factor = change.pop("factor", 1.0)
    bench = Bench(**change)
    bench.seconds["factor"] = factor
    results = bench.run(8)
    assert bench.calls[-4:] == ["eager"] * 4
    assert bench.pace.compiled_images == 0
    assert re.search(reason, bench.pace.not_compiled or "")
    assert float(results[-1][0]) == 7 * 3 * 6 * 8


def test_a_compile_that_fails_goes_on_eagerly_and_is_not_tried_again() -> None:
    bench = Bench(mode="always")
    tried = []

    def fails(pixels: Tensor) -> Tensor:
        tried.append(pixels.shape)
        raise RuntimeError("g++ was killed\nat length")

    bench.takeover.compiled = fails
    bench.run(4)
    bench.run(4, PORTRAIT)
    assert len(tried) == 1
    assert bench.pace.not_compiled == "RuntimeError: g++ was killed"
    assert bench.pace.images == 32


def test_each_common_shape_has_its_own_and_rare_ones_stay_eager() -> None:
    bench = Bench(left=800)
    bench.run(30)
    bench.run(30, PORTRAIT)
    bench.run(5, (3, 3, 6, 8))  # a last, smaller batch
    assert bench.compiled_shapes == {torch.Size(LANDSCAPE), torch.Size(PORTRAIT)}


def test_never_is_never() -> None:
    bench = Bench(mode="never")
    bench.run(6)
    assert set(bench.calls) == {"eager"}


class Tiny(Network):
    """The least that inductor has something to fold in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.layers[:3](x),)

    def scores(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.layers[3](features[0])

    def enlargement(self, height: int, width: int) -> Enlargement:
        return Enlargement((height, width), False, height, width)


@pytest.mark.slow
@pytest.mark.skipif(can_compile() is not None, reason=str(can_compile()))
def test_weights_are_constants_of_the_compiled_network_and_another_network_has_its_own() -> None:
    from torch._dynamo import config

    pixels = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8)
    for _ in range(2):  # the next champion, in the same process
        network = PixelsToFeatures(Tiny().eval(), InputPolicy())
        compiled = compile_module(network, None)
        # As if as many networks as a function's code may have graphs for had been before.
        with torch.inference_mode(), config.patch(recompile_limit=1):
            expected = network(pixels).logits
            assert torch.allclose(compiled(pixels).logits, expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            network.network.layers[0].weight.mul_(2)
        with torch.inference_mode():
            assert not torch.allclose(network(pixels).logits, expected, rtol=1e-2)
            assert torch.allclose(compiled(pixels).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(can_compile() is not None, reason=str(can_compile()))
def test_the_reduction_is_built_once_and_serves_from_the_first_image_unless_nothing_is_to_be_compiled(
    make_segmenter: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "set so that its absence is restored")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    scored = {
        mode: next(
            score_images(make_segmenter(), refs(1), read, device=torch.device("cpu"), compile=mode, cache=tmp_path / mode)
        )
        for mode in ("never", "auto")
    }
    assert isinstance(scored["never"], ImageScore)
    assert isinstance(scored["auto"], ImageScore)
    assert scored["auto"].entropy_sum == pytest.approx(scored["never"].entropy_sum, rel=1e-4)
    assert not (tmp_path / "never").exists()
    assert len(list((tmp_path / "auto").glob("reduction-*.so"))) == 1


@pytest.mark.slow
@pytest.mark.skipif(can_compile() is not None, reason=str(can_compile()))
def test_compiled_scores_equal_eager_ones(make_segmenter: Callable, tmp_path: Path) -> None:
    torch.manual_seed(0)
    segmenter = replace(make_segmenter(), module=Tiny())
    same = [ref for ref in refs(24) if SIZES[(ref.image_id - 100) % len(SIZES)] == (48, 64)]
    results = {}
    for mode in ("never", "always"):
        pace, cpu = Pace(), torch.device("cpu")
        found = score_images(segmenter, same, read, device=cpu, batch_size=4, compile=mode, cache=tmp_path, pace=pace)
        results[mode] = {one.image_id: one for one in found if isinstance(one, ImageScore)}
        assert pace.compiled_images == (12 if mode == "always" else 0), pace.not_compiled
    for image_id, eager in results["never"].items():
        compiled = results["always"][image_id]
        assert compiled.entropy_sum == pytest.approx(eager.entropy_sum, rel=1e-4)
        assert compiled.grid == pytest.approx(eager.grid, rel=1e-4)
        assert compiled.margin_mean == pytest.approx(eager.margin_mean, rel=1e-4)
