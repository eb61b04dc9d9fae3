"""A limit for the whole of a request: httpx limits each step, and a peer that sends a byte now and then never ends one.

Only the connection itself sees headers that come byte by byte, so that is where time is counted.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

SECONDS = 300.0
"""For a request and its answer, beside the timeout of a step, before any bytes count."""
BYTES_A_SECOND = 10_000
"""So many bytes, there or back, earn a second more: a hundred megabytes of images pass on any line that is fit for them."""
LONGEST = 7_200.0
"""Seconds that bytes can earn."""
_PIECE = 65_536  # handed over at once: what a peer takes of it drop by drop is one step


@dataclass(slots=True)
class _Running:
    """A request on its way. moved: bytes so far."""

    until: float
    moved: int = 0

    def left(self) -> float:
        return self.until + min(self.moved / BYTES_A_SECOND, LONGEST) - time.monotonic()


# A connection serves one request at a time, in the thread that sent it.
_running: ContextVar[_Running | None] = ContextVar("running", default=None)


@contextmanager
def within(timeout: float) -> Iterator[None]:
    """Give up what is sent and received in here in time: httpx.TimeoutException. timeout: seconds of one step."""
    token = _running.set(_Running(time.monotonic() + timeout + SECONDS))
    try:
        yield
    finally:
        _running.reset(token)


def watch(client: httpx.Client) -> None:
    """Have this client's connections, those through proxies too, heed `within`."""
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            pool = transport._pool
            pool._network_backend = _Backend(pool._network_backend)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(host, port, left, local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))
        _count(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            piece = buffer[start : start + _PIECE]
            self._inner.write(piece, _left(timeout, httpcore.WriteTimeout))
            _count(len(piece))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(timeout: float | None, error: type[httpcore.TimeoutException]) -> float | None:
    """Seconds for the next step."""
    if (running := _running.get()) is None:
        return timeout
    if (left := running.left()) <= 0:
        raise error("the whole request takes too long")
    return left if timeout is None else min(left, timeout)


def _count(size: int) -> None:
    if (running := _running.get()) is not None:
        running.moved += size
