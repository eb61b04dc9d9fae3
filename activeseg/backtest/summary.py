"""What the units of a backtest come to: curves, areas, labels to a goal, and each strategy against the baseline."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from activeseg.backtest.dataset import ReplayData, Sample
from activeseg.backtest.protocol import Protocol
from activeseg.backtest.units import FULL, Unit
from activeseg.core.curves import area, compare_curves, curve, labels_to_reach, saving
from activeseg.errors import ConfigError

BASELINE = "random"
GOAL = 0.95
"""Share of the mIoU of the training on all images that counts as reached."""
RARE_BELOW = 0.015
"""Classes with a smaller share of the pool's labelled pixels are rare, where nobody names any."""
SAMPLES = 2000
CONFIDENCE = 0.95

Counts = npt.NDArray[np.int64]


def rare_channels(data: ReplayData, named: Sequence[str] = ()) -> tuple[int, ...]:
    """Network channels of the rare classes: those named, or those under RARE_BELOW of the pool's labelled pixels.

    Raises ConfigError for a name that is no class.
    """
    names = [data.label_set.names[index] for index in data.label_set.channels]
    if unknown := [name for name in named if name not in names]:
        raise ConfigError(f"--rare: no class is called {unknown[0]!r}; known: {', '.join(names)}")
    if named:
        return tuple(names.index(name) for name in named)
    return tuple(np.flatnonzero(pixel_shares(data.pool.values()) < RARE_BELOW).tolist())


def pixel_shares(samples: Iterable[Sample]) -> npt.NDArray[np.float64]:
    """Share of the labelled pixels of each channel, (C,)."""
    total = np.sum([sample.pixels for sample in samples], axis=0, dtype=np.float64)
    shares: npt.NDArray[np.float64] = total / max(total.sum(), 1)
    return shares


def summarise(units: Sequence[Unit], protocol: Protocol, data: ReplayData, rare: Sequence[int]) -> dict[str, Any]:
    """Everything the report says, as JSON values; what cannot be said is None.

    A strategy's figures are means over the seeds that have all rounds; differences are over those the baseline has, too.
    'parts': the same again, measured on each part of the images held out alone.
    """
    summary = _summary(units, protocol, data, rare)
    parts = {name: [restricted(unit, held) for unit in units] for name, held in data.parts.items()}
    return summary | {
        "parts": {name: _summary(of, protocol, data, rare) | {"held_out": len(data.parts[name])} for name, of in parts.items()}
    }


def restricted(unit: Unit, held_out: Collection[str]) -> Unit:
    """The unit measured on these of its images alone. Calibration is of all its images, so that none is left."""
    rows = [number for number, name in enumerate(unit.held_out) if name in held_out]
    counts = unit.counts[rows]
    by_class = [_plain(curve(counts, [channel])) for channel in range(len(unit.classes))]
    return replace(
        unit,
        held_out=tuple(unit.held_out[number] for number in rows),
        counts=counts,
        overall={"mean_iou": _plain(curve(counts))},
        iou=dict(zip(unit.classes, by_class, strict=True)),
    )


def _summary(units: Sequence[Unit], protocol: Protocol, data: ReplayData, rare: Sequence[int]) -> dict[str, Any]:
    names = [data.label_set.names[index] for index in data.label_set.channels]
    chains = {strategy: _complete(units, strategy, len(protocol.labels)) for strategy in protocol.strategies}
    full = next((unit for unit in units if unit.strategy == FULL), None)
    full_iou = None if full is None else full.mean_iou
    goal = None if full_iou is None else GOAL * full_iou
    shares = pixel_shares(data.pool.values())
    summary: dict[str, Any] = {
        "protocol": protocol.as_dict(),
        "pool": len(data.pool),
        "held_out": len(data.held),
        "classes": names,
        "pixel_shares": dict(zip(names, map(_plain, shares), strict=True)),
        "rare": [names[channel] for channel in rare],
        "full": None if full is None else _one(full, rare) | {"steps": protocol.full_steps},
        "goal": goal,
        "confidence": CONFIDENCE,
        "samples": SAMPLES,
        "machines": _distinct(unit.machine for unit in units),
        "strategies": {name: _strategy(chain, protocol, data, rare, goal) for name, chain in chains.items() if chain},
    }
    base = chains.get(BASELINE, {})
    for name, chain in chains.items():
        common = sorted(chain.keys() & base.keys())
        if name != BASELINE and common:
            summary["strategies"][name]["against_baseline"] = _against(chain, base, common, protocol, rare, goal)
    return summary


def _complete(units: Sequence[Unit], strategy: str, number: int) -> dict[int, list[Unit]]:
    """The rounds of each seed that has all of them."""
    chains: dict[int, list[Unit]] = {}
    for unit in units:
        if unit.strategy == strategy:
            chains.setdefault(unit.seed, []).append(unit)
    return {seed: sorted(chain, key=lambda unit: unit.round) for seed, chain in chains.items() if len(chain) == number}


