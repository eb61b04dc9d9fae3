"""Listening: loopback unless a secret was set by hand, because one that nobody chose is one that nobody keeps."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING

import anyio

from activeseg.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

BACKLOG = 128
MAX_DISCARDED = 2**20
DISCARD_SECONDS = 0.5


def open_socket(host: str, port: int, *, section: str, secret: str, explicit: bool) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    section: of the configuration, named in errors. secret: what callers must know ('token', 'password'). explicit: a person
    set it. Raises ConfigError where the address cannot be had, or where it is not the loopback and nobody set the secret.
    """
    family, address = _resolve(host, port, section)
    if not explicit and not ipaddress.ip_address(address[0]).is_loopback:
        variable = f"ACTIVESEG_{section}__{secret}".upper()
        raise ConfigError(
            f"refusing to listen on {host}, where other machines reach it, with a {secret} nobody set: set {variable} or "
            f"[{section}] {secret}_file first (and put TLS in front), or use --host 127.0.0.1"
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


def run(app: FastAPI, opened: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM; requests in progress are finished first."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, lifespan="off", ws="none"
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[opened])


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
