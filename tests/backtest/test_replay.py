"""Replays of a few balls: what they promise about pairs, about what strategies see, and about work that is done already."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from activeseg.backtest import workers
from activeseg.backtest.protocol import Protocol
from activeseg.backtest.replay import OnStep, compute
from activeseg.backtest.run import Outcome, alone, run_backtest
from activeseg.backtest.task import Place, Task
from activeseg.backtest.units import Unit
from activeseg.backtest.workspaces import replay_settings
from activeseg.db import truth
from activeseg.errors import ConfigError
from activeseg.records import StageReport
from activeseg.stages.score import score_pool
from activeseg.workspace import Workspace, open_workspace
from tests.backtest.conftest import PROTOCOL, Listening, prepared, result, settings

pytestmark = pytest.mark.slow


def by_name(outcome: Outcome) -> dict[str, Unit]:
    return {unit.name: unit for unit in outcome.units}


def test_strategies_of_a_seed_begin_with_the_same_images_and_weights(done: tuple[Path, Outcome]) -> None:
    units = by_name(done[1])
    first, other = units["random-s0-r0"], units["entropy_sum-s0-r0"]
    assert first.labelled == other.labelled
    assert first.counts.tolist() == other.counts.tolist()
    assert {item.arm for item in first.chosen} == {"control"}
    assert {item.arm for item in other.chosen} == {"chosen"}


def test_each_round_labels_what_was_chosen_and_nothing_held_out(done: tuple[Path, Outcome]) -> None:
    units = by_name(done[1])
    for strategy in PROTOCOL.strategies:
        chain = [units[f"{strategy}-s0-r{number}"] for number in range(3)]
        assert tuple(len(unit.labelled) for unit in chain) == PROTOCOL.labels
        for before, after in pairwise(chain):
            assert set(after.labelled) == {*before.labelled, *(item.name for item in before.chosen)}
        assert not chain[-1].chosen
        assert not set(chain[-1].held_out) & set(chain[-1].labelled)
    assert len(units["full-s0"].labelled) == 14
    assert units["full-s0"].held_out == tuple(f"ball_{seed:04d}.png" for seed in range(100, 104))


def test_a_folder_named_by_detours_that_is_moved_half_way_gives_the_same(
    replay: Callable[..., Outcome], done: tuple[Path, Outcome], tmp_path: Path
) -> None:
    one = Protocol(("entropy_sum",), PROTOCOL.labels, (0,), 0)
    (tmp_path / "detour").mkdir()
    replay(tmp_path / "detour" / ".." / "out", one)
    (tmp_path / "out" / "units" / "entropy_sum-s0-r2.json").unlink()
    moved = replay((tmp_path / "out").rename(tmp_path / "elsewhere"), one)
    expected = [result(unit) for unit in done[1].units if unit.strategy == "entropy_sum"]
    assert [result(unit) for unit in moved.units] == expected


def test_the_highest_summed_entropy_is_what_entropy_sum_chooses(done: tuple[Path, Outcome]) -> None:
    chosen = by_name(done[1])["entropy_sum-s0-r1"].chosen
    assert sorted(item.rank or 0 for item in chosen) == [1, 2]


def test_no_mask_is_in_a_workspace_before_its_image_was_asked_for(done: tuple[Path, Outcome], labelled: Path) -> None:
    out, outcome = done
    data = prepared(labelled, out, settings())
    task = Task("entropy_sum", 0, 2, PROTOCOL.labels, 3, "")
    place = Place((out / "work").absolute(), data, settings())
    with open_workspace(replay_settings(place, task)) as workspace, workspace.database.read() as session:
        known = [item.image.uri.removeprefix(place.folder_uri("pool")) for item in truth.current(session)]
    held = {place.folder_uri("held") + name for name in data.held}
    assert {name for name in known if name not in held} == set(by_name(outcome)["entropy_sum-s0-r2"].labelled)


def test_a_finished_backtest_computes_nothing_again(done: tuple[Path, Outcome], replay: Callable[..., Outcome]) -> None:
    out, outcome = done
    heard = Listening()
    again = replay(out, heard=heard)
    assert not heard.computed
    assert not heard.problems
    assert again.fingerprint == outcome.fingerprint
    assert [unit.to_json() for unit in again.units] == [unit.to_json() for unit in outcome.units]


def test_unit_files_alone_are_enough_to_go_on_and_what_is_computed_again_is_the_same(
    done: tuple[Path, Outcome], replay: Callable[..., Outcome], tmp_path: Path
) -> None:
    out, outcome = done
    shutil.copytree(out / "units", tmp_path / "out/units")
    for name in ("entropy_sum-s0-r2", "random-s0-r0", "random-s0-r1", "random-s0-r2"):
        (tmp_path / f"out/units/{name}.json").unlink()
    heard = Listening()
    again = replay(tmp_path / "out", heard=heard)
    # A training in a workspace made anew, with other numbers of rows, from the files of the rounds before.
    assert sorted(heard.computed) == ["entropy_sum-s0-r2", "random-s0-r0", "random-s0-r1", "random-s0-r2"]
    assert list(map(result, again.units)) == list(map(result, outcome.units))


def test_a_strategy_that_comes_later_begins_where_the_others_did(
    done: tuple[Path, Outcome], replay: Callable[..., Outcome], tmp_path: Path
) -> None:
    out, outcome = done
    shutil.copytree(out / "units", tmp_path / "out/units")
    heard = Listening()
    protocol = replace(PROTOCOL, strategies=("random", "entropy_kcenter"), labels=PROTOCOL.labels[:2], full_steps=0)
    # Another plan: the last round of this one chose something in the other.
    again = by_name(replay(tmp_path / "out", protocol, heard))
    assert again["entropy_kcenter-s0-r0"].labelled == by_name(outcome)["random-s0-r0"].labelled
    assert again["entropy_kcenter-s0-r0"].counts.tolist() == by_name(outcome)["random-s0-r0"].counts.tolist()
    assert heard.computed == ["entropy_kcenter-s0-r0", "random-s0-r1", "entropy_kcenter-s0-r1"]
    # It chose by the scores that were there; what is labelled was embedded on top of them.
    own, start = again["entropy_kcenter-s0-r0"], by_name(outcome)["random-s0-r0"]
    assert own.details["scored"] == start.details["scored"] + len(start.labelled)
    assert own.seconds["scoring"] > start.seconds["scoring"]
    assert any("random-s0-r1.json was made from other images" in problem for problem in heard.problems)
    assert (tmp_path / "out/units/random-s0-r1.old1").exists()
    assert any("entropy_sum-s0-r0" in problem and "left alone" in problem for problem in heard.problems)


def test_other_rounds_in_the_same_folder_begin_where_the_first_ones_did(replay: Callable[..., Outcome], tmp_path: Path) -> None:
    first = Protocol(("entropy_sum",), (4, 5, 6), (0,), 0)
    replay(tmp_path / "out", first)
    # The strategy's workspace stands behind round 2 of that plan.
    other = replace(first, labels=(4, 6))
    again = replay(tmp_path / "out", other)
    assert not again.errors
    fresh = replay(tmp_path / "fresh", other)
    assert list(map(result, again.units)) == list(map(result, fresh.units))


def test_no_round_is_computed_without_an_image_that_could_not_be_read(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, own, protocol = tmp_path / "out", settings(), Protocol(("random",), (4, 5), (0,), 0)
    data = prepared(labelled, out, own)
    broken, whole = data.folder / "pool/images/ball_0003.png", (labelled / "train/images/ball_0003.png").read_bytes()

    def scored(workspace: Workspace) -> StageReport:
        broken.unlink()  # another name of the user's own file
        broken.write_bytes(b"a disk that fails")
        return score_pool(workspace)

    with monkeypatch.context() as patch:
        patch.setattr("activeseg.backtest.replay.score_pool", scored)
        [error] = run_backtest(out, protocol, data, own, workers=1).errors
    # Set aside while it was scored, and then while the pool is looked through.
    [again] = run_backtest(out, protocol, data, own, workers=1).errors
    for problem in (error, again):
        assert "ball_0003.png was set aside" in str(problem)
        assert "give the same command again" in str(problem)
    broken.write_bytes(whole)
    mended = run_backtest(out, protocol, data, own, workers=1)
    assert [unit.name for unit in mended.units] == ["random-s0-r0", "random-s0-r1"]


def test_files_of_another_recipe_or_of_nobody_are_told_and_not_used(
    done: tuple[Path, Outcome], replay: Callable[..., Outcome], tmp_path: Path
) -> None:
    out, outcome = done
    (tmp_path / "out/units").mkdir(parents=True)
    shutil.copy(out / "units/full-s0.json", tmp_path / "out/units")
    (tmp_path / "out/units/random-s0-r0.json").write_text("{", encoding="utf-8")
    heard = Listening()
    protocol = Protocol(("random",), (4,), (0,), 4)
    again = replay(tmp_path / "out", protocol, heard, training={"learning_rate": 0.01})
    assert sorted(heard.computed) == ["full-s0", "random-s0-r0"]
    assert len(heard.problems) == 2
    assert by_name(again)["full-s0"].overall != by_name(outcome)["full-s0"].overall


def test_a_strategy_that_fails_does_not_stop_the_others(
    replay: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(place: Place, task: Task, on_step: OnStep) -> Unit:
        if task.strategy == "entropy_sum":
            raise ConfigError("no luck today")
        return compute(place, task, on_step)

    monkeypatch.setattr(workers, "compute", failing)
    heard = Listening()
    outcome = replay(tmp_path / "out", replace(PROTOCOL, labels=(4, 6), full_steps=0), heard)
    assert [unit.name for unit in outcome.units] == ["random-s0-r0", "random-s0-r1"]
    assert [str(error) for error in outcome.errors] == ["no luck today"]
    assert heard.problems == ["entropy_sum-s0-r0: no luck today"]


def test_two_backtests_in_one_folder_are_refused(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(ConfigError, match="another backtest is at work"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass
