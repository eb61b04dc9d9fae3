"""Listening: loopback unless a secret was set by hand, because one that nobody chose is one that nobody keeps."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from activeseg.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

BACKLOG = 128
MAX_DISCARDED = 2**20
DISCARD_SECONDS = 0.5
HEAD_SECONDS = 10.0
MAX_HEAD = 32 * 1024
MOST_CONNECTIONS = 1000
LAST_ANSWERS_SECONDS = 120
"""More than Label Studio waits for a prediction."""


def open_socket(host: str, port: int, *, section: str, secret: str, explicit: bool, remedy: str | None = None) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    section: of the configuration, named in errors. secret: what callers must know ('token', 'password'). explicit: a person
    set it. remedy: a command that does it, too. Raises ConfigError where the address cannot be had, or where it is not the
    loopback and nobody set the secret.
    """
    family, address = _resolve(host, port, section)
    if not explicit and not ipaddress.ip_address(address[0]).is_loopback:
        variable = f"ACTIVESEG_{section}__{secret}".upper()
        raise ConfigError(
            f"refusing to listen on {host}, where other machines reach it, with a {secret} nobody set: set {variable} or "
            f"[{section}] {secret}_file{f' or run {remedy}' if remedy else ''} first (and put TLS in front), or use --host "
            "127.0.0.1"
        )
    # The very address that was checked is bound: a name is not resolved a second time.
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}; choose another --port or --host") from error
    return opened


def url_of(opened: socket.socket) -> str:
    """'http://127.0.0.1:8090'."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, opened: socket.socket, *, threads: int | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM; requests in progress are finished first, for LAST_ANSWERS_SECONDS at most.

    threads: that work at once on what blocks; None leaves the 40 of anyio. More connections than MOST_CONNECTIONS, or than
    half the files this process may open, are answered with 503.
    """
    config = uvicorn.Config(
        app,
        http=Impatient,
        # What is no HTTP would be a line in the log each time, for whoever wants to fill the disk.
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        limit_concurrency=_most_connections(),
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_graceful_shutdown=LAST_ANSWERS_SECONDS,
    )
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, threads).run(sockets=[opened])


class Impatient(H11Protocol):
    """uvicorn's HTTP, but a connection on which no whole head of a request comes in HEAD_SECONDS is closed.

    uvicorn itself waits for ever for the first head, and for the next one once its first byte came: some thousand
    connections that send a byte now and then would keep everybody out.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once a request is being answered."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, threads: int | None) -> None:
        super().__init__(config)
        self._threads = threads

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """The number of threads belongs to the event loop, which is there only now."""
        if self._threads is not None:
            anyio.to_thread.current_default_thread_limiter().total_tokens = self._threads
        await super().startup(sockets)


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, files // 2)


async def discard_body(request: Request) -> None:
    """Read and forget, up to MAX_DISCARDED bytes: closing on a sender that is still writing would be a failure to it."""
    size = 0
    with anyio.move_on_after(DISCARD_SECONDS):
        async for part in request.stream():
            size += len(part)
            if size > MAX_DISCARDED:
                return


def _resolve(host: str, port: int, section: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        if not host:
            raise ValueError("it is empty")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:
        raise ConfigError(f"[{section}] host: expected an address of this machine, got {host[:80]!r}: {error}") from error
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))
