"""What a push plans, delivers and sends: which pictures go by address, what is shrunk, in which order."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.core.scaling import shrink_mask
from activeseg.db.models import (
    Image,
    Prediction,
    Query,
    QueryStatus,
    Round,
    RoundStatus,
    Task,
    TaskStatus,
)
from activeseg.errors import LabelStudioUnreachable
from activeseg.imaging.decode import decode_image
from activeseg.labelstudio.regions import result_to_mask
from activeseg.stages import push
from activeseg.stages.push import push_round
from activeseg.workspace import Workspace
from tests.factories import CLASSES
from tests.imaging.corpus import good_cases
from tests.imaging.test_browser import ALIKE
from tests.memory_label_studio import section
from tests.stages.pushing import LINK, Shelf, chosen, drawn_mask, save_picture

Make = Callable[..., Workspace]


def rows_of(workspace: Workspace) -> list[Task]:
    with workspace.database.read() as session:
        return list(session.scalars(sa.select(Task).join(Query).order_by(Query.shown_order)))


def size_of(png: bytes) -> tuple[int, int]:
    return Pillow.open(io.BytesIO(png)).size


def test_an_image_goes_by_address_only_where_a_browser_shows_the_networks_pixels(
    make_sqlite_workspace: Make, tmp_path: Path
) -> None:
    workspace, client = make_sqlite_workspace(pool=0, labelstudio=section("kinds") | LINK), Shelf()
    for case in good_cases():
        (tmp_path / "pool" / case.name).write_bytes(case.data)
    refs = chosen(workspace, masks=False)
    report = push_round(workspace, 1, client)
    assert len(refs) == len(good_cases())
    by_address = {name for name in ALIKE if (tmp_path / "pool" / name).is_file()}
    for ref, task in zip(refs, client.sent(), strict=True):
        name, url = Path(ref.uri).name, task["data"]["image"]
        if name in by_address:
            assert url == f"http://images.example.org/{name}"
        else:
            seen = np.asarray(Pillow.open(io.BytesIO(client.files[url])))
            assert np.array_equal(seen, decode_image(Path(ref.uri).read_bytes(), max_pixels=10**6)), name
    assert report.details["images by address"] == len(by_address)
    assert report.details["images uploaded"] == len(client.files) == len(refs) - len(by_address)


def test_an_upload_that_fails_leaves_no_thread_that_goes_on_reading(
    make_sqlite_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, client = make_sqlite_workspace(pool=4, labelstudio=section("broken")), Shelf()
    chosen(workspace)
    monkeypatch.setattr(push, "UPLOAD_GROUP", 1)

    def fails(project_id: int, files: object) -> list[str]:
        raise LabelStudioUnreachable("gone")

    monkeypatch.setattr(client, "upload_files", fails)
    with pytest.raises(LabelStudioUnreachable) as held:
        push_round(workspace, 1, client)
    # The error's traceback, still held, keeps whatever was not closed alive.
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("activeseg-read")], held


def test_an_upload_is_the_file_itself_where_a_browser_shows_the_networks_pixels_and_else_a_png_of_them(
    make_sqlite_workspace: Make, tmp_path: Path
) -> None:
    workspace, client = make_sqlite_workspace(pool=0, labelstudio=section("kinds")), Shelf()
    for case in good_cases():
        (tmp_path / "pool" / case.name).write_bytes(case.data)
    refs = chosen(workspace, masks=False)
    push_round(workspace, 1, client)
    for ref, task in zip(refs, client.sent(), strict=True):
        url, file = task["data"]["image"], Path(ref.uri)
        seen = decode_image(client.files[url], max_pixels=10**6)
        assert np.array_equal(seen, decode_image(file.read_bytes(), max_pixels=10**6)), file.name
        assert (client.files[url] == file.read_bytes()) == (file.name in ALIKE), file.name
        kind = Pillow.open(io.BytesIO(client.files[url])).format
        assert Path(url).suffix == {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}[kind or ""], file.name


def test_an_uploaded_image_is_the_networks_pixels(make_sqlite_workspace: Make) -> None:
    workspace, client = make_sqlite_workspace(pool=2, labelstudio=section("upload")), Shelf()
    refs = chosen(workspace)
    report = push_round(workspace, 1, client)
    for ref, task in zip(refs, client.sent(), strict=True):
        seen = np.asarray(Pillow.open(io.BytesIO(client.files[task["data"]["image"]])))
        assert np.array_equal(seen, workspace.read_image(ref))
    assert report.details["images uploaded"] == 2
    assert "images by address" not in report.details


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
@pytest.mark.parametrize("images_by", [{}, LINK])
def test_large_images_are_shown_shrunk_with_masks_and_maps_of_that_very_size(
    make_sqlite_workspace: Make, tmp_path: Path, kind: str, images_by: dict[str, str]
) -> None:
    options = section("large") | images_by | {"longest_side": 64, "mask_kind": kind}
    workspace, client = make_sqlite_workspace(pool=0, labelstudio=options), Shelf()
    for width, height in ((160, 121), (50, 200), (64, 48)):
        save_picture(tmp_path / "pool" / f"{width}.png", width, height)
    refs = chosen(workspace)
    report = push_round(workspace, 1, client)
    expected = {"160": (64, 48), "50": (16, 64), "64": (64, 48)}
    for ref, task, row in zip(refs, client.sent(), rows_of(workspace), strict=True):
        width, height = expected[Path(ref.uri).stem]
        assert (row.shown_width, row.shown_height) == (width, height)
        result = task["predictions"][0]["result"]
        shown = result_to_mask(result, CLASSES, width=width, height=height).mask
        pixels = workspace.read_image(ref)
        assert np.array_equal(shown, shrink_mask(drawn_mask(*pixels.shape[:2]), (height, width)))
        assert size_of(client.files[task["data"]["entropy"][0]]) == (width, height)
        if url := client.files.get(task["data"]["image"]):
            assert size_of(url) == (width, height)
        else:
            assert Path(ref.uri).stem == "64", "a larger file than is shown must not be linked to"
    assert report.details["images uploaded"] == (2 if images_by else 3)


def test_the_size_a_task_was_planned_with_stays_whatever_is_set_later(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    options = section("planned") | {"longest_side": 64}
    workspace = make_sqlite_workspace(pool=0, labelstudio=options)
    for width in (100, 128):
        save_picture(tmp_path / "pool" / f"{width}.png", width, 96)
    chosen(workspace)
    client = Shelf()
    client.dead = True
    with pytest.raises(LabelStudioUnreachable):
        push_round(workspace, 1, client)
    uploaded = dict(client.files)
    client.dead = False
    push_round(make_sqlite_workspace(pool=0, labelstudio=options | {"longest_side": None}), 1, client)
    assert client.files == uploaded, "nothing is uploaded twice"
    for task, row in zip(client.sent(), rows_of(workspace), strict=True):
        shown = (row.shown_width, row.shown_height)
        assert max(shown) == 64
        assert {(r["original_width"], r["original_height"]) for r in task["predictions"][0]["result"]} == {shown}
        assert size_of(client.files[task["data"]["image"]]) == shown


def test_without_entropy_maps_none_is_uploaded(make_sqlite_workspace: Make) -> None:
    workspace, client = make_sqlite_workspace(pool=3, labelstudio=section("no maps") | LINK | {"entropy_map": "none"}), Shelf()
    chosen(workspace)
    push_round(workspace, 1, client)
    assert client.files == {}
    assert [task["data"]["entropy"] for task in client.sent()] == [[task["data"]["image"]] for task in client.sent()]
    assert [row.entropy_url for row in rows_of(workspace)] == [None] * 3


def test_a_damaged_entropy_map_stops_nothing(make_sqlite_workspace: Make) -> None:
    workspace, client = make_sqlite_workspace(pool=3, labelstudio=section("map")), Shelf()
    refs = chosen(workspace)
    with workspace.database.write() as session:
        broken = session.scalars(sa.select(Prediction).where(Prediction.image_id == refs[1].image_id)).one()
        broken.entropy_location = "pictures/00/" + "0" * 64 + ".png"
    push_round(workspace, 1, client)
    maps = [task["data"]["entropy"][0] for task in client.sent()]
    assert [one.endswith("entropy.png") for one in maps] == [True, False, True]


def test_an_image_that_is_gone_is_set_aside_and_the_others_are_sent(make_sqlite_workspace: Make) -> None:
    workspace, client = make_sqlite_workspace(pool=3, labelstudio=section("gone") | LINK), Shelf()
    refs = chosen(workspace)
    Path(refs[0].uri).unlink()
    Path(refs[2].uri).write_bytes(b"changed meanwhile")
    report = push_round(workspace, 1, client)
    assert (report.written, report.failed) == (1, 2)
    assert [task["data"]["sha256"] for task in client.sent()] == [refs[1].sha256]
    with workspace.database.read() as session:
        statuses = list(session.scalars(sa.select(Query.status).order_by(Query.shown_order)))
        reason = session.get_one(Image, refs[2].image_id).reason
        assert session.get_one(Round, 1).status == RoundStatus.PUSHED
    assert statuses == [QueryStatus.WITHDRAWN, QueryStatus.PUSHED, QueryStatus.WITHDRAWN]
    assert "changed since it was registered" in (reason or "")


@pytest.mark.parametrize("batch_mb", [10.0, 0.001])
def test_tasks_go_out_in_shown_order_however_they_are_grouped(
    make_sqlite_workspace: Make, monkeypatch: pytest.MonkeyPatch, batch_mb: float
) -> None:
    monkeypatch.setattr(push, "BLOCK", 3)
    monkeypatch.setattr(push, "UPLOAD_GROUP", 2)
    workspace, client = make_sqlite_workspace(pool=8, labelstudio=section("order") | LINK | {"batch_mb": batch_mb}), Shelf()
    refs = chosen(workspace)
    seen: list[tuple[int, int]] = []
    report = push_round(workspace, 1, client, on_progress=lambda sent, planned: seen.append((sent, planned)))
    sent = client.sent()
    assert report.written == 8
    assert [task["data"]["sha256"] for task in sent] == [ref.sha256 for ref in refs]
    assert [int(task["data"]["order"]) for task in sent] == list(range(8))
    scores = [task["predictions"][0]["score"] for task in sent]
    assert scores == sorted(scores)
    assert (seen[-1], seen[0][1]) == ((8, 8), 8)
    for ref, task in zip(refs, sent, strict=True):
        doubtful = sorted(range(4), key=lambda index: -((index + ref.image_id) % 4))[:3]
        assert task["data"]["doubt"].endswith(", ".join(CLASSES.names[index] for index in doubtful))
    assert [row.status for row in rows_of(workspace)] == [TaskStatus.PUSHED] * 8
    again = push_round(workspace, 1, client)
    assert (again.written, len(client.sent())) == (0, 8)


def test_a_push_that_was_cut_off_sends_what_is_left_of_the_order(make_sqlite_workspace: Make) -> None:
    class CutOff(Shelf):
        requests = 0

        def import_tasks(self, *arguments: Any, **options: Any) -> list[int]:
            self.requests += 1
            self.dead = self.requests == 3
            return super().import_tasks(*arguments, **options)

    workspace = make_sqlite_workspace(pool=6, labelstudio=section("cut off") | {"batch_mb": 0.0001})
    refs, client = chosen(workspace), CutOff()
    with pytest.raises(LabelStudioUnreachable):
        push_round(workspace, 1, client)
    assert len(client.sent()) == 2
    push_round(workspace, 1, client)
    assert [task["data"]["sha256"] for task in client.sent()] == [ref.sha256 for ref in refs]
    assert len(client.files) == 12, "images and maps were uploaded once"


def test_two_files_of_the_same_bytes_are_two_tasks(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace, client = make_sqlite_workspace(pool=1, labelstudio=section("twins") | LINK), Shelf()
    (file,) = (tmp_path / "pool").iterdir()
    file.with_name("twin.png").write_bytes(file.read_bytes())
    chosen(workspace)
    assert push_round(workspace, 1, client).written == 2
    assert len({task["data"]["key"] for task in client.sent()}) == 2
