"""Requests to addresses that somebody else may have a say in: which hosts, which machines behind their names, how much.

The rules, all of which hold for each redirect, too:

- http and https only, and only hosts that the caller names.
- A name is looked up once, each address it has is judged, and the connection goes to the very address that was judged: a name
  that means another machine a moment later (DNS rebinding) gains nothing.
- Link-local addresses (cloud metadata), multicast, unspecified and reserved ones are never asked. Loopback is asked only
  where the host itself is written as loopback, so a public name cannot stand for this machine. Private networks are asked,
  because image servers and hooks live there: the operator named the host.
- Bytes and seconds are limited for the whole answer, not for each part of it.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from activeseg.errors import AddressRefused

SCHEMES = ("http", "https")
MAX_REDIRECTS = 5

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# 0/8 reaches this machine on Linux; 100.100.100.200 and fd00:ec2::254 are metadata services outside the link-local range.
_NEVER = tuple(map(ipaddress.ip_network, ("0.0.0.0/8", "100.100.100.200/32", "fd00:ec2::254/128", "255.255.255.255/32")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Answer:
    """url: where it came from in the end."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str


def fetch(
    url: str, *, hosts: Collection[str], max_bytes: int, seconds: float, headers: Mapping[str, str] | None = None
) -> Answer:
    """What a GET gives. hosts: names that may be asked, in lower case; a redirect to another one is refused.

    Raises AddressRefused where a rule forbids it, or the answer has more than `max_bytes` bytes or takes more than `seconds`;
    httpx.HTTPError where there is no answer.
    """
    until = time.monotonic() + seconds
    timeout = httpx.Timeout(min(seconds, 30.0))
    with (
        httpx.Client(
            transport=PinnedTransport(hosts),
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            timeout=timeout,
            trust_env=False,
        ) as client,
        client.stream("GET", url, headers={**(headers or {}), "Accept-Encoding": "identity"}) as answer,
    ):
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise AddressRefused(f"{url} answers packed, though it was asked not to: what that unpacks to nobody knows")
        content = bytearray()
        for part in answer.iter_raw():
            content += part
            if len(content) > max_bytes:
                raise AddressRefused(f"{url} answers with more than the {max_bytes} bytes allowed")
            if time.monotonic() > until:
                raise AddressRefused(f"{url} takes more than the {seconds:g} s allowed")
        return Answer(answer.status_code, answer.headers, bytes(content), str(answer.url))


def host_of(url: str) -> str:
    """The host of an address, in lower case; '' where it has none."""
    with suppress(ValueError):
        return (urlsplit(url).hostname or "").lower()
    return ""


class PinnedTransport(httpx.BaseTransport):
    """Sends each request to the address that its host was judged by. For `httpx.Client(transport=...)`.

    httpx asks its transport anew for each redirect, so each is judged. TLS still names and checks the host, not the address.
    """

    def __init__(self, hosts: Collection[str], *, inner: httpx.BaseTransport | None = None) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._inner = inner or httpx.HTTPTransport(retries=0)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The answer. Raises AddressRefused."""
        url = request.url
        # httpx leaves the Host header as it was made from the name.
        pinned = url.copy_with(host=str(allowed_address(url.scheme, url.host, url.port, self._hosts)))
        extensions = {**request.extensions, "sni_hostname": url.host}
        sent = httpx.Request(request.method, pinned, headers=request.headers, stream=request.stream, extensions=extensions)
        return self._inner.handle_request(sent)

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


def allowed_address(scheme: str, host: str, port: int | None, hosts: Collection[str]) -> _Address:
    """The address to connect to, the first of the host's. Raises AddressRefused where scheme, host or an address is refused."""
    if scheme not in SCHEMES:
        raise AddressRefused(f"expected http or https; got {scheme[:20]!r}")
    name = host.lower()
    if name not in hosts:
        raise AddressRefused(f"host {name[:100]!r} is not one of those named: {', '.join(sorted(hosts)) or 'none'}")
    try:
        found = socket.getaddrinfo(name, port or (443 if scheme == "https" else 80), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"{name[:100]} cannot be looked up") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    for address in addresses:
        if (why := refusal(address, name)) is not None:
            raise AddressRefused(f"host {name[:100]!r} is {address}, {why}, which is never asked")
    return addresses[0]


def refusal(address: _Address, host: str) -> str | None:
    """Why a host is not asked at this address; None where it may be."""
    address = _inner_address(address)
    if address.is_loopback:
        return None if _is_loopback_name(host) else "this machine under another name"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast or address.is_unspecified or any(address in network for network in _NEVER):
        return "no machine's own address"
    return "a reserved address" if address.is_reserved else None


def _inner_address(address: _Address) -> _Address:
    """The IPv4 address that an IPv6 one stands for; else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if (inner := address.ipv4_mapped or address.sixtofour) is not None:
            return inner
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_loopback_name(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return _inner_address(ipaddress.ip_address(host)).is_loopback
    except ValueError:
        return False
