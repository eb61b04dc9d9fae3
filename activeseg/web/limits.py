"""How much one caller may ask: a bucket of requests that fills again, for so many callers and no more."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

CALLERS = 10_000
"""Remembered at once; of more, those not heard of for longest begin anew."""

LOGINS_PER_MINUTE = 10
"""Attempts of one address to log in."""

RECOGNISED_SECONDS = 300.0

AT_ONCE = 120
"""A page with its pictures is some forty requests."""


class Buckets:
    """Token buckets by caller, `per_minute` filled evenly, of which some may be taken at once: a tenth, at least AT_ONCE,
    at most all. clock: seconds, monotonic."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic, callers: int = CALLERS) -> None:
        self._most = float(min(per_minute, max(AT_ONCE, per_minute // 10)))
        self._rate, self._clock, self._callers = per_minute / 60.0, clock, callers
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._left)

    def take(self, caller: str) -> float:
        """Take one from the caller's bucket; 0.0, or the seconds until there is one."""
        now = self._clock()
        left, since = self._left.get(caller, (self._most, now))
        left = min(self._most, left + (now - since) * self._rate)
        wait = 0.0 if left >= 1.0 else (1.0 - left) / self._rate
        self._left[caller] = (left if wait else left - 1.0, now)
        self._left.move_to_end(caller)
        if len(self._left) > self._callers:
            self._left.popitem(last=False)
        return wait


class Limits:
    """The buckets of one server.

    Who showed a valid token lately has a bucket of their own: others at the same address, such as all behind one proxy,
    cannot use it up. The rest are told apart by address, IPv6 by its first 64 bits, which one household shares.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.requests, self.logins = Buckets(per_minute, clock=clock), Buckets(LOGINS_PER_MINUTE, clock=clock)
        self._clock = clock
        self._recognised: OrderedDict[str, float] = OrderedDict()

    def recognise(self, sha256: str) -> None:
        """The token with this hash was found valid."""
        self._recognised[sha256] = self._clock()
        self._recognised.move_to_end(sha256)
        if len(self._recognised) > CALLERS:
            self._recognised.popitem(last=False)

    def take(self, sha256: str | None, address: str) -> float:
        """Seconds to wait before this request; 0.0 where it may come now. sha256: of the token it shows."""
        found = self._recognised.get(sha256) if sha256 else None
        known = found is not None and self._clock() - found < RECOGNISED_SECONDS
        return self.requests.take(f"token {sha256}" if known else network_of(address))

    def log_in(self, address: str) -> float:
        """Seconds to wait before this attempt to log in; 0.0 where it may come now."""
        return self.logins.take(network_of(address))


def network_of(address: str) -> str:
    """What one caller is counted by: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:100]
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
