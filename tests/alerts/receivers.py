"""A web server and a mail server that keep what they get, each in a thread, on a free port of the loopback."""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Receiver:
    """status, headers: of the next answers. silent: takes requests and never answers. got: (path, headers, body)."""

    def __init__(self) -> None:
        self.status, self.headers = 200, dict[str, str]()
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.silent, self.over = False, threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                if receiver.silent:
                    receiver.over.wait()
                    return
                self.send_response(receiver.status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook/key-0123456789abcdef"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@dataclass
class SmtpSink:
    """Speaks as much SMTP as a client needs.

    starttls: offers it with this context. tls: speaks TLS from the first byte. user: (name, password) it wants. refuse:
    addresses it does not take. mails: (recipients, message, whether it came encrypted).
    """

    starttls: ssl.SSLContext | None = None
    tls: ssl.SSLContext | None = None
    user: tuple[str, str] | None = None
    refuse: frozenset[str] = frozenset()
    mails: list[tuple[list[str], EmailMessage, bool]] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Self:
        self.loop, ready = asyncio.new_event_loop(), threading.Event()

        async def listen() -> None:
            self.server = await asyncio.start_server(self._talk, "127.0.0.1", 0, ssl=self.tls)
            self.port = self.server.sockets[0].getsockname()[1]
            ready.set()

        def serve() -> None:
            self.loop.run_until_complete(listen())
            self.loop.run_forever()

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()
        ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
            self.loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        self.server.close()
        self.loop.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._dialogue(reader, writer)
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _dialogue(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: C901 - verb by verb
        encrypted, known, to = self.tls is not None, self.user is None, list[str]()

        def say(line: str) -> None:
            writer.write(f"{line}\r\n".encode())

        say("220 sink")
        while line := (await reader.readline()).decode().strip():
            verb = line.split()[0].upper()
            if verb == "EHLO":
                offers = [
                    "sink",
                    *(["STARTTLS"] if self.starttls and not encrypted else []),
                    *(["AUTH PLAIN"] if self.user else []),
                ]
                for offer in offers[:-1]:
                    say(f"250-{offer}")
                say(f"250 {offers[-1]}")
            elif verb == "STARTTLS":
                say("220 go on")
                await writer.drain()
                await writer.start_tls(self.starttls)
                encrypted = True
            elif verb == "AUTH":
                _, name, password = base64.b64decode(line.split()[2]).decode().split("\0")
                known = (name, password) == self.user
                say("235 welcome" if known else "535 no")
            elif verb == "MAIL":
                to = []
                say("250 ok" if known else "530 log in")
            elif verb == "RCPT":
                address = line[line.index("<") + 1 : line.index(">")]
                say("550 unknown" if address in self.refuse else "250 ok")
                to += [] if address in self.refuse else [address]
            elif verb == "DATA":
                say("354 go on")
                data = b""
                while (part := await reader.readline()) not in (b".\r\n", b""):
                    data += part.removeprefix(b".") if part.startswith(b"..") else part
                message = message_from_bytes(data, policy=policy.default)
                self.mails.append((to, message, encrypted))  # type: ignore[arg-type]
                say("250 taken")
            elif verb == "QUIT":
                say("221 bye")
                await writer.drain()
                return
            else:
                say("250 ok")
            await writer.drain()
