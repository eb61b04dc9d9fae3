"""Requests to addresses that somebody else may have a say in: which hosts, which machines behind their names, how much.

The rules, all of which hold for each redirect, too:

- http and https only, and only hosts that the caller names.
- A name is looked up once, each address it has is judged, and the connection goes to the very address that was judged: a name
  that means another machine a moment later (DNS rebinding) gains nothing.
- Link-local addresses (cloud metadata), multicast, unspecified and reserved ones are never asked. Loopback is asked only
  where the host itself is written as loopback, so a public name cannot stand for this machine. Private networks are asked,
  because image servers and hooks live there: the operator named the host.
- Bytes and seconds are limited for the whole answer, headers and redirects included, not for each part of it.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpcore
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
    try:
        return _fetch(url, hosts, max_bytes, until, seconds, headers or {})
    except httpx.TimeoutException as error:
        if time.monotonic() < until:
            raise
        raise _too_long(url, seconds) from error


def _fetch(
    url: str, hosts: Collection[str], max_bytes: int, until: float, seconds: float, headers: Mapping[str, str]
) -> Answer:
    with (
        httpx.Client(
            transport=PinnedTransport(hosts, inner=_transport_until(until)),
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            timeout=httpx.Timeout(min(seconds, 30.0)),
            trust_env=False,
        ) as client,
        client.stream("GET", url, headers={**headers, "Accept-Encoding": "identity"}) as answer,
    ):
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise AddressRefused(f"{url} answers packed, though it was asked not to: what that unpacks to nobody knows")
        content = bytearray()
        for part in answer.iter_raw():
            content += part
            if len(content) > max_bytes:
                raise AddressRefused(f"{url} answers with more than the {max_bytes} bytes allowed")
            if time.monotonic() > until:
                raise _too_long(url, seconds)
        return Answer(answer.status_code, answer.headers, bytes(content), str(answer.url))


def _too_long(url: str, seconds: float) -> AddressRefused:
    return AddressRefused(f"{url} takes more than the {seconds:g} s allowed")


def host_of(url: str) -> str:
    """The host of an address, in lower case; '' where it has none."""
    with suppress(ValueError):
        return (urlsplit(url).hostname or "").lower()
    return ""


def _transport_until(until: float) -> httpx.HTTPTransport:
    """A transport of which nothing takes longer than until this moment of the monotonic clock.

    httpx limits each read, and headers that come byte by byte are a read each: only the connection itself can see the end.
    """
    context = httpx.create_ssl_context()
    transport = httpx.HTTPTransport(verify=context)
    transport._pool = httpcore.ConnectionPool(ssl_context=context, network_backend=_Until(until))
    return transport


class _Until(httpcore.NetworkBackend):
    """Connections that are given up at a moment."""

    def __init__(self, until: float) -> None:
        self._until, self._inner = until, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(self._until, timeout)
        return _UntilStream(self._inner.connect_tcp(host, port, left, local_address, socket_options), self._until)


class _UntilStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, until: float) -> None:
        self._inner, self._until = inner, until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(self._until, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(self._until, timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(self._until, timeout)
        return _UntilStream(self._inner.start_tls(ssl_context, server_hostname, left), self._until)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(until: float, timeout: float | None) -> float:
    """Seconds for the next step. Raises httpcore.ReadTimeout where none are left."""
    left = until - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("no time is left")
    return left if timeout is None else min(left, timeout)


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
