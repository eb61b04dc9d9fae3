"""Requests to addresses that others have a say in: real servers, real redirects, and a resolver that lies."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from activeseg import fetching
from activeseg.errors import AddressRefused
from activeseg.fetching import fetch, refusal

HOST = "images.example"
Answering = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """On the loopback; notes who was asked for what."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer: Answering = lambda handler: plain(handler, b"picture")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.headers["Host"], self.path))
                outer.answer(self)

            def log_message(self, *words: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_port
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


def plain(handler: BaseHTTPRequestHandler, content: bytes, **headers: str) -> None:
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def to(location: str) -> Answering:
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.end_headers()

    return redirect


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def ask(url: str, *hosts: str, **options: Any) -> fetching.Answer:
    limits = {"max_bytes": 1000, "seconds": 5.0} | options
    return fetch(url, hosts=hosts or ("localhost",), **limits)


def resolving(monkeypatch: pytest.MonkeyPatch, **names: list[str]) -> list[str]:
    """Names mean these addresses, one after the other each time somebody asks. Returns who was looked up."""
    asked: list[str] = []
    true = socket.getaddrinfo

    def look_up(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        asked.append(name)
        answers = names.get(name.replace(".", "_"))
        return (
            true(answers.pop(0) if len(answers) > 1 else answers[0], port, *rest, **more)
            if answers
            else true(host, port, *rest, **more)
        )

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_what_a_named_host_gives_comes_and_the_host_is_told_its_name(server: Server) -> None:
    answer = ask(f"http://localhost:{server.port}/a?b=c")
    assert (answer.status, answer.content) == (200, b"picture")
    assert server.asked == [(f"localhost:{server.port}", "/a?b=c")]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://localhost/x", "gopher://localhost:70/_x", "http://127.0.0.1:{port}/", "http://[::1]:{port}/",
        "http://0:{port}/", "http://localhost@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\@localhost/", "http://localhost.evil.example/",
        "http://2130706433:{port}/", "http://0x7f000001:{port}/", "http://127.1:{port}/", "http://localhost.:{port}/",
    ],
)  # fmt: skip
def test_only_the_named_hosts_are_asked_however_another_is_written(server: Server, url: str) -> None:
    with pytest.raises((AddressRefused, httpx.HTTPError, httpx.InvalidURL)):
        ask(url.format(port=server.port))
    assert server.asked == []


def test_a_redirect_to_a_host_nobody_named_is_refused_before_it_is_asked(server: Server) -> None:
    inside = Server()
    try:
        for target in (
            f"http://127.0.0.1:{inside.port}/admin",
            "http://169.254.169.254/latest/meta-data/",
            "file:///etc/passwd",
        ):
            server.answer = to(target)
            with pytest.raises((AddressRefused, httpx.HTTPError)):
                ask(f"http://localhost:{server.port}/")
        assert inside.asked == []
    finally:
        inside.close()


def test_a_redirect_within_the_named_hosts_is_followed_and_a_round_of_them_ends(server: Server) -> None:
    first = iter([to("/next")])
    server.answer = lambda handler: next(first, lambda handler: plain(handler, b"there"))(handler)
    assert ask(f"http://localhost:{server.port}/").content == b"there"
    server.answer = to("/again")
    with pytest.raises(httpx.TooManyRedirects):
        ask(f"http://localhost:{server.port}/")
    assert len(server.asked) == 2 + 1 + fetching.MAX_REDIRECTS


@pytest.mark.slow
@pytest.mark.parametrize("where", ["status", "headers", "body"])
def test_an_answer_that_drips_is_given_up_in_time_wherever_it_drips(server: Server, where: str) -> None:
    whole = b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 400 + b"\r\nContent-Length: 400\r\n\r\n" + b"y" * 400
    at = {"status": 0, "headers": 30, "body": whole.index(b"yyy")}[where]

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(whole[:at])
        with suppress(OSError):  # it hangs up
            for byte in whole[at:]:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.02)

    server.answer = drip
    began = time.monotonic()
    with pytest.raises(AddressRefused, match=r"takes more than the 0\.5 s allowed"):
        ask(f"http://localhost:{server.port}/", seconds=0.5)
    assert time.monotonic() - began < 4  # whole, it takes eight


def test_a_name_that_means_another_machine_a_moment_later_gains_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Judged by 203.0.113.9, which leads nowhere; a second look would find the server on the loopback.
    asked = resolving(monkeypatch, images_example=["203.0.113.9", "127.0.0.1"])
    sent: list[str] = []

    class Recording(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            sent.append(f"{request.url.host} for {request.headers['Host']} with {request.extensions['sni_hostname']}")
            return httpx.Response(200)

    with httpx.Client(transport=fetching.PinnedTransport([HOST], inner=Recording())) as client:
        client.get(f"http://{HOST}:{server.port}/")
    assert sent == [f"203.0.113.9 for {HOST}:{server.port} with {HOST}"]
    assert asked == [HOST]


def test_a_public_name_cannot_stand_for_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for addresses in (["127.0.0.1"], ["::1"], ["::ffff:127.0.0.1"]):
        resolving(monkeypatch, images_example=addresses)
        with pytest.raises(AddressRefused, match="this machine under another name"):
            ask(f"http://{HOST}:{server.port}/", HOST)
        monkeypatch.undo()
    assert server.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "100.100.100.200",
        "240.0.0.1", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "0.1.2.3",
        "127.0.0.53", "::ffff:127.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_no_image_server_has_are_never_asked(address: str) -> None:
    assert refusal(ipaddress.ip_address(address), HOST)


@pytest.mark.parametrize(
    "address", ["203.0.113.9", "10.0.0.5", "192.168.1.20", "172.16.3.4", "fd12::5", "2001:4860:4860::8888"]
)
def test_public_and_private_networks_are_asked_where_the_operator_named_the_host(address: str) -> None:
    assert refusal(ipaddress.ip_address(address), HOST) is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "a.localhost"])
def test_loopback_is_asked_where_it_is_written(host: str) -> None:
    assert refusal(ipaddress.ip_address("127.0.0.1"), host) is None


def test_one_bad_address_among_good_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("203.0.113.9", "169.254.169.254")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: found)
    with pytest.raises(AddressRefused, match="link-local"):
        ask(f"http://{HOST}/", HOST)


def test_an_answer_without_end_is_not_read_to_its_end(server: Server) -> None:
    sent = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        plain(handler, b"")
        try:
            while len(sent) < 10_000:
                handler.wfile.write(bytes(65_536))
                sent.append(1)
        except OSError:
            return

    server.answer = endless
    with pytest.raises(AddressRefused, match="more than the 1000 bytes"):
        ask(f"http://localhost:{server.port}/")
    assert len(sent) < 1_000


def test_an_answer_that_drips_is_given_up(server: Server) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        plain(handler, b"")
        try:
            for _ in range(100):
                handler.wfile.write(b".")
                time.sleep(0.05)
        except OSError:
            return

    server.answer = drip
    with pytest.raises((AddressRefused, httpx.ReadTimeout)):
        ask(f"http://localhost:{server.port}/", seconds=0.3)


def test_a_packed_answer_is_refused(server: Server) -> None:
    server.answer = lambda handler: plain(handler, b"\x1f\x8b", Content_Encoding="gzip")
    with pytest.raises(AddressRefused, match="packed"):
        ask(f"http://localhost:{server.port}/")
