"""Taking stored files away so that nobody's work is lost, whoever stores the same bytes meanwhile and whatever dies.

A file is moved to `incoming/removing/` first and looked at there: whoever stored its bytes again a moment ago has made it new
(`ArtifactStore.put`), and then it goes back. What a kill leaves in `removing/` goes back with the next run, which decides anew.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from activeseg.storage.artifacts import FOLDERS, INCOMING, REMOVED, ArtifactStore, StoredFile

REMOVING = "removing"
DAY = 24 * 3600.0
# 3f9a...c1.png.1234.0a1b2c3d: what `ArtifactStore.put` and a backup write into.
_UNFINISHED = re.compile(r"[0-9a-f]{64}(\.[a-z0-9]{1,16})?\.\d+\.[0-9a-f]{8}", re.ASCII)


def take_away(store: ArtifactStore, location: str, *, older_than: float, note: str | None = None) -> bool:
    """Remove a stored file that was not written or stored again since `older_than` (seconds since 1970).

    note: what to leave beside its place, see `ArtifactStore.removed`; written before the file goes. Returns whether the file
    is gone by this call.
    """
    path = store.path(location)
    aside = store.root / INCOMING / REMOVING / location
    try:
        if path.stat().st_mtime >= older_than:
            return False
        aside.parent.mkdir(parents=True, exist_ok=True)
        if note is not None:
            _write_note(path.with_name(path.name + REMOVED), note)
        path.rename(aside)
    except FileNotFoundError:
        return False
    if aside.stat().st_mtime >= older_than:
        _put_back(path, aside)
        return False
    aside.unlink()
    return True


def recover(store: ArtifactStore) -> None:
    """Put back what a killed `take_away` had in its hands. Only where no other one is at work."""
    removing = store.root / INCOMING / REMOVING
    for folder in FOLDERS:
        for aside in sorted((removing / folder).glob("??/*")):
            path = store.path(aside.relative_to(removing).as_posix())
            path.parent.mkdir(parents=True, exist_ok=True)
            _put_back(path, aside)


def leftovers(store: ArtifactStore, *, older_than: float) -> Iterator[StoredFile]:
    """What killed writers left in `incoming/`; locations here are paths below the store's folder."""
    return _old_files(store.root, store.root / INCOMING, older_than, _UNFINISHED)


def idle_notes(store: ArtifactStore) -> Iterator[Path]:
    """Notes of files that are there again."""
    for note in store.root.glob(f"*/??/*{REMOVED}"):
        if note.with_name(note.name.removesuffix(REMOVED)).exists():
            yield note


def old_files(folder: Path, *, older_than: float, name: str) -> Iterator[StoredFile]:
    """Files directly in a folder whose names match a pattern and that nobody wrote or read lately, where the disk tells."""
    return _old_files(folder, folder, older_than, re.compile(name, re.ASCII))


def _old_files(root: Path, folder: Path, older_than: float, name: re.Pattern[str]) -> Iterator[StoredFile]:
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in found:
        with suppress(FileNotFoundError):
            seen = entry.stat(follow_symlinks=False)
            if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False) and seen.st_mtime < older_than:
                yield StoredFile(os.path.relpath(entry.path, root), seen.st_size, seen.st_mtime)


def unused_files(folder: Path, *, older_than: float) -> Iterator[StoredFile]:
    """Files anywhere below a folder that were neither written nor, as far as the disk notes it, read since then."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                seen = path.lstat()
                if max(seen.st_mtime, seen.st_atime) < older_than:
                    yield StoredFile(path.relative_to(folder).as_posix(), seen.st_size, seen.st_mtime)


def day_of(moment: float) -> str:
    """The day of a moment, as an ISO date in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def _write_note(note: Path, text: str) -> None:
    unfinished = note.with_name(f"{note.name}.{os.getpid()}")
    try:
        unfinished.write_text(text + "\n", encoding="ascii")
        unfinished.replace(note)
    finally:
        unfinished.unlink(missing_ok=True)


def _put_back(path: Path, aside: Path) -> None:
    try:
        os.link(aside, path)  # not a rename: a file that was stored under the name meanwhile stays
    except FileExistsError:
        pass
    except OSError:  # a disk without links
        if not path.exists():
            aside.rename(path)
    aside.unlink(missing_ok=True)
