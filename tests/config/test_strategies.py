from __future__ import annotations

import pytest
from pydantic import ValidationError

from activeseg.config.sections import SelectionSection
from activeseg.config.strategies import BASES, STRATEGY_NAMES, Strategy
from activeseg.db.models import BacktestUnit, Round
from activeseg.errors import ConfigError


def test_every_name_is_its_own_and_fits_the_tables_that_hold_it() -> None:
    assert len(set(STRATEGY_NAMES)) == len(STRATEGY_NAMES) == 3 * len(BASES) + 4
    for name in STRATEGY_NAMES:
        assert Strategy.parse(name).name == name
        for column in (Round.acquisition, BacktestUnit.strategy):
            assert len(name) <= column.type.length


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("entropy_sum", Strategy("entropy_sum", "entropy_sum")),
        ("random", Strategy("random", "random")),
        ("power_bald", Strategy("power_bald", "bald", "power", needs=frozenset({"bald"}))),
        ("softrank_margin", Strategy("softrank_margin", "margin", "softrank")),
        ("tta_jsd", Strategy("tta_jsd", "tta_jsd", needs=frozenset({"tta_jsd"}))),
        ("kcenter", Strategy("kcenter", "entropy_sum", None, "kcenter", needs=frozenset({"features"}))),
        ("badge_seg", Strategy("badge_seg", "entropy_sum", None, "badge", needs=frozenset({"gradients"}))),
    ],
)
def test_a_name_says_what_is_ranked_by_and_what_scoring_must_give(name: str, expected: Strategy) -> None:
    assert Strategy.parse(name) == expected


@pytest.mark.parametrize("name", ["", "entropy", "power_random", "power_kcenter", "softrank_power_margin", "Entropy_sum"])
def test_other_names_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"expected one of entropy_sum, .* badge_seg or, .* softrank_NAME; got '{name}'"):
        Strategy.parse(name)
    with pytest.raises(ValidationError, match="softrank_NAME"):
        SelectionSection(acquisition=name)
