"""A database as a value; see scripts/canonical.py, which `make chaos` uses, too."""

from scripts.canonical import canonical_dump, differences

__all__ = ["canonical_dump", "differences"]
