"""Object stores look like folders, and a store that is down is never mistaken for bad images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from activeseg.errors import ConfigError, ImageError, SourceGoneError
from activeseg.storage.objects import Entry, ObjectSource, ObstoreBucket
from activeseg.storage.sources import SourceFile, open_source


class MemoryBucket:
    """Objects in a dict; `down` makes every call fail as a network would."""

    def __init__(self, objects: dict[str, bytes], *, down: bool = False) -> None:
        self.objects = objects
        self.down = down

    def list(self) -> Iterator[Entry]:
        self._check()
        yield from (Entry(key, len(data), f"tag of {key}") for key, data in self.objects.items())

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        self._check()
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]

    def _check(self) -> None:
        if self.down:
            raise OSError("connection refused")


OBJECTS = {"sub/b.png": b"bb", "a.JPG": b"a", "notes.txt": b"-", ".hidden/x.png": b"-", "sub/": b""}


def test_images_are_listed_by_key_and_read_by_uri() -> None:
    source = ObjectSource("s3://bucket/prefix", MemoryBucket(OBJECTS))
    files = list(source.files())
    assert files == [
        SourceFile("s3://bucket/prefix/a.JPG", 1, "tag of a.JPG"),
        SourceFile("s3://bucket/prefix/sub/b.png", 2, "tag of sub/b.png"),
    ]
    assert [source.read(file.uri) for file in files] == [b"a", b"bb"]


@pytest.mark.parametrize("tag", [None, "", "x" * 101])
def test_a_store_without_usable_tags_gives_no_stamp(tag: str | None) -> None:
    bucket = MemoryBucket({})
    bucket.list = lambda: iter([Entry("a.png", 1, tag)])  # type: ignore[method-assign]
    assert list(ObjectSource("s3://bucket", bucket).files()) == [SourceFile("s3://bucket/a.png", 1, None)]


def test_a_missing_object_is_a_bad_image() -> None:
    with pytest.raises(ImageError, match=r"gone\.png is gone"):
        ObjectSource("s3://bucket", MemoryBucket(OBJECTS)).read("s3://bucket/gone.png")


@pytest.mark.parametrize("uri", ["s3://other/a.JPG", "s3://bucket-2/a.JPG", "/etc/passwd", "s3://bucket"])
def test_only_objects_below_the_url_are_read(uri: str) -> None:
    with pytest.raises(ImageError, match="not inside s3://bucket"):
        ObjectSource("s3://bucket", MemoryBucket(OBJECTS)).read(uri)


def test_a_store_that_is_down_is_no_reason_to_quarantine_its_images() -> None:
    source = ObjectSource("s3://bucket", MemoryBucket(OBJECTS, down=True))
    with pytest.raises(SourceGoneError, match=r"cannot read s3://bucket: connection refused.*credentials"):
        source.read("s3://bucket/a.JPG")
    with pytest.raises(SourceGoneError, match="connection refused"):
        list(source.files())


@pytest.mark.parametrize("uri", ["s3://bucket/prefix", "gs://bucket", "az://container"])
def test_a_missing_extra_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"pip install 'activeseg\[s3\]'"):
        open_source(uri)


def test_the_real_adapter_lists_and_reads(tmp_path: Path) -> None:
    pytest.importorskip("obstore", reason="needs the extra activeseg[s3]")
    for name in ("b c%20.png", "a.JPG"):
        (tmp_path / name).write_bytes(name.encode())
    source = ObjectSource("s3://bucket", ObstoreBucket(tmp_path.as_uri()))
    files = list(source.files())
    assert [(file.uri, file.size) for file in files] == [("s3://bucket/a.JPG", 5), ("s3://bucket/b c%20.png", 10)]
    before = {file.stamp for file in files}
    assert None not in before
    (tmp_path / "a.JPG").write_bytes(b"other")
    assert next(source.files()).stamp not in before
    assert source.read("s3://bucket/b c%20.png") == b"b c%20.png"
    with pytest.raises(ImageError, match="gone"):
        source.read("s3://bucket/gone.png")


def test_the_real_adapter_tells_a_store_that_is_down() -> None:
    pytest.importorskip("obstore", reason="needs the extra activeseg[s3]")
    options = {
        "endpoint": "http://127.0.0.1:9",
        "client_options": {"allow_http": True},
        "retry_config": {"max_retries": 0},
        "access_key_id": "x",
        "secret_access_key": "y",
        "region": "us-east-1",
    }
    source = ObjectSource("s3://bucket", ObstoreBucket("s3://bucket", **options))
    with pytest.raises(SourceGoneError, match="cannot read s3://bucket"):
        source.read("s3://bucket/a.JPG")
    with pytest.raises(SourceGoneError, match="cannot read s3://bucket"):
        list(source.files())
