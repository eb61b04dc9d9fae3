"""Replacing a whole folder at once: written beside, then put in its place."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from activeseg.errors import ConfigError

UNFINISHED = "UNFINISHED"
"""A file in a folder that is still being written; its writer holds a lock on it."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def replaced(folder: Path, *, may_replace: Callable[[Path], bool], check: Callable[[Path], None]) -> Iterator[Path]:
    """An empty folder `<folder>.partial` to write into; at the end it takes the place of `folder`.

    Whoever is killed on the way leaves what was there whole, and an unfinished folder that the next call removes.
    may_replace: whether a folder is one that this writer made. check: raises ConfigError where the folder in place must
    stay. Raises ConfigError where a folder, also the one beside, holds something else, and while another process writes.
    """
    folder = Path(os.path.realpath(folder))
    partial, former = (folder.with_name(folder.name + ending) for ending in (".partial", ".partial-former"))
    _remove_leftover(partial, may_replace)
    if former.is_dir() and may_replace(former):  # killed between or after the two renames of `_put_in_place`
        former.rename(partial if folder.exists() else folder)
        _remove_leftover(partial, may_replace)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        check(folder)
    partial.mkdir(parents=True)
    with (partial / UNFINISHED).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield partial
            (partial / UNFINISHED).unlink()
            _put_in_place(partial, folder, former)
        finally:
            # The unfinished one or, after the exchange, what was in its place before.
            if partial.exists():
                _remove(partial)


def _remove(folder: Path) -> None:
    """Remove a folder; killed on the way, it leaves one that is known as unfinished."""
    marker = folder / UNFINISHED
    marker.touch()
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != marker:
            path.unlink()
    marker.unlink()
    folder.rmdir()


def _remove_leftover(partial: Path, may_replace: Callable[[Path], bool]) -> None:
    if not partial.exists():
        return
    marker = partial / UNFINISHED
    if not partial.is_dir() or not (marker.is_file() or may_replace(partial) or not any(partial.iterdir())):
        raise ConfigError(f"{partial} is in the way and was not left by an export: move it away")
    with suppress(FileNotFoundError), marker.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another export is writing {partial}: wait for it, or name another folder") from error
    _remove(partial)


def _put_in_place(partial: Path, folder: Path, former: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        partial.replace(folder)  # an empty folder is replaced
    elif not _exchange(partial, folder):
        folder.rename(former)
        partial.rename(folder)
        former.rename(partial)  # removed like an unfinished one


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that there is no moment without `other`. False where the system cannot.

    Python has no call for it: Linux's renameat2 with RENAME_EXCHANGE, which some file systems do not know.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)