def _counts(chains: dict[int, list[Unit]], seeds: Iterable[int]) -> Counts:
    """(S, R, N, 3, C)."""
    return np.stack([np.stack([unit.counts for unit in chains[seed]]) for seed in seeds])


def _one(unit: Unit, rare: Sequence[int]) -> dict[str, Any]:
    return {
        "labels": len(unit.labelled),
        "mean_iou": unit.mean_iou,
        "rare_mean_iou": _plain(curve(unit.counts, rare)) if rare else None,
        "nll": unit.overall.get("nll"),
        "ece": unit.overall.get("ece"),
        "iou": unit.iou,
    }


def _strategy(
    chain: dict[int, list[Unit]], protocol: Protocol, data: ReplayData, rare: Sequence[int], goal: float | None
) -> dict[str, Any]:
    seeds = sorted(chain)
    counts = _counts(chain, seeds)
    values = curve(counts)
    rare_values = curve(counts, rare) if rare else np.full_like(values, np.nan)
    means = values.mean(axis=0)
    reached = None if goal is None else labels_to_reach(protocol.labels, means, goal)
    units = [unit for seed in seeds for unit in chain[seed]]
    return {
        "seeds": seeds,
        "rounds": [_round(chain, seeds, number, values, rare_values) for number in range(len(protocol.labels))],
        "area": _plain(area(protocol.labels, means)),
        "area_by_seed": [_plain(value) for value in area(protocol.labels, values)],
        "rare_area": _plain(area(protocol.labels, rare_values.mean(axis=0))),
        "labels_to_goal": _plain(reached),
        "share_to_goal": _plain(None if reached is None else reached / len(data.pool)),
        **_choice(units, data),
        "seconds": _seconds(units),
    }


def _round(chain: dict[int, list[Unit]], seeds: Sequence[int], number: int, values: Any, rare_values: Any) -> dict[str, Any]:
    units = [chain[seed][number] for seed in seeds]
    return {
        "labels": len(units[0].labelled),
        "mean_iou": _plain(values[:, number].mean()),
        "low": _plain(values[:, number].min()),
        "high": _plain(values[:, number].max()),
        "by_seed": [_plain(value) for value in values[:, number]],
        "rare_mean_iou": _plain(rare_values[:, number].mean()),
        "nll": _mean(unit.overall.get("nll") for unit in units),
        "ece": _mean(unit.overall.get("ece") for unit in units),
        "iou": {name: _mean(unit.iou[name] for unit in units) for name in units[0].classes},
    }


def _choice(units: Sequence[Unit], data: ReplayData) -> dict[str, Any]:
    """What was chosen: the classes on it, and how alike the images of a query are."""
    chosen = [item.name for unit in units for item in unit.chosen]
    names = [data.label_set.names[index] for index in data.label_set.channels]
    shares = pixel_shares(data.pool[name] for name in chosen) if chosen else None
    return {
        "chosen_pixel_shares": None if shares is None else dict(zip(names, map(_plain, shares), strict=True)),
        "spread": _mean(unit.details.get("spread") for unit in units),
    }


def _seconds(units: Sequence[Unit]) -> dict[str, float | None]:
    """Means. The start's scoring counts for every strategy it was done for."""
    scored = [unit for unit in units if unit.details.get("scored") and unit.seconds.get("scoring")]
    images = sum(int(unit.details["scored"]) for unit in scored)
    scoring = sum(unit.seconds["scoring"] for unit in scored)
    selection = sum(unit.seconds.get("selection", 0.0) for unit in scored)
    return {
        "training": _mean(unit.seconds.get("training") for unit in units),
        "scoring_per_image": scoring / images if images else None,
        "selection": _mean(unit.seconds.get("selection") for unit in units),
        "selection_share": selection / scoring if scoring else None,
    }


def _against(
    chain: dict[int, list[Unit]],
    base: dict[int, list[Unit]],
    seeds: Sequence[int],
    protocol: Protocol,
    rare: Sequence[int],
    goal: float | None,
) -> dict[str, Any]:
    counts, baseline = _counts(chain, seeds), _counts(base, seeds)
    means = (curve(side).mean(axis=0) for side in (counts, baseline))
    reached = (None if goal is None else labels_to_reach(protocol.labels, mean, goal) for mean in means)
    options: dict[str, Any] = {"samples": SAMPLES, "confidence": CONFIDENCE}
    found = _intervals(compare_curves(protocol.labels, counts, baseline, **options))
    if rare:
        of_rare = _intervals(compare_curves(protocol.labels, counts, baseline, classes=rare, **options))
        found |= {"rare_area": of_rare["area"], "rare_rounds": of_rare["rounds"]}
    return found | {"seeds": list(seeds), "goal_saving": _plain(saving(*reached))}


def _intervals(comparison: Any) -> dict[str, Any]:
    values: dict[str, Any] = _finite(asdict(comparison))
    return values


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return _plain(value)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _plain(np.mean(known)) if known else None


def _plain(value: Any) -> float | None:
    """A number as JSON knows it."""
    return None if value is None or not math.isfinite(value) else float(value)


def _distinct(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found
