"""A TCP proxy that stages what happens between two machines: answers lost, gateways that give up, cables pulled."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal[
    "drops the answer",
    "answers 504 after the commit",
    "answers 504 and forwards it 2 s later",
    "answers 500 before it",
    "cuts the request in half",
]

BEFORE = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
AFTER = b"HTTP/1.1 504 Gateway Time-out\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def creates_tasks(head: bytes) -> bool:
    """Whether a request's head is that of the call that makes tasks."""
    line = head.split(b"\r\n", 1)[0]
    return line.startswith(b"POST ") and b"/import?" in line and b"return_task_ids" in line


@contextmanager
def proxy(server_url: str, fault: Callable[[bytes], Fault | None]) -> Iterator[str]:
    """Address of a proxy before a server; `fault` gets each request's head and says what becomes of it."""
    host, port = urlsplit(server_url).hostname, urlsplit(server_url).port

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            head, body = _request(self.request)
            if not head:
                return
            staged = fault(head)
            if staged == "answers 500 before it":
                self.request.sendall(BEFORE)
                return
            if staged == "answers 504 and forwards it 2 s later":
                self.request.sendall(AFTER)
                self.request.shutdown(socket.SHUT_WR)
                time.sleep(2)
            with socket.create_connection((host, port), timeout=60) as upstream:
                upstream.sendall(_closing(head))
                if staged == "cuts the request in half":
                    upstream.sendall(body[: len(body) // 2])
                    return
                upstream.sendall(body)
                answer = b"".join(iter(lambda: upstream.recv(65536), b""))
            if staged == "answers 504 after the commit":
                self.request.sendall(AFTER)
            elif staged is None:
                self.request.sendall(_closing(answer))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()


def _request(connection: socket.socket) -> tuple[bytes, bytes]:
    """A request's head with its blank line, and its body; empty where the client hung up."""
    data = b""
    with contextlib.suppress(OSError):
        while b"\r\n\r\n" not in data:
            if not (part := connection.recv(65536)):
                return b"", b""
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        fields = (line.partition(b":") for line in head.split(b"\r\n")[1:])
        length = next((int(value) for name, _, value in fields if name.strip().lower() == b"content-length"), 0)
        while len(body) < length:
            if not (part := connection.recv(65536)):
                return b"", b""
            body += part
        return head + b"\r\n\r\n", body
    return b"", b""


def _closing(message: bytes) -> bytes:
    """The same request or answer, saying that the connection ends with it: nobody may send another one on it."""
    head, _, body = message.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close", b"", body])
