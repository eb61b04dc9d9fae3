"""What Label Studio's webhook and our receiver agree on: the route, the header, the address."""

from __future__ import annotations

HOOK_PATH = "/hooks/label-studio"
"""The route of `activeseg serve` that takes hints."""

SECRET_HEADER = "X-Activeseg-Secret"
"""Carries the secret: Label Studio signs nothing, it sends fixed headers."""


def hook_address(url: str) -> str:
    """Where hints go, from the address of `activeseg serve` ([labelstudio] webhook_url)."""
    base = url.rstrip("/")
    return base if base.endswith(HOOK_PATH) else base + HOOK_PATH
