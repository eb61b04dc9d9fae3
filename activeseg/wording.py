"""How counts are said."""

from __future__ import annotations


def counted(number: int, thing: str, plural: str | None = None) -> str:
    """'1 image', '0 images', '2 images'. plural: where it is not the thing with an s."""
    return f"{number} {thing if number == 1 else plural or thing + 's'}"
