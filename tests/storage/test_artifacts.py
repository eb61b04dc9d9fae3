"""Artifacts are found again unaltered or not at all, whoever writes them and whatever dies meanwhile."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from activeseg.errors import CheckpointError, ConfigError, DataError, ImageError, MaskError
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
from activeseg.storage.artifacts import ArtifactStore
die = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
setattr(*{"flush": (os, "fsync"), "rename": (Path, "replace")}[sys.argv[2]], die)
ArtifactStore(Path(sys.argv[1])).put(b"x" * 100_000, "checkpoint", ".safetensors")
"""


@pytest.mark.parametrize("step", ["flush", "rename"])
def test_a_killed_writer_leaves_no_half_file_and_the_next_one_succeeds(store: ArtifactStore, step: str) -> None:
    data = b"x" * 100_000
    died = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(store.root), step], check=False)
    assert died.returncode == -signal.SIGKILL
    digest = hashlib.sha256(data).hexdigest()
    location = f"checkpoints/{digest[:2]}/{digest}.safetensors"
    assert not store.path(location).exists()
    with pytest.raises(CheckpointError):
        store.read(location)
    assert store.put(data, "checkpoint", ".safetensors").location == location
    assert store.read(location) == data


def test_a_failed_write_leaves_nothing_behind(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(28, "No space left on device")

    store.put(b"first", "mask", ".png")
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(ConfigError, match="No space left on device"):
        store.put(b"second", "mask", ".png")
    assert len(stored_files(store)) == 1
