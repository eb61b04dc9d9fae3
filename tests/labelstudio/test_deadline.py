"""A server that keeps a request going for ever is left; one that is slow and gets on is waited for."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from activeseg.errors import LabelStudioDoubt, LabelStudioUnreachable
from activeseg.labelstudio import deadline
from activeseg.labelstudio.http import Http

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n"
ANSWER = json.dumps({"text": "x" * 3000}).encode()
Serve = Callable[[socket.socket], None]


@contextmanager
def serving(answer: Serve) -> Iterator[str]:
    """A server on the loopback that treats each connection like this, until it is closed; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        answer(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def dripping(before: bytes, data: bytes, size: int = 1) -> Serve:
    """Sends `size` bytes every fiftieth of a second; in the end the answer is whole."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(before)
        for start in range(0, len(data), size):
            connection.sendall(data[start : start + size])
            time.sleep(0.02)

    return serve


def sipping(connection: socket.socket) -> None:
    """Takes some of a request now and then, until its end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    while connection.recv(65_536):
        time.sleep(0.005)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Http]:
    """Half a second for each step and as much for the whole."""
    monkeypatch.setattr(deadline, "SECONDS", 0.0)
    return lambda url: Http(url, "legacy", timeout=0.5, retry_delays=())


HEADERS = dripping(b"", (HEAD % len(ANSWER)) + b"X-Long: " + b"x" * 200 + b"\r\n\r\n" + ANSWER)
BODY = dripping((HEAD % len(ANSWER)) + b"\r\n", ANSWER)


@pytest.mark.slow
@pytest.mark.parametrize("serve", [HEADERS, BODY], ids=["headers", "body"])
def test_an_answer_that_comes_byte_by_byte_is_not_waited_for_to_its_end(impatient: Callable[[str], Http], serve: Serve) -> None:
    with serving(serve) as url:
        http = impatient(url)
        with pytest.raises(LabelStudioUnreachable, match="ReadTimeout"):
            http.get("/api/version")
        with pytest.raises(LabelStudioDoubt, match="ReadTimeout"):
            http.create("/api/projects/", {})
        http.close()


@pytest.mark.slow
def test_a_request_that_is_taken_drop_by_drop_is_given_up(
    impatient: Callable[[str], Http], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "BYTES_A_SECOND", 1e9)  # or those that wait in this machine's own buffers would count
    with serving(sipping) as url:
        http = impatient(url)
        with pytest.raises(LabelStudioUnreachable, match="WriteTimeout"):
            http.upload("/api/projects/1/import", [("a.png", bytes(40_000_000))])
        http.close()


@pytest.mark.slow
def test_a_slow_answer_is_waited_for_while_enough_of_it_comes(
    impatient: Callable[[str], Http], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "BYTES_A_SECOND", 100)
    with serving(dripping((HEAD % len(ANSWER)) + b"\r\n", ANSWER, size=60)) as url:
        http = impatient(url)
        assert http.get("/api/version") == json.loads(ANSWER)
        http.close()
