"""A pool that somebody filled with malice: the sync ends, and each file is an image or has a reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import bench_hostile
import pytest
import sqlalchemy as sa

from activeseg.db.models import Image, ImageStatus
from activeseg.errors import ImageError
from activeseg.imaging import sandbox
from activeseg.records import ImageRef
from activeseg.stages.pool import sync_pool
from activeseg.storage.files import read_file
from activeseg.workspace import Workspace
from tests.imaging.corpus import encode, scene

Make = Callable[..., Workspace]

KILLER = (
    "import sys; sys.path.append(sys.argv[2]); import os; from activeseg.imaging import decoder\n"
    "true = decoder.decode_sized\n"
    "def hostile(data, *args, **options):\n"
    "    if b'KILL' in data: os.kill(os.getpid(), {signal})\n"
    "    return true(data, *args, **options)\n"
    "decoder.decode_sized = hostile\n"
    "decoder.main(int(sys.argv[1]))"
)


def rows(workspace: Workspace) -> dict[str, tuple[ImageStatus, str | None]]:
    with workspace.database.read() as session:
        found = session.execute(sa.select(Image.uri, Image.status, Image.reason))
        return {Path(uri).name: (status, reason) for uri, status, reason in found}


def hostile_decoders(monkeypatch: pytest.MonkeyPatch, signal: int) -> None:
    sandbox.close()
    monkeypatch.setattr(sandbox, "_START", KILLER.format(signal=signal))


def test_a_file_that_kills_its_decoder_costs_one_row_and_the_sync_goes_on(
    make_sqlite_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_sqlite_workspace(pool=3)
    bad = workspace.settings.root / "pool" / "ball_0001b.png"
    bad.write_bytes(encode(scene(), "PNG") + b"KILL")
    hostile_decoders(monkeypatch, 11)
    report = sync_pool(workspace)
    assert (report.failed, report.details["new"]) == (1, 3)
    assert rows(workspace)[bad.name] == (ImageStatus.QUARANTINED, "its decoder died over it (SIGSEGV)")
    sandbox.close()


def test_what_was_set_aside_for_want_of_memory_is_looked_at_again(
    make_sqlite_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_sqlite_workspace(pool=2)
    file = workspace.settings.root / "pool" / "large.png"
    file.write_bytes(encode(scene(), "PNG") + b"KILL")
    os.utime(file, (1, 1))
    hostile_decoders(monkeypatch, 9)
    sync_pool(workspace)
    status, reason = rows(workspace)[file.name]
    assert status == ImageStatus.QUARANTINED
    assert sandbox.LOOK_AGAIN in (reason or "")
    monkeypatch.undo()
    sandbox.close()
    sync_pool(workspace)
    assert rows(workspace)[file.name] == (ImageStatus.ACTIVE, None)


@pytest.mark.parametrize("isolation", ["first", "always"])
def test_scoring_sees_the_same_pixels_on_either_side_of_the_wall(make_sqlite_workspace: Make, isolation: str) -> None:
    workspace = make_sqlite_workspace(pool=1, pool_section={"isolation": isolation}, model={"short_side": 32})
    sync_pool(workspace)
    sandbox.close()
    with workspace.database.read() as session:
        [row] = session.scalars(sa.select(Image))
        ref = ImageRef(row.id, row.uri, row.sha256)
    found = workspace.read_input(ref, workspace.input_policy)
    assert found.pixels.shape == (32, 43, 3)
    assert bool(sandbox._decoders._waiting) == (isolation == "always")


def test_a_file_that_grew_is_not_read_to_its_end(tmp_path: Path) -> None:
    large, pipe = tmp_path / "large.png", tmp_path / "pipe.png"
    with large.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ImageError, match=r"1099511627776 bytes.*raise \[pool\] max_bytes"):
        read_file(large, 1000)
    os.mkfifo(pipe)
    opened = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
    os.close(opened)
    for endless in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match=r"regular file|directory"):
            read_file(endless, 1000)
    again = os.open(os.devnull, os.O_RDONLY)
    os.close(again)
    assert again == opened, "a file that was refused is still open"


@pytest.mark.slow
def test_hostile_files_of_every_kind_have_a_reason_each(tmp_path: Path) -> None:
    """`scripts/bench_hostile.py` with 2,000 of them is the long form."""
    figures = bench_hostile.work(tmp_path, 160, seed=7)
    assert figures["told"] == []
    assert not figures["code_ran"]
    assert figures["files"] == 160
    assert sum(sum(found.values()) for name, found in figures["outcomes"].items() if name != "descriptions") == 160
    assert figures["outcomes"]["images"]["refused"] > 30


def test_the_figures_would_tell_of_a_crash_and_of_silence() -> None:
    tally = bench_hostile.Tally()
    tally.attempt("weights", "a", lambda: 1 / 0)
    tally.refused("images", " ", "b")
    assert [len(tally.crashes), len(tally.silent)] == [1, 1]
    assert tally.outcomes == {"weights": {"crash": 1}, "images": {"without a reason": 1}}
