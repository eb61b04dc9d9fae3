"""A path that no row can hold costs its own image and no other."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from activeseg.db.models import Image, ImageStatus
from activeseg.errors import ImageError
from activeseg.stages.pool import sync_pool
from activeseg.storage.files import MAX_URI, storable
from activeseg.storage.objects import Entry, ObjectSource
from activeseg.workspace import Workspace
from tests.factories import write_balls

# Bytes that are no UTF-8, of which each takes three characters of a URI; and letters of two bytes that no database can pack.
NOT_TEXT = [b"\xfe" * 240] * 3
_DRAW = random.Random(0)
LETTERS = ["".join(chr(_DRAW.randrange(0x4E00, 0x9E00)) for _ in range(70)).encode() for _ in range(13)]


def deep_image(folder: Path, names: list[bytes], number: int) -> None:
    """An image below folders of these names."""
    place = os.path.join(os.fsencode(folder), *names)
    os.makedirs(place)
    write_balls(folder.parent / "drawn", range(number, number + 1))
    [drawn] = (folder.parent / "drawn").iterdir()
    shutil.copy(drawn, os.path.join(place, b"deep.png"))


@pytest.mark.parametrize("names", [NOT_TEXT, LETTERS], ids=["percent-encoded", "unpackable"])
def test_a_path_too_long_for_a_row_is_set_aside_with_its_reason_and_stops_nothing(
    make_workspace: Callable[..., Workspace], names: list[bytes]
) -> None:
    workspace = make_workspace(pool=2)
    folder = Path(workspace.settings.images_uri)
    deep_image(folder, names, 7)
    report = sync_pool(workspace)
    assert (report.written, report.failed) == (3, 1)
    with workspace.database.read() as session:
        rows = {row.status: row for row in session.scalars(sa.select(Image))}
        assert session.scalar(sa.select(sa.func.count()).where(Image.status == ImageStatus.ACTIVE)) == 2
    aside = rows[ImageStatus.QUARANTINED]
    assert "its path is longer than the 2048 bytes a row holds" in (aside.reason or "")
    assert aside.uri.startswith(f"{folder}/") or aside.uri.startswith("file://")
    again = sync_pool(workspace)
    assert (again.written, again.details["missing"]) == (0, 0)
    os.rename(os.path.join(os.fsencode(folder), *names, b"deep.png"), folder / "deep.png")
    moved = sync_pool(workspace)
    assert (moved.details["new"], moved.details["missing"]) == (1, 1)


def test_a_uri_is_shortened_where_it_must_be_and_by_what_it_says() -> None:
    fits = "/" + "a" * (MAX_URI - 5) + ".png"
    assert storable(fits) == fits
    longer = [storable(f"/{'é' * 1500}{name}.png") for name in ("a", "b")]
    assert len(set(longer)) == 2
    assert all(len(uri.encode()) <= MAX_URI for uri in longer)
    assert storable("/" + "é" * 1500 + "a.png") == longer[0]


def test_an_object_whose_name_is_too_long_is_one_bad_image() -> None:
    class Bucket:
        def list(self) -> Iterator[Entry]:
            yield Entry("k" * 2100 + ".png", 3)

        def get(self, key: str, max_bytes: int | None) -> bytes:
            raise AssertionError(key)

    source = ObjectSource("s3://bucket", Bucket())
    [file] = source.files()
    with pytest.raises(ImageError, match="longer than the 2048 bytes a row holds"):
        source.read(file.uri)
