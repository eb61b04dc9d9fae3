"""What units are told apart by must not change from version to version, or results that were committed are lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from activeseg.backtest.dataset import ReplayData, Sample
from activeseg.backtest.fingerprint import base_description, digest, unit_fingerprint
from activeseg.config import Settings
from tests.factories import CLASSES

POOL = {name: Sample(name, f"image {name}", f"mask {name}", (1, 2, 3)) for name in ("a.png", "b.png", "c.png")}
HELD = {"d.png": Sample("d.png", "image d", "mask d", (3, 2, 1))}
GROUPED = Settings(pool={"group_pattern": "(a)"}, model={"precision": "float32"})


def described(
    pool: dict[str, Sample] = POOL,
    held: dict[str, Sample] = HELD,
    groups: dict[str, str] | None = None,
    **sections: dict[str, Any],
) -> dict[str, Any]:
    sections["model"] = {"precision": "float32"} | sections.get("model", {})
    return base_description(Settings(**sections), ReplayData(Path("anywhere"), CLASSES, pool, held, {}, groups=groups or {}))


def fingerprint(base: dict[str, Any], **changed: Any) -> str:
    given: dict[str, Any] = {"strategy": "entropy_sum", "seed": 1, "steps": 5, "labels": (1, 2), "labelled": [POOL["a.png"]]}
    return unit_fingerprint(base, **given | changed)


def test_the_fingerprint_is_the_one_of_version_1() -> None:
    # Where this fails, units computed before are not used any more: change VERSION only if the replay itself changed.
    assert digest(described()) == "2048b7a00244d531a0de2f0e1e24d83ebc2ce3aa3f726cb206687898d103039f"
    assert fingerprint(described()) == "4c470ce7b361a5f6115079a73a67e6db6968f39376c863917b722752376d181f"


def test_what_cannot_change_a_result_is_not_in_it() -> None:
    without_effect = {
        "model": {"device": "cpu"},
        "training": {"steps": 7, "seed": 4, "save_every": 1, "validate_every": 0, "start": "champion", "min_train": 3},
        "scoring": {"batch_size": 3, "readers": 2, "compile": "never", "temperature": "none"},
        "selection": {"query_size": 5, "control_share": 0.5, "acquisition": "margin", "seed": 8},
        "database": {"url": "sqlite:///other.db"},
    }
    assert described(**without_effect) == described()


def test_everything_that_decides_a_result_is_in_it() -> None:
    other = {name: Sample(name, f"image {name}", "another mask", (1, 2, 3)) for name in POOL}
    changed = [
        described(model={"width": 0.5}),
        described(model={"precision": "bfloat16"}),
        described(training={"learning_rate": 0.02}),
        described(training={"recipe": "documents"}),
        described(training={"unlabelled": "pseudo"}),
        described(training={"unlabelled": "pseudo", "pseudo_threshold": 0.8}),
        described(training={"unlabelled": "pseudo", "unlabelled_weight": 0.5}),
        described(training={"unlabelled": "pseudo", "unlabelled_after": 5}),
        described(groups={"a.png": "clip 1"}),
        described(selection={"noise_beta": 2.0}),
        described(selection={"min_frame_gap": 3}),
        described(selection={"max_per_group": 2}),
        described(selection={"bootstrap": "kcenter"}),
        base_description(GROUPED, ReplayData(Path("anywhere"), CLASSES, POOL, HELD, {})),
        described(pool=other),
        described(held={}),
    ]
    base = described()
    units = [
        fingerprint(base, strategy="random"),
        fingerprint(base, seed=2),
        fingerprint(base, steps=6),
        fingerprint(base, labels=(1, 3)),
        fingerprint(base, labelled=[POOL["b.png"]]),
        fingerprint(base, labelled=[other["a.png"]]),
    ]
    found = [fingerprint(one) for one in changed] + units
    assert len({*found, fingerprint(base)}) == len(found) + 1


@pytest.mark.parametrize(("native", "means"), [(False, "float32"), (True, "bfloat16")])
def test_a_precision_left_to_the_machine_is_the_one_it_computes_in(
    monkeypatch: pytest.MonkeyPatch, native: bool, means: str
) -> None:
    monkeypatch.setattr("activeseg.nn.device._native_bfloat16", lambda device: native)
    assert described(model={"precision": "auto"}) == described(model={"precision": means})


def test_the_order_images_were_labelled_in_does_not_count() -> None:
    base = described()
    assert fingerprint(base, labelled=list(POOL.values())) == fingerprint(base, labelled=list(POOL.values())[::-1])
