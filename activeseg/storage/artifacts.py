"""Masks, checkpoints, imported weights and pictures as content-addressed files under one folder.

    masks/3f/3f9a...c1.png        the location: kind, first two digits, sha256, suffix

A file appears under its name complete and flushed to disk, or not at all. Its name says what it holds, so every read is
checked. What a killed process left behind lies in `incoming/` and may be deleted while nothing is being written.

    checkpoints/3f/3f9a...c1.safetensors.removed     when housekeeping removed the file, whose row is kept
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from activeseg.errors import ActivesegError, CheckpointError, ConfigError, DataError, ImageError, MaskError
from activeseg.storage.room import is_full, no_room

Kind = Literal["mask", "checkpoint", "weights", "picture"]

FOLDERS: dict[str, Kind] = {"masks": "mask", "checkpoints": "checkpoint", "weights": "weights", "pictures": "picture"}
INCOMING = "incoming"
REMOVED = ".removed"
"""Ending of the note beside where a file was that housekeeping removed: when, as an ISO date."""
# Bytes that are stored again count as new to housekeeping: their row is about to be written. Not at every call, which would
# cost a write each.
_FRESH_SECONDS = 3600
_LOCATION = re.compile(rf"({'|'.join(FOLDERS)})/([0-9a-f]{{2}})/(\2[0-9a-f]{{62}})(?:\.[a-z0-9]{{1,16}})?", re.ASCII)
_SUFFIX = re.compile(r"(?:\.[a-z0-9]{1,16})?", re.ASCII)
_REMEDY: dict[Kind, tuple[type[ActivesegError], str]] = {
    "mask": (MaskError, "restore the artifacts folder from a backup, or fetch the annotation again"),
    "checkpoint": (CheckpointError, "restore the artifacts folder from a backup, or go back to another checkpoint"),
    "weights": (CheckpointError, "import the weights again: activeseg weights import FILE"),
    "picture": (ImageError, "restore the artifacts folder from a backup, or make the picture again"),
}


@dataclass(frozen=True, slots=True)
class Artifact:
    """A stored file: where it is (relative to the store, with '/'), the sha256 of its bytes, their number."""

    location: str
    sha256: str
    size: int


class StoredFile(NamedTuple):
    """A file as it lies there: its location, its bytes and when it was last written, in seconds since 1970."""

    location: str
    size: int
    changed: float


@dataclass(frozen=True, slots=True)
class ArtifactStore:
    """Files under `root`, which is made with the first `put`. Any number of processes may use one folder."""

    root: Path

    def put(self, data: bytes, kind: Kind, suffix: str) -> Artifact:
        """Store bytes and return their location. Equal bytes are stored once; a damaged copy is replaced.

        suffix: '' or a dot and up to 16 lower-case letters or digits, for example '.png'.
        Raises ConfigError on an unknown kind or suffix and where the folder cannot be written, NoRoomError on a full disk.
        """
        if kind not in get_args(Kind) or not _SUFFIX.fullmatch(suffix):
            kinds = ", ".join(get_args(Kind))
            raise ConfigError(f"expected one of {kinds} and a suffix like '.png'; got {kind!r} and {suffix!r}")
        digest = hashlib.sha256(data).hexdigest()
        folder = next(name for name, of in FOLDERS.items() if of == kind)
        artifact = Artifact(f"{folder}/{digest[:2]}/{digest}{suffix}", digest, len(data))
        try:
            target = self.path(artifact.location)
            if not _holds(target, digest):
                self._write(target, data)
        except OSError as error:
            if is_full(error):
                raise no_room(error, self.root / artifact.location) from error
            raise ConfigError(f"cannot write to the artifacts folder {self.root}: {error.strerror or error}") from error
        return artifact

    def read(self, location: str, *, sha256: str | None = None) -> bytes:
        """The bytes at a location, checked against the sha256 in its name and, where given, against `sha256`.

        Raises CheckpointError (checkpoints, weights), MaskError or ImageError (pictures) where the file is missing,
        altered or not the one meant; DataError where the location is not one this store gives out.
        """
        path = self.path(location)
        kind = FOLDERS[location.split("/", maxsplit=1)[0]]
        try:
            data = path.read_bytes()
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self.require(location)
            raise _failure(kind, location, f"cannot be read from {self.root} ({error.strerror})") from error
        found = hashlib.sha256(data).hexdigest()
        for expected in (path.name[: len(found)], sha256):
            if expected not in (None, found):
                raise _failure(kind, location, f"holds other bytes: expected sha256 {expected}, found {found}")
        return data

    def require(self, location: str) -> None:
        """Raise as `read` does where the file is not there, and say where housekeeping removed it. No byte is read."""
        if os.path.exists(self.path(location)):
            return
        kind, when = FOLDERS[location.split("/", maxsplit=1)[0]], self.removed(location)
        if when is None:
            raise _failure(kind, location, f"cannot be read from {self.root} (No such file or directory)")
        raise _failure(kind, location, f"is gone: its file was removed by gc on {when}")

    def removed(self, location: str) -> str | None:
        """The day housekeeping removed this file, as an ISO date; None where it did not, or the file is there again."""
        path = self.path(location)
        try:
            return None if os.path.exists(path) else path.with_name(path.name + REMOVED).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None

    def files(self, kind: Kind) -> Iterator[StoredFile]:
        """All stored files of a kind; what else lies in the folder is left out. A file may be gone by the time it is told."""
        folder = next(name for name, of in FOLDERS.items() if of == kind)
        for entry in _entries(self.root / folder):
            for item in _entries(Path(entry.path)) if entry.is_dir(follow_symlinks=False) else ():
                location = f"{folder}/{entry.name}/{item.name}"
                if _LOCATION.fullmatch(location) and item.is_file(follow_symlinks=False):
                    try:
                        seen = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield StoredFile(location, seen.st_size, seen.st_mtime)

    def find(self, kind: Kind, sha256: str) -> str:
        """The location of the one stored file of this kind whose sha256 starts so. Raises ConfigError for none or several."""
        folder = next(name for name, of in FOLDERS.items() if of == kind)
        if not re.fullmatch(r"[0-9a-f]{4,64}", sha256):
            raise ConfigError(f"{kind}: expected 4 to 64 hexadecimal digits of a sha256; got {sha256!r}")
        there = (self.root / folder / sha256[:2]).glob(f"{sha256}*")
        found = sorted(path for path in there if path.suffix != REMOVED)
        if len(found) != 1:
            remedy = "give more digits" if found else "import it first: activeseg weights import FILE"
            raise ConfigError(f"{len(found)} stored {kind} files start with {sha256!r}; {remedy}")
        return found[0].relative_to(self.root).as_posix()

    def path(self, location: str) -> Path:
        """Absolute path of a location, whether or not there is a file. Raises DataError where it leaves the root."""
        if not _LOCATION.fullmatch(location):
            raise DataError(f"expected an artifact location like 'masks/3f/3f9a....png'; got {location[:120]!r}")
        path = self.root.absolute() / location
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise DataError(f"artifact {location} is a link out of {self.root}: put the file itself there")
        return path

    def _write(self, target: Path, data: bytes) -> None:
        incoming = self.root / INCOMING
        incoming.mkdir(parents=True, exist_ok=True)
        _make_folder(target.parent)
        temporary = incoming / f"{target.name}.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(target.parent)


def _holds(path: Path, digest: str) -> bool:
    """Whether the file is there and whole. It counts as new then: housekeeping takes no file that was stored lately."""
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return False
        # After reading: a file that is taken away meanwhile is missing here, and written anew.
        if path.stat().st_mtime < time.time() - _FRESH_SECONDS:
            with suppress(PermissionError):  # another user's; then it is as old as it is
                os.utime(path)
        return path.exists()
    except FileNotFoundError:
        return False


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from found
    except (FileNotFoundError, NotADirectoryError):
        return


def _failure(kind: Kind, location: str, problem: str) -> ActivesegError:
    error, remedy = _REMEDY[kind]
    return error(f"{kind} {location} {problem}; {remedy}")


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents so that they survive a power cut together with what is put into them."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    """fsync a folder: a rename is durable only after that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
