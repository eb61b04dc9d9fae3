"""The names this server answers to.

A page of somebody else can have its own name resolve to 127.0.0.1 (DNS rebinding); the browser then takes us for that
page's server, but it still says the name. Numbers and `localhost` cannot be rebound, so they are always right.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from activeseg.config import Settings
from activeseg.errors import ConfigError

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Hosts:
    """names: lower case, as people configured them. secure: those browsers reach over TLS. places: the same with the port a
    browser shows, for a proxy that asks us by another name."""

    names: frozenset[str]
    secure: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings, *, listening: str | None = None) -> Hosts:
        """From `[serve] host` (or the address it listens on), `[serve] hosts` and the address Label Studio calls.

        Raises ConfigError for what is no name.
        """
        names, secure, places = {(listening or settings.serve.host).lower()}, set[str](), set[str]()
        for entry in settings.serve.hosts:
            scheme, _, rest = entry.rpartition("://")
            name = name_of(rest.rstrip("/"))
            if name is None or scheme not in ("", "http", "https"):
                raise ConfigError(f"[serve] hosts: expected 'streets.example' or 'https://streets.example', got {entry!r}")
            names.add(name)
            places.add(rest.rstrip("/").lower())
            if scheme == "https":
                secure.add(name)
        if (hook := settings.labelstudio.webhook_url) and (name := urlsplit(hook).hostname):
            names.add(name)
        return cls(frozenset(names), frozenset(secure), frozenset(places))

    def answers_to(self, header: str) -> bool:
        """Whether a Host header names this server."""
        name = name_of(header)
        return name is not None and (name in self.names or name == "localhost" or _is_number(name))

    def is_own(self, origin: str, header: str) -> bool:
        """Whether an Origin header is a page of this server: the host and port that were asked, or a configured place.

        The port counts: on another one of this host may run Label Studio, and browsers send it our cookies.
        """
        scheme, _, place = origin.lower().partition("://")
        return scheme in ("http", "https") and name_of(place) is not None and place in self.places | {header.lower()}

    def is_secure(self, origin: str, header: str) -> bool:
        """Whether the browser speaks TLS: its page's address says so, or the configuration does."""
        return origin.startswith("https://") or name_of(header) in self.secure


def name_of(header: str) -> str | None:
    """'streets.example' of 'Streets.Example.:8090'; None for what is no host."""
    found = _HOST.fullmatch(header)
    return found[1].lower().rstrip(".") if found else None


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
