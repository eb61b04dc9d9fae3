"""Files become images rows; what cannot be read is set aside with a reason and never stops the rest."""

from __future__ import annotations

import errno
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.db import groups, images
from activeseg.db.models import Image, ImageStatus, Split
from activeseg.errors import ConfigError, NotReadyError
from activeseg.records import ImageRef
from activeseg.stages.dataset import import_dataset
from activeseg.stages.pool import sync_pool
from activeseg.storage.sources import ImageSource, SourceFile, open_source
from activeseg.workspace import Workspace
from tests.factories import draw_ball, write_balls
from tests.imaging.corpus import bad_cases, good_cases

Make = Callable[..., Workspace]


def rows(workspace: Workspace) -> dict[str, Image]:
    """The newest row of each file, by file name."""
    with workspace.database.read() as session:
        return {Path(image.uri).name: image for image in session.scalars(sa.select(Image).order_by(Image.id))}


def test_every_image_becomes_a_row_with_size_hash_and_group(make_workspace: Make) -> None:
    workspace = make_workspace(pool=5, pool_section={"group_pattern": r"ball_00(0)"})
    assert sync_pool(workspace).written == 5
    image = rows(workspace)["ball_0003.png"]
    assert (image.width, image.height, image.split, image.status) == (64, 48, Split.POOL, ImageStatus.ACTIVE)
    assert (len(image.sha256), image.group_name) == (64, "0")
    assert sync_pool(workspace).written == 0


def test_a_group_pattern_set_later_names_the_groups_of_images_that_have_none(make_workspace: Make) -> None:
    plain, wrong, right = (
        make_workspace(pool=3, pool_section={"group_pattern": pattern}) for pattern in (None, "^(nowhere)", r"ball_0+([12])")
    )
    sync_pool(plain)
    assert "got a group" not in sync_pool(wrong).details
    report = sync_pool(right)
    assert (report.written, report.details["unchanged"], report.details["got a group"]) == (0, 3, 2)
    other = make_workspace(pool=3, pool_section={"group_pattern": "(ball)"})
    assert sync_pool(other).details["got a group"] == 1
    groups = {name: image.group_name for name, image in rows(other).items()}
    assert groups == {"ball_0000.png": "ball", "ball_0001.png": "1", "ball_0002.png": "2"}


def test_images_from_elsewhere_get_their_group_with_the_next_sync(
    make_workspace: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "_ROWS", 2)  # several pages
    write_balls(tmp_path / "val/clip_3", range(20, 23), masks=tmp_path / "masks")
    import_dataset(make_workspace(pool=1), str(tmp_path / "val"), tmp_path / "masks", Split.VAL)
    workspace = make_workspace(pool=1, pool_section={"group_pattern": "/(clip_[0-9]+)/"})
    with workspace.database.write() as session:  # an image that is away for a while belongs to its clip all the same
        images.retire(session, [1], ImageStatus.MISSING)
    assert sync_pool(workspace).details["got a group"] == 3
    found = {name: image.group_name for name, image in rows(workspace).items()}
    assert found == {"ball_0000.png": None} | dict.fromkeys(("ball_0020.png", "ball_0021.png", "ball_0022.png"), "clip_3")
    assert "got a group" not in sync_pool(workspace).details


def test_broken_files_are_quarantined_with_a_reason_and_never_fail_the_run(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=3)
    bad, good = bad_cases(), good_cases()
    names = {}
    for number, case in enumerate([*bad, *good]):
        name = f"case_{number:03}.png"
        names[name] = number < len(bad)
        (tmp_path / "pool" / name).write_bytes(case.data)
    report = sync_pool(workspace)
    assert report.failed == len(bad) >= 25
    found = rows(workspace)
    for name, is_bad in names.items():
        assert found[name].status == (ImageStatus.QUARANTINED if is_bad else ImageStatus.ACTIVE), name
        assert bool(found[name].reason) == is_bad
    assert sync_pool(workspace).written == 0


def test_images_set_aside_while_a_disk_was_away_come_back(make_workspace: Make) -> None:
    workspace = make_workspace(pool=3)
    sync_pool(workspace)
    with workspace.database.write() as session:
        images.quarantine(session, {1: "the disk was away", 2: "the disk was away"})
    assert sync_pool(workspace).details["returned"] == 2
    assert {(image.status, image.reason) for image in rows(workspace).values()} == {(ImageStatus.ACTIVE, None)}


def test_an_empty_mount_point_marks_nothing_missing(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=3)
    sync_pool(workspace)
    for file in (tmp_path / "pool").iterdir():
        file.unlink()
    with pytest.raises(NotReadyError, match="put images there"):
        sync_pool(workspace)
    assert {image.status for image in rows(workspace).values()} == {ImageStatus.ACTIVE}


