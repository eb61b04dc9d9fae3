"""Pushes to a real Label Studio whose images stay where they are: local files and links, opened as a person's page would."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.config import write_secret
from activeseg.core.scaling import shrink_mask
from activeseg.db.models import Task
from activeseg.errors import ActivesegError, LabelStudioError
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.regions import result_to_mask
from activeseg.labelstudio.registration import open_client
from activeseg.labelstudio.server import RunningServer, start_server
from activeseg.labelstudio.storages import ensure_local_storage
from activeseg.stages.push import push_round
from activeseg.workspace import Workspace
from tests.conftest import unavailable
from tests.factories import CLASSES
from tests.stages.pushing import chosen, drawn_mask, save_picture

pytestmark = [pytest.mark.labelstudio, pytest.mark.slow]

Make = Callable[..., Workspace]
_titles = count(1)


@pytest.fixture(scope="module")
def files_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Path]]:
    """A Label Studio that serves local files, and its document root."""
    folder = tmp_path_factory.mktemp("files-label-studio")
    (root := folder / "shared").mkdir()
    variables = {
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(root),
    }
    try:
        server = start_server(folder / "data", log=folder / "server.log", variables=variables)
    except ActivesegError as error:
        unavailable("labelstudio", str(error))
    with server:
        yield server, root


def connected(server: RunningServer, tmp_path: Path, **section: Any) -> dict[str, Any]:
    write_secret(tmp_path / "token", server.token())
    title = f"pictures {next(_titles)}"
    return {"url": server.url, "token_file": str(tmp_path / "token"), "project": title, "longest_side": 64} | section


def pool_of(folder: Path) -> None:
    """Two files that can go by address, one that is too large, one that a browser would turn."""
    (folder / "däy 1").mkdir(parents=True)
    save_picture(folder / "däy 1" / "plain & 100%.png", 48, 32)
    save_picture(folder / "grün#1.jpg", 64, 48)
    save_picture(folder / "large.png", 160, 121)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (40, 30), (200, 30, 30)).save(folder / "turned.jpg", exif=exif)


def opened(server: RunningServer, url: str) -> bytes:
    """What an address gives to somebody who is signed in."""
    access = httpx.post(f"{server.url}/api/token/refresh/", json={"refresh": server.token()}).json()["access"]
    own = not url.startswith("http")
    headers = {"Authorization": f"Bearer {access}"} if own else {}
    answer = httpx.get(server.url + url if own else url, headers=headers)
    answer.raise_for_status()
    return answer.content


def check_pictures(workspace: Workspace, client: LabelStudioClient, server: RunningServer, address: str) -> None:
    """Each task's image opens, is as large as its mask, and is the pool's own file where it goes by address."""
    with workspace.database.read() as session:
        numbers = list(session.scalars(sa.select(Task.external_task_id).order_by(Task.external_task_id)))
    by_address = set()
    for number, name, shape in zip(
        numbers, ("plain", "grün", "large", "turned"), ((32, 48), (48, 64), (121, 160), (40, 30)), strict=True
    ):
        task = client.http.get(f"/api/tasks/{number}/")
        data = opened(server, task["data"]["image"])
        picture = Pillow.open(io.BytesIO(data))
        result = task["predictions"][0]["result"]
        assert {(region["original_width"], region["original_height"]) for region in result} == {picture.size}
        mask = result_to_mask(result, CLASSES, width=picture.width, height=picture.height).mask
        assert (mask == shrink_mask(drawn_mask(*shape), mask.shape)).all()
        if task["data"]["image"].startswith(address):
            by_address.add(name)
            (file,) = Path(workspace.settings.images_uri).rglob(f"{name}*")
            assert data == file.read_bytes()
    assert by_address == {"plain", "grün"}


def test_local_files_open_for_whoever_is_signed_in_and_for_nobody_else(
    make_sqlite_workspace: Make, files_server: tuple[RunningServer, Path], tmp_path: Path
) -> None:
    server, root = files_server
    pool_of(root / "pool")
    options = connected(server, tmp_path, images="local-files", local_root=str(root))
    workspace = make_sqlite_workspace(pool=0, pool_section={"images": str(root / "pool")}, labelstudio=options)
    chosen(workspace)
    with open_client(workspace.settings) as client:
        report = push_round(workspace, 1, client)
        assert (report.details["images by address"], report.details["images uploaded"]) == (2, 2)
        check_pictures(workspace, client, server, "/data/local-files/?d=pool/")
        project = report.details["project"]
        url = client.http.get("/api/tasks/", {"project": project, "fields": "all"})["tasks"][0]["data"]["image"]
        assert httpx.get(server.url + url).status_code in (401, 403)
        # The storage is made once, and another folder's gets one of its own.
        stored = client.http.get("/api/storages/localfiles/", {"project": project})
        assert [storage["path"] for storage in stored] == [str(root / "pool")]
        for folder in ("pool", "pool/däy 1"):
            assert ensure_local_storage(client.http, project, str(root / folder)) == stored[0]["id"]
        (root / "pool-2").mkdir()
        assert ensure_local_storage(client.http, project, str(root / "pool-2")) != stored[0]["id"]


def test_a_server_that_serves_no_local_files_is_told_what_it_lacks(
    make_sqlite_workspace: Make, labelstudio_server: RunningServer, tmp_path: Path
) -> None:
    pool_of(tmp_path / "pool")
    options = connected(labelstudio_server, tmp_path, images="local-files", local_root=str(tmp_path))
    workspace = make_sqlite_workspace(pool=0, labelstudio=options)
    chosen(workspace)
    with (
        open_client(workspace.settings) as client,
        pytest.raises(LabelStudioError, match="LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true") as caught,
    ):
        push_round(workspace, 1, client)
    assert "\n" not in str(caught.value)
    with workspace.database.read() as session:
        assert set(session.scalars(sa.select(Task.external_task_id))) == {None}


def test_links_lead_to_the_pools_own_files(
    make_sqlite_workspace: Make, labelstudio_server: RunningServer, tmp_path: Path
) -> None:
    pool_of(tmp_path / "pool")
    handler = partial(QuietHandler, directory=str(tmp_path / "pool"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        link = f"http://127.0.0.1:{web.server_port}/{{path}}"
        options = connected(labelstudio_server, tmp_path, images="link", link=link)
        workspace = make_sqlite_workspace(pool=0, labelstudio=options)
        chosen(workspace)
        with open_client(workspace.settings) as client:
            report = push_round(workspace, 1, client)
            check_pictures(workspace, client, labelstudio_server, link.removesuffix("{path}"))
        web.shutdown()
    assert (report.details["images by address"], report.details["images uploaded"]) == (2, 2)


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""
