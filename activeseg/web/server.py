"""Where the API listens: as `activeseg.listening` allows with its token."""

from __future__ import annotations

import socket

from activeseg import listening
from activeseg.listening import run, url_of
from activeseg.web.auth import Token

__all__ = ["open_socket", "run", "url_of"]


def open_socket(host: str, port: int, token: Token) -> socket.socket:
    """A listening TCP socket; see `listening.open_socket`."""
    return listening.open_socket(host, port, section="serve", secret="token", explicit=token.explicit)
