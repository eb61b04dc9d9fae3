"""Where pictures of other people's tasks come from: the one Label Studio, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from activeseg.errors import ImageError
from activeseg.imaging.thumbnails import encode_png
from activeseg.labelstudio.http import Http
from activeseg.labelstudio.regions import result_to_mask
from activeseg.mlbackend.pictures import Pictures
from activeseg.workspace import Workspace
from tests.factories import draw_ball
from tests.mlbackend.conftest import promote

SERVER = "http://ls.example:8080"
PNG = encode_png(draw_ball(5)[0])


class Server:
    """A Label Studio at the transport: every address that is asked for is written down."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[httpx.Request], httpx.Response] = lambda request: httpx.Response(200, content=PNG)
        self.http = Http(SERVER, "legacy-token", retry_delays=(), transport=httpx.MockTransport(self._handle))

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        assert request.headers["authorization"] == "Token legacy-token"
        return self.answer(request)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.close()


@pytest.fixture
def answer_to(workspace: Workspace, backend: Callable[..., TestClient], server: Server, config: str) -> Callable[[Any], Any]:
    promote(workspace, "m-0001")
    client = backend(server.http)

    def ask(address: Any) -> Any:
        answer = client.post("/predict", json={"tasks": [{"id": 3, "data": {"image": address}}], "label_config": config})
        assert answer.status_code == 200
        [result] = answer.json()["results"]
        return result

    return ask


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/9/742d-x.png",
        "/data/local-files/?d=cam/x%20y.png",
        f"{SERVER}/data/upload/9/a b.png",
        "/data/upload/9/歩.png",
    ],
)
@pytest.mark.slow
def test_a_picture_of_the_server_itself_is_fetched_with_our_token(
    answer_to: Any, server: Server, workspace: Workspace, address: str
) -> None:
    answer = answer_to(address)
    assert result_to_mask(answer["result"], workspace.label_set, width=64, height=48).mask.shape == (48, 64)
    [asked] = server.asked
    assert asked.startswith(SERVER + "/data/")


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:8090/data/upload/1/x.png",
        "https://ls.example:8080/data/upload/1/x.png",
        "http://ls.example:8080.evil.example/data/upload/1/x.png",
        "http://ls.example:8080@evil.example/data/upload/1/x.png",
        "http://evil.example/data/upload/1/x.png",
        "//evil.example/data/upload/1/x.png",
        "/\\evil.example/data/upload/1/x.png",
        "/api/users/",
        "/data/../api/users/",
        "/data/upload/../../api/users/",
        "/data/upload/%2e%2e/%2e%2e/api/users/",
        "/data/upload/%252e%252e/%252e%252e/api/users/",
        "/data/upload/..\\..\\api",
        "/data/upload/1/x.png\r\nX-Injected: 1",
        "/data/upload/" + "x" * 3000,
        "/tasks/1/resolve/?fileuri=aHR0cDovL2V2aWwv",
        "file:///etc/passwd",
        "s3://bucket/x.png",
        "gopher://x",
        "data:image/png;base64,AAAA",
        "upload/1/x.png",
        "",
        None,
        7,
        ["/data/upload/1/x.png"],
        {"url": "/data/upload/1/x.png"},
    ],
    ids=lambda value: repr(value)[:40],
)
def test_nothing_else_is_ever_asked_for(workspace: Workspace, server: Server, address: Any) -> None:
    with pytest.raises(ImageError) as caught:
        Pictures(workspace, server.http).of({"image": address})
    assert server.asked == []
    assert len(str(caught.value)) < 400


@pytest.mark.slow
def test_a_redirect_is_not_followed(answer_to: Any, server: Server) -> None:
    server.answer = lambda request: httpx.Response(302, headers={"Location": "http://169.254.169.254/latest/meta-data/"})
    assert answer_to("/data/upload/1/x.png") == []
    assert len(server.asked) == 1


@pytest.mark.slow
def test_a_picture_that_is_too_large_is_not_read_to_its_end(
    make_sqlite_workspace: Callable[..., Workspace], backend: Callable[..., TestClient], server: Server, config: str
) -> None:
    small = make_sqlite_workspace(pool=1, pool_section={"max_bytes": 100_000}, ml_backend={"password": "x" * 20})
    promote(small, "m-0001")
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 10**9:
            sent += 10_000
            yield bytes(10_000)

    server.answer = lambda request: httpx.Response(200, content=endless())
    client = backend(server.http, over=small)
    client.auth = ("label-studio", "x" * 20)
    answer = client.post(
        "/predict", json={"tasks": [{"id": 1, "data": {"image": "/data/upload/1/x.png"}}], "label_config": config}
    )
    assert answer.json() == {"results": [[]]}
    assert sent <= 120_000


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: httpx.Response(404),
        lambda request: httpx.Response(500, text="oops"),
        lambda request: httpx.Response(200, content=b"<html>"),
        lambda request: httpx.Response(200, content=PNG[:100]),
        lambda request: (_ for _ in ()).throw(httpx.ConnectError("away")),
    ],
)
@pytest.mark.slow
def test_a_picture_that_cannot_be_had_gives_no_prediction(answer_to: Any, server: Server, answer: Any) -> None:
    server.answer = answer
    assert answer_to("/data/upload/1/x.png") == []


def test_without_a_label_studio_only_our_own_tasks_have_pictures(
    workspace: Workspace, backend: Callable[..., TestClient], config: str
) -> None:
    promote(workspace, "m-0001")
    body = {"tasks": [{"id": 3, "data": {"image": "/data/upload/1/x.png"}}], "label_config": config}
    assert backend(None).post("/predict", json=body).json() == {"results": [[]]}


@pytest.mark.slow
def test_a_photograph_is_seen_upright_as_a_browser_shows_it(answer_to: Any, server: Server, workspace: Workspace) -> None:
    import io

    from PIL import Image

    turned, buffer = Image.fromarray(np.rot90(draw_ball(5)[0]).copy()), io.BytesIO()
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(buffer, "JPEG", exif=exif)
    server.answer = lambda request: httpx.Response(200, content=buffer.getvalue())
    region = answer_to("/data/upload/1/x.jpg")["result"][0]
    assert (region["original_width"], region["original_height"]) == (64, 48)
