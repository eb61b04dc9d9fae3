"""Artifacts are found again unaltered or not at all, whoever writes them and whatever dies meanwhile."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from activeseg.errors import CheckpointError, ConfigError, DataError, ImageError, MaskError, NoRoomError
from activeseg.storage import removal
from activeseg.storage.artifacts import ArtifactStore, Kind


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def stored_files(store: ArtifactStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("kind", "folder"),
    [("mask", "masks"), ("checkpoint", "checkpoints"), ("weights", "weights"), ("picture", "pictures")],
)
def test_bytes_come_back_from_their_content_address(store: ArtifactStore, kind: Kind, folder: str) -> None:
    data = os.urandom(1000)
    digest = hashlib.sha256(data).hexdigest()
    artifact = store.put(data, kind, ".bin")
    assert artifact.location == f"{folder}/{digest[:2]}/{digest}.bin"
    assert (artifact.sha256, artifact.size) == (digest, 1000)
    assert store.read(artifact.location, sha256=digest) == data
    assert store.path(artifact.location).read_bytes() == data


def test_the_same_bytes_are_stored_once(store: ArtifactStore) -> None:
    first = store.put(b"mask", "mask", ".png")
    written = store.path(first.location).stat()
    assert store.put(b"mask", "mask", ".png") == first
    again = store.path(first.location).stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert len(stored_files(store)) == 1


def test_empty_bytes_and_no_suffix_are_fine(store: ArtifactStore) -> None:
    assert store.read(store.put(b"", "picture", "").location) == b""


def test_a_damaged_copy_is_replaced_by_the_next_put(store: ArtifactStore) -> None:
    artifact = store.put(b"mask", "mask", ".png")
    store.path(artifact.location).write_bytes(b"mas")
    store.put(b"mask", "mask", ".png")
    assert store.read(artifact.location) == b"mask"


@pytest.mark.parametrize(
    ("kind", "error", "remedy"),
    [
        ("mask", MaskError, "backup"),
        ("checkpoint", CheckpointError, "backup"),
        ("weights", CheckpointError, "activeseg weights import"),
        ("picture", ImageError, "backup"),
    ],
)
def test_altered_and_missing_files_are_named_with_a_remedy(
    store: ArtifactStore, kind: Kind, error: type[Exception], remedy: str
) -> None:
    artifact = store.put(b"weights", kind, ".bin")
    store.path(artifact.location).write_bytes(b"altered")
    with pytest.raises(error, match=f"{artifact.location}.*{artifact.sha256}.*{remedy}"):
        store.read(artifact.location)
    store.path(artifact.location).unlink()
    with pytest.raises(error, match=f"{artifact.location} cannot be read.*No such file.*{remedy}"):
        store.read(artifact.location)


def test_a_file_that_is_not_the_one_meant_is_refused(store: ArtifactStore) -> None:
    artifact = store.put(b"one", "checkpoint", ".safetensors")
    other = hashlib.sha256(b"two").hexdigest()
    with pytest.raises(CheckpointError, match=other):
        store.read(artifact.location, sha256=other)


HASH = "ab" * 32


@pytest.mark.parametrize(
    "location",
    [
        "",
        "masks",
        "/etc/passwd",
        "../outside.png",
        f"masks/ab/../../{HASH}.png",
        f"masks/cd/{HASH}.png",
        f"masks/ab/{HASH}.png/../../../x",
        f"masks/ab/{HASH}.png\n",
        f"masks/ab/{HASH}.png\0",
        f"masks\\ab\\{HASH}.png",
        f"masks/ab/{HASH}/",
        f"./masks/ab/{HASH}.png",
        f"incoming/ab/{HASH}.png",
        f"masks/AB/{'AB' * 32}.png",
    ],
)
def test_no_location_leads_out_of_the_store(store: ArtifactStore, location: str) -> None:
    for use in (store.path, store.read):
        with pytest.raises(DataError, match="expected an artifact location"):
            use(location)


def test_a_link_out_of_the_store_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = store.put(b"mask", "mask", ".png")
    outside = tmp_path / "outside"
    store.path(artifact.location).rename(outside)
    (store.root / artifact.location).symlink_to(outside)
    with pytest.raises(DataError, match="link out of"):
        store.read(artifact.location)


@pytest.mark.parametrize(("kind", "suffix"), [("masks", ".png"), ("mask", "png"), ("mask", "./x"), ("mask", ".PNG")])
def test_unknown_kinds_and_suffixes_are_refused(store: ArtifactStore, kind: Kind, suffix: str) -> None:
    with pytest.raises(ConfigError, match="expected one of mask, checkpoint"):
        store.put(b"", kind, suffix)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"artifacts folder {tmp_path / 'file'}"):
        ArtifactStore(tmp_path / "file").put(b"x", "mask", ".png")


WRITER = """
import sys
from pathlib import Path
from activeseg.storage.artifacts import ArtifactStore
store = ArtifactStore(Path(sys.argv[1]))
for number in range(40):
    data = bytes([number]) * 100_000
    assert store.read(store.put(data, "mask", ".png").location) == data
