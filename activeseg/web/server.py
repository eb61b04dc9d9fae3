"""Listening: loopback unless a token was set by hand, then uvicorn on the opened socket."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

import uvicorn
from fastapi import FastAPI

from activeseg.errors import ConfigError
from activeseg.web.auth import Token

BACKLOG = 128


def open_socket(host: str, port: int, token: Token) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises ConfigError where the address cannot be had, or where it is not the loopback and the token is one nobody chose.
    """
    family, address = _resolve(host, port)
    if not token.explicit and not ipaddress.ip_address(address[0]).is_loopback:
        raise ConfigError(
            f"refusing to listen on {host}, where other machines reach it, with a token nobody set: set ACTIVESEG_SERVE__TOKEN "
            "or [serve] token_file first (and put TLS in front), or use --host 127.0.0.1"
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


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        if not host:
            raise ValueError("it is empty")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:
        raise ConfigError(f"[serve] host: expected an address of this machine, got {host[:80]!r}: {error}") from error
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def url_of(opened: socket.socket) -> str:
    """'http://127.0.0.1:8090'."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, opened: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM; requests in progress are finished first."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, lifespan="off", ws="none"
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[opened])