@pytest.mark.parametrize(("limits", "told"), [({"max_pixels": 1000}, "max_pixels"), ({"max_bytes": 500}, "max_bytes")])
def test_images_over_a_limit_are_quarantined_and_name_the_setting(
    make_sqlite_workspace: Make, limits: dict[str, int], told: str
) -> None:
    workspace = make_sqlite_workspace(pool=2, pool_section=limits)
    assert sync_pool(workspace).failed == 2
    assert all(told in (image.reason or "") for image in rows(workspace).values())


def test_images_that_were_over_a_limit_come_in_once_it_is_raised(make_workspace: Make, tmp_path: Path) -> None:
    workspace = make_workspace(pool=2, pool_section={"max_pixels": 1000})
    age(tmp_path / "pool")
    sync_pool(workspace)
    assert sync_pool(workspace).written == 0
    limits = workspace.settings.pool.model_copy(update={"max_pixels": 10_000})
    raised = replace(workspace, settings=workspace.settings.model_copy(update={"pool": limits}))
    assert sync_pool(raised).details["returned"] == 2
    found = [(image.status, image.reason, image.width, image.height) for image in rows(raised).values()]
    assert found == [(ImageStatus.ACTIVE, None, 64, 48)] * 2


def test_a_folder_that_may_not_be_listed_marks_nothing_missing(
    make_sqlite_workspace: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_sqlite_workspace(pool=2)
    clip = tmp_path / "pool" / "site" / "clip"
    clip.mkdir(parents=True)
    (tmp_path / "pool" / "ball_0001.png").rename(clip / "kept.png")
    (clip / "gone.png").write_bytes(b"")
    sync_pool(workspace)
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if os.fspath(path) == str(clip.parent):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert sync_pool(workspace).details["missing"] == 0
    monkeypatch.undo()
    (clip / "kept.png").unlink()
    assert sync_pool(workspace).details["missing"] == 1


def test_a_rotated_photograph_is_registered_as_it_is_seen(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=1)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.fromarray(draw_ball(1)[0]).save(tmp_path / "pool" / "turned.jpg", exif=exif)
    sync_pool(workspace)
    assert (rows(workspace)["turned.jpg"].width, rows(workspace)["turned.jpg"].height) == (48, 64)


def test_changed_bytes_make_a_new_row_and_supersede_the_old_one(make_workspace: Make, tmp_path: Path) -> None:
    workspace = make_workspace(pool=2)
    sync_pool(workspace)
    Pillow.fromarray(draw_ball(99)[0]).save(tmp_path / "pool" / "ball_0000.png")
    sync_pool(workspace)
    with workspace.database.read() as session:
        of_file = sa.select(Image.status).where(Image.uri.endswith("ball_0000.png")).order_by(Image.id)
        assert session.scalars(of_file).all() == [ImageStatus.SUPERSEDED, ImageStatus.ACTIVE]


def test_a_file_that_vanishes_is_missing_and_comes_back(make_workspace: Make, tmp_path: Path) -> None:
    workspace = make_workspace(pool=3)
    sync_pool(workspace)
    file = tmp_path / "pool" / "ball_0001.png"
    data = file.read_bytes()
    file.unlink()
    assert sync_pool(workspace).details["missing"] == 1
    assert rows(workspace)["ball_0001.png"].status == ImageStatus.MISSING
    file.write_bytes(data)
    assert sync_pool(workspace).details["returned"] == 1
    assert Counter(image.status for image in rows(workspace).values()) == {ImageStatus.ACTIVE: 3}


def rewrite(file: Path, *, to: bytes | None = None, keep_time: bool = True) -> None:
    """Other bytes of the same size (or these); with the old time of change, unless told otherwise."""
    before = file.stat().st_mtime_ns
    data = file.read_bytes()
    file.write_bytes(to or data[:-1] + bytes([data[-1] ^ 1]))
    if keep_time:
        os.utime(file, ns=(before, before))


def age(folder: Path, seconds: int = 60) -> None:
    """Make every file older than it is."""
    for file in folder.iterdir():
        moment = file.stat().st_mtime_ns - seconds * 10**9
        os.utime(file, ns=(moment, moment))


class Reads:
    """A source of images that notes what is read."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.names: list[str] = []

    def files(self) -> Iterator[SourceFile]:
        return self.source.files()

    def read(self, uri: str, *, max_bytes: int | None = None) -> bytes:
        self.names.append(Path(uri).name)
        return self.source.read(uri, max_bytes=max_bytes)

    def hidden(self, uris: Iterable[str]) -> set[str]:
        return self.source.hidden(uris)


def reads_of(workspace: Workspace) -> list[str]:
    """The files that a sync reads."""
    source = Reads(open_source(workspace.settings.images_uri))
    workspace.__dict__["pool_source"] = source
    sync_pool(workspace)
    return sorted(source.names)


def test_a_file_of_the_recorded_size_and_time_is_read_by_a_full_sync_only(make_workspace: Make, tmp_path: Path) -> None:
    workspace = make_workspace(pool=3)
    age(tmp_path / "pool")
    sync_pool(workspace)
    rewrite(tmp_path / "pool" / "ball_0001.png")
    assert sync_pool(workspace).details["unchanged"] == 3
    report = sync_pool(workspace, full=True)
    assert (report.written, report.details["unchanged"]) == (1, 2)
    assert reads_of(workspace) == []


def test_a_file_may_be_written_again_within_the_moment_it_was_read_in(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=2)
    age(tmp_path / "pool", seconds=-60)  # a time that has not settled yet, however long the test takes
    sync_pool(workspace)
    rewrite(tmp_path / "pool" / "ball_0001.png")
    assert sync_pool(workspace).written == 1


def test_rows_without_a_stamp_get_one_by_being_read_once(make_workspace: Make, tmp_path: Path) -> None:
    workspace = make_workspace(pool=2)
    age(tmp_path / "pool")
    sync_pool(workspace)
    with workspace.database.write() as session:
        session.execute(sa.update(Image).values(stamp=None))  # as schema 0002 left them
    assert reads_of(workspace) == ["ball_0000.png", "ball_0001.png"]
    assert reads_of(workspace) == []


def test_what_may_have_come_right_is_read_again_though_its_time_says_it_is_the_same(
    make_sqlite_workspace: Make, tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(pool=4, pool_section={"max_bytes": 20_000})
    pool = tmp_path / "pool"
    (pool / "broken.png").write_bytes(b"no image")
    (pool / "large.png").write_bytes(bytes(30_000))
    age(pool)
    sync_pool(workspace)
    assert reads_of(workspace) == []

    found = rows(workspace)
    with workspace.database.write() as session:
        images.quarantine(session, {found["ball_0000.png"].id: "the disk was away"})
        images.retire(session, [found["ball_0001.png"].id], ImageStatus.MISSING)
    assert reads_of(workspace) == ["ball_0000.png", "ball_0001.png"]

    changed = pool / "ball_0002.png"
    before, moment = changed.read_bytes(), changed.stat().st_mtime_ns
    rewrite(changed, keep_time=False)
    sync_pool(workspace)
    rewrite(changed, to=before)
    os.utime(changed, ns=(moment, moment))
    assert reads_of(workspace) == ["ball_0002.png"]  # its time is that of a row which is superseded

    again = make_sqlite_workspace(pool=0, pool_section={"max_bytes": 40_000})
    assert reads_of(again) == ["large.png"]


def test_an_empty_pool_says_what_to_do(make_sqlite_workspace: Make) -> None:
    with pytest.raises(NotReadyError, match="put images there"):
        sync_pool(make_sqlite_workspace(pool=0))


def test_a_pool_that_is_not_mounted_quarantines_nothing(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=2)
    sync_pool(workspace)
    (tmp_path / "pool").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="mounted"):
        sync_pool(make_sqlite_workspace(pool=0, pool_section={"images": "gone"}))
    assert {image.status for image in rows(workspace).values()} == {ImageStatus.ACTIVE}


@pytest.mark.parametrize("named", ["file://{folder}", "{folder}/../pool"])
def test_a_pool_that_vanished_is_no_bad_image_however_its_folder_is_named(
    make_sqlite_workspace: Make, tmp_path: Path, named: str
) -> None:
    folder = tmp_path / "pool"
    workspace = make_sqlite_workspace(pool=1, pool_section={"images": named.format(folder=folder)})
    sync_pool(workspace)
    image = rows(workspace)["ball_0000.png"]
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="mounted"):
        workspace.read_bytes(ImageRef(image.id, image.uri, image.sha256))


def test_a_bad_group_pattern_is_a_setting_error(make_sqlite_workspace: Make) -> None:
    with pytest.raises(ConfigError, match="group_pattern"):
        sync_pool(make_sqlite_workspace(pool=1, pool_section={"group_pattern": "("}))


def test_cmyk_and_sixteen_bit_images_are_read(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=1)
    buffer = io.BytesIO()
    Pillow.fromarray(draw_ball(1)[0]).convert("CMYK").save(buffer, "JPEG")
    (tmp_path / "pool" / "cmyk.jpg").write_bytes(buffer.getvalue())
    Pillow.fromarray((np.arange(48 * 64, dtype=np.uint16) * 21).reshape(48, 64)).save(tmp_path / "pool" / "deep.png")
    sync_pool(workspace)
    assert {rows(workspace)[name].status for name in ("cmyk.jpg", "deep.png")} == {ImageStatus.ACTIVE}
