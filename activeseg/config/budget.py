"""How much one night may score: a duration or a number of images."""

from __future__ import annotations

import re
from dataclasses import dataclass

from activeseg.errors import ConfigError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EXPECTED = "expected a duration such as 2h, 30m or 90s, or a number of images such as 500"


@dataclass(frozen=True, slots=True)
class Budget:
    """One of the two is set. text: as it was asked for."""

    text: str
    seconds: float | None = None
    images: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """'2h', '1.5h', '30m', '90s', '1d', or '500' images. Raises ConfigError for anything else, and for nothing at all."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower(), re.ASCII)
        if found is None or not (amount := float(found[1])):
            raise ConfigError(f"budget: {_EXPECTED}; got {text!r}")
        if found[2]:
            return cls(text.strip(), seconds=amount * _UNITS[found[2]])
        if not amount.is_integer():
            raise ConfigError(f"budget: {_EXPECTED}; got {text!r}")
        return cls(text.strip(), images=int(amount))
