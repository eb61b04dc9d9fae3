"""A whole new folder at once: written beside, then put in its place by one rename.

What is killed leaves no half folder under the name. Nothing is flushed to the disk before the rename, so that a power cut may
cost what was written shortly before.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from activeseg.errors import ConfigError

MARKER = ".activeseg-unfinished"
"""A file in a folder that is still being written; its writer holds a lock on it."""


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which gets the name `folder` at the end; after an error it is removed.

    What a killed writer left is removed first. Raises ConfigError where `folder` is there and not empty, is a mount point,
    or cannot be written, and while another process writes it.
    """
    folder = Path(os.path.realpath(folder))
    check_new(folder)
    partial = folder.with_name(f".{folder.name}.activeseg-partial")
    try:
        with _being_written(partial):
            try:
                _empty(partial)
                yield partial
                check_new(folder)
                # The marker goes along: a second writer must find it locked, or no folder at all.
                partial.rename(folder)
                (folder / MARKER).unlink()
            except BaseException:
                if partial.exists():
                    _empty(partial)
                    (partial / MARKER).unlink()
                    partial.rmdir()
                raise
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be written: {error.strerror}") from error


def check_new(folder: Path) -> None:
    """Raise ConfigError unless a folder can get this name: nothing is there, or an empty folder."""
    if os.path.ismount(folder):  # also '/'; nothing can be renamed to it
        raise ConfigError(f"{folder} is a mount point: name a folder in it")
    try:
        there = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise ConfigError(f"{folder} is a file, or in one: name a new folder") from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from error
    if there:
        raise ConfigError(f"{folder} is not empty (it holds {there[0]!r}): name another folder or remove it")


@contextmanager
def _being_written(partial: Path) -> Iterator[None]:
    """Hold the lock of a folder that is being written, new or left by a killed writer."""
    partial.mkdir(parents=True, exist_ok=True)
    if not (partial / MARKER).is_file() and any(partial.iterdir()):
        raise ConfigError(f"{partial} is in the way and was not left by an export: move it away")
    with (partial / MARKER).open("ab") as lock:
        if not _locked(lock) or not _is_there(lock, partial / MARKER):
            raise ConfigError(f"another export is writing {partial}: wait for it, or name another folder")
        yield


def _locked(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system that knows no locks
        raise ConfigError(f"{lock.name} cannot be locked: {error.strerror}; name a folder on another disk") from error
    return True


def _is_there(lock: BinaryIO, path: Path) -> bool:
    """Whether the file that was locked still has its name: whoever held it before may have renamed its folder."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    return False


def _empty(partial: Path) -> None:
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
