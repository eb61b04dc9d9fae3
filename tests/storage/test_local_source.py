"""A folder gives its own images and nothing else."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from activeseg.errors import ConfigError, ImageError, SourceGoneError
from activeseg.storage.sources import open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in ("b.png", "a.JPG", "sub/c d.tiff", "sub-1.webp", "notes.txt", ".hidden.png", ".git/x.png", "no_suffix"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return root


def listed(folder: Path | str) -> list[str]:
    return [file.uri for file in open_source(str(folder)).files()]


def test_images_are_listed_by_path_with_their_size(folder: Path) -> None:
    expected = sorted(str(folder / name) for name in ("a.JPG", "b.png", "sub-1.webp", "sub/c d.tiff"))
    files = open_source(str(folder)).files()
    assert [(file.uri, file.size) for file in files] == [(uri, os.path.getsize(uri)) for uri in expected]


def test_only_a_time_of_change_that_has_settled_is_a_stamp(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000
    ages = {"a.JPG": 60.0, "b.png": 2.1, "sub-1.webp": 1.9, "sub/c d.tiff": -60.0}
    for name, age in ages.items():
        os.utime(folder / name, (now - age, now - age))
    expected = [str((folder / name).stat().st_mtime_ns) if age > 2 else None for name, age in ages.items()]
    monkeypatch.setattr(time, "time", lambda: float(now))
    assert [file.stamp for file in open_source(str(folder)).files()] == expected


def test_a_disk_that_fails_is_not_a_folder_without_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if os.fspath(path).endswith("sub"):
            raise OSError(errno.EIO, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(SourceGoneError, match=r"sub cannot be listed: Input/output error"):
        listed(folder)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES])
def test_a_folder_the_disk_says_nothing_of_is_told_when_it_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stat = os.stat

    def failing(path: Any, **how: Any) -> os.stat_result:
        if os.fspath(path) == str(folder):
            raise OSError(number, os.strerror(number))
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", failing)
    with pytest.raises(SourceGoneError, match=rf"images cannot be read: {os.strerror(number)}"):
        open_source(str(folder))


def test_a_file_the_disk_says_nothing_of_is_not_one_that_vanished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "nowhere.png").symlink_to(folder / "none.png")
    assert len(listed(folder)) == 4
    source, stat = open_source(str(folder)), os.stat

    def failing(path: Any, **how: Any) -> os.stat_result:
        if os.fspath(path).endswith("b.png"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", failing)
    with pytest.raises(SourceGoneError, match=r"images cannot be listed: Stale file handle"):
        list(source.files())
    with pytest.raises(ImageError, match="Stale file handle"):
        source.read(str(folder / "b.png"))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_machine_without_handles_or_memory_blames_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    source = open_source(str(folder))

    def failing(*given: Any, **how: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(SourceGoneError, match=rf"images cannot be read: {os.strerror(number)} \(.*b.png\)"):
        source.read(str(folder / "b.png"))


@pytest.mark.parametrize("lost", ["every file", "the listing"])
def test_a_bad_block_is_its_files_and_a_disk_that_went_away_is_nobodys(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    source, bad = open_source(str(folder)), {"b.png"}

    def failing(real: Any) -> Any:
        def call(path: Any, *given: Any, **how: Any) -> Any:
            if "all" in bad or Path(os.fspath(path)).name in bad:
                raise OSError(errno.EIO, "Input/output error")
            return real(path, *given, **how)

        return call

    monkeypatch.setattr(os, "open", failing(os.open))
    with pytest.raises(ImageError, match=r"b\.png cannot be read: Input/output error"):
        source.read(str(folder / "b.png"))
    if lost == "every file":
        bad.add("all")
    else:
        monkeypatch.setattr(os, "scandir", failing(os.scandir))
        bad.add("images")
    with pytest.raises(ConfigError, match="images cannot be read: Input/output error"):
        source.read(str(folder / "b.png"))


def test_the_empty_folder_that_an_unmounted_disk_leaves_blames_no_file(folder: Path) -> None:
    source = open_source(str(folder))
    folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()
    with pytest.raises(SourceGoneError, match=r"is empty; .*that its disk is mounted"):
        source.read(str(folder / "b.png"))
    (folder / "a.JPG").touch()
    with pytest.raises(ImageError, match=r"b\.png is gone"):
        source.read(str(folder / "b.png"))


def test_what_is_listed_can_be_read(folder: Path) -> None:
    source = open_source(str(folder))
    for file in source.files():
        assert source.read(file.uri) == str(Path(file.uri).relative_to(folder)).encode()


def test_every_way_to_name_a_folder_gives_the_same_uris(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spaced = folder.rename(folder.with_name("my images"))
    monkeypatch.chdir(spaced.parent)
    assert listed("my images") == listed(spaced) == listed(f"{spaced}/") == listed(spaced.as_uri())
    assert all(Path(uri).is_absolute() for uri in listed("my images"))


def test_links_out_of_the_folder_are_neither_listed_nor_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").touch()
    before = listed(folder)
    (folder / "z.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    assert listed(folder) == before
    source = open_source(str(folder))
    outside = [folder / "z.png", folder / "linked" / "x.png", folder / ".." / "secret.png", tmp_path / "secret.png"]
    for uri in (*map(str, outside), (tmp_path / "secret.png").as_uri(), "secret.png", "s3://bucket/x.png"):
        with pytest.raises(ImageError, match="not inside"):
            source.read(uri)


def test_a_folder_of_links_only_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "x.png").symlink_to(tmp_path / "x.png")
    with pytest.raises(ConfigError, match=r"links.* holds only links out of it"):
        listed(tmp_path / "links")


def test_the_folder_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    source = open_source(str(tmp_path / "link"))
    files = list(source.files())
    assert len(files) == 4
    assert source.read(files[0].uri) == b"a.JPG"


def test_a_name_that_is_not_utf8_gets_a_uri_any_database_can_store(folder: Path) -> None:
    raw = os.fsencode(folder) + b"/caf\xe9 %41.png"
    Path(os.fsdecode(raw)).write_bytes(b"coffee")
    source = open_source(str(folder))
    (uri,) = (file.uri for file in source.files() if "caf" in file.uri)
    assert uri.encode().startswith(b"file:///")
    assert source.read(uri) == b"coffee"


def test_a_file_that_vanished_or_became_something_else_is_one_bad_image(folder: Path) -> None:
    source = open_source(str(folder))
    (folder / "b.png").unlink()
    with pytest.raises(ImageError, match=r"b\.png is gone"):
        source.read(str(folder / "b.png"))
    os.mkfifo(folder / "b.png")
    with pytest.raises(ImageError, match=r"b\.png is gone or not a file"):
        source.read(str(folder / "b.png"))
    assert str(folder / "b.png") not in listed(folder)


def test_a_folder_that_vanished_is_not_one_bad_image_after_the_other(folder: Path) -> None:
    source = open_source(str(folder))
    folder.rename(folder.with_name("unmounted"))
    with pytest.raises(SourceGoneError, match="does not exist"):
        source.read(str(folder / "b.png"))
    with pytest.raises(SourceGoneError, match="does not exist"):
        list(source.files())


def test_an_empty_folder_lists_nothing(tmp_path: Path) -> None:
    assert listed(tmp_path) == []


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("/no/such/folder", "does not exist"),
        ("file:///no/such/folder", "does not exist"),
        (__file__, "is not a folder"),
        ("https://example.com/images", r"expected a folder, file://, s3://"),
        ("s3://", "expected s3://bucket"),
        ("", "empty string"),
    ],
)
def test_a_source_that_is_none_is_a_configuration_error(uri: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        open_source(uri)
