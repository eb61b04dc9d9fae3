"""How counts and moments are said."""

from __future__ import annotations

from datetime import datetime, tzinfo


def counted(number: int, thing: str, plural: str | None = None) -> str:
    """'1 image', '0 images', '2 images'. plural: where it is not the thing with an s."""
    return f"{number} {thing if number == 1 else plural or thing + 's'}"


def moment(time: datetime, zone: tzinfo) -> str:
    """'2026-11-21 03:00 CET' of an aware time: as people are told it, in the zone of [schedule]."""
    return f"{time.astimezone(zone):%Y-%m-%d %H:%M %Z}"