"""


def test_processes_may_put_the_same_bytes_at_once(store: ArtifactStore) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(store.root)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(stored_files(store)) == 40


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from activeseg.storage import artifacts
die = lambda *args, **kw: os.kill(os.getpid(), signal.SIGKILL)
def opening(self, mode="r", **kw):
    if mode == "xb":
        die()
    return open(self, mode, **kw)
def half(self, mode="r", **kw):
    stream = open(self, mode, **kw)
    if mode != "xb":
        return stream
    stream.write(b"x" * 500)
    stream.flush()
    die()
place, name, does = {
    "folder": (artifacts, "_make_folder", die), "open": (Path, "open", opening), "write": (Path, "open", half),
    "flush": (os, "fsync", die), "rename": (Path, "replace", die), "flush folder": (artifacts, "_flush_folder", die),
}[sys.argv[2]]
store = artifacts.ArtifactStore(Path(sys.argv[1]))
store.put(b"another one", "checkpoint", ".safetensors")
target = store.path("checkpoints/{0}/{1}.safetensors".format(sys.argv[3][:2], sys.argv[3]))
target.parent.mkdir(parents=True, exist_ok=True)
setattr(place, name, does)
store.put(b"x" * 100_000, "checkpoint", ".safetensors")
"""


@pytest.mark.parametrize("step", ["folder", "open", "write", "flush", "rename", "flush folder"])
def test_a_killed_writer_leaves_no_half_file_and_the_next_one_succeeds(store: ArtifactStore, step: str) -> None:
    data = b"x" * 100_000
    digest = hashlib.sha256(data).hexdigest()
    died = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(store.root), step, digest], check=False)
    assert died.returncode == -signal.SIGKILL
    location = f"checkpoints/{digest[:2]}/{digest}.safetensors"
    # Under its name there is all of it or nothing; what was begun lies in incoming/.
    if step == "flush folder":
        assert store.read(location) == data
    else:
        assert not store.path(location).exists()
        with pytest.raises(CheckpointError):
            store.read(location)
    left = list((store.root / "incoming").iterdir())
    assert len(left) == (step in ("write", "flush", "rename"))
    assert store.put(data, "checkpoint", ".safetensors").location == location
    assert store.read(location) == data
    swept = list(removal.leftovers(store, older_than=time.time() + 1))
    assert [store.root / file.location for file in swept] == left
    assert list(removal.leftovers(store, older_than=time.time() - 60)) == []


def test_a_location_with_a_removal_note_says_when_and_can_be_stored_again(store: ArtifactStore) -> None:
    location = store.put(b"weights", "weights", ".safetensors").location
    before = store.path(location).stat().st_mtime
    assert not removal.take_away(store, location, older_than=before, note="2026-11-01")
    assert removal.take_away(store, location, older_than=before + 1, note="2026-11-01")
    assert store.removed(location) == "2026-11-01"
    with pytest.raises(CheckpointError, match="its file was removed by gc on 2026-11-01"):
        store.read(location)
    with pytest.raises(ConfigError, match="0 stored weights files"):
        store.find("weights", location[11:20])
    store.put(b"weights", "weights", ".safetensors")
    assert store.removed(location) is None
    assert store.find("weights", location[11:20]) == location


def test_only_stored_files_are_listed(store: ArtifactStore) -> None:
    location = store.put(b"mask", "mask", ".png").location
    for name in ("masks/x", "masks/00/note.txt", f"masks/00/{'1' * 64}.png"):
        (store.root / name).parent.mkdir(exist_ok=True)
        (store.root / name).write_bytes(b"")
    assert [(file.location, file.size) for file in store.files("mask")] == [(location, 4)]
    assert list(store.files("picture")) == []


def test_a_failed_write_leaves_nothing_behind(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(28, "No space left on device")

    store.put(b"first", "mask", ".png")
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(NoRoomError, match="No space left on device"):
        store.put(b"second", "mask", ".png")
    assert len(stored_files(store)) == 1
