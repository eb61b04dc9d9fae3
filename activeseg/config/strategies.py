"""The grammar of `[selection] acquisition`: one name for what is ranked by, and how images are taken from the ranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from activeseg.errors import ConfigError

Noise = Literal["power", "softrank"]
Diversity = Literal["kcenter", "badge"]

BASES = (
    "entropy_sum",
    "entropy_mean",
    "entropy_count",
    "class_balanced_entropy",
    "margin",
    "least_confidence",
    "bald",
    "tta_jsd",
)
"""Base functions, each a formula of `core.acquisition`; `random`, which ranks by nothing, comes beside them."""
NOISES: tuple[Noise, ...] = ("power", "softrank")


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a query is chosen.

    base: the function images are ranked by. random: every image of the query is a random draw.
    noise: 'power' or 'softrank' (Kirsch et al. 2021), which draws from the ranking instead of taking its top; None: the top.
    diversity: 'kcenter' or 'badge', which spreads the query by what the network sees in the images; None: nothing does.
    weighted: whether k-center weighs distances by the score, among the best candidates; else scores do not count.
    needs: what the scoring pass has to give besides the usual statistics: any of bald, tta_jsd, features, gradients.
    """

    name: str
    base: str
    noise: Noise | None = None
    diversity: Diversity | None = None
    weighted: bool = False
    needs: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, name: str) -> Strategy:
        """The strategy of that name. Raises ConfigError that lists the known ones."""
        if name not in _KNOWN:
            raise ConfigError(f"expected one of {', '.join((*BASES, 'random', *_DIVERSE))} {_WRAPPED}; got {name!r}")
        return _KNOWN[name]


_WRAPPED = "or, of the first eight, power_NAME or softrank_NAME"
_DIVERSE = ("kcenter", "entropy_kcenter", "badge_seg")


def _of_base(base: str, noise: Noise | None = None) -> Strategy:
    needs = frozenset({base} & {"bald", "tta_jsd"})
    return Strategy(f"{noise}_{base}" if noise else base, base, noise, needs=needs)


_ALL = (
    *(_of_base(base) for base in BASES),
    _of_base("random"),
    *(_of_base(base, noise) for noise in NOISES for base in BASES),
    Strategy("kcenter", "entropy_sum", diversity="kcenter", needs=frozenset({"features"})),
    Strategy("entropy_kcenter", "class_balanced_entropy", diversity="kcenter", weighted=True, needs=frozenset({"features"})),
    Strategy("badge_seg", "entropy_sum", diversity="badge", needs=frozenset({"gradients"})),
)
_KNOWN = {strategy.name: strategy for strategy in _ALL}

STRATEGY_NAMES = tuple(_KNOWN)
"""Every name `[selection] acquisition` takes."""
