"""Images in a folder of this machine."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from activeseg.errors import ConfigError, ImageError
from activeseg.storage.files import SourceFile, is_listed

_SCHEME = "file://"

SETTLED_SECONDS = 2.0
"""Age from which a time of change says that the bytes are the same: no file system in use counts time more coarsely (FAT)."""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """The images below `root` (absolute). A file's URI is its absolute path.

    Linked folders are not entered, and links to files outside `root` are neither listed nor read: what a pool holds
    should not depend on what lies elsewhere. A name that is not UTF-8 gets a percent-encoded `file://` URI, which any
    database can store.
    """

    root: Path

    def files(self) -> Iterator[SourceFile]:
        """Images sorted by path. Raises ConfigError where the folder is gone or holds nothing but links out of it.

        A file's stamp is its time of change in nanoseconds. None for one changed in the last seconds by this machine's clock,
        or in the future: it may be written to once more within what the file system counts as the same moment. (A share whose
        own clock is behind this one by more than that can hide such a second writing of the same size.)
        """
        self.check()
        outside = None
        found = False
        for path in _walk(self.root):
            if os.path.islink(path) and not self._contains(path):
                outside = path
            elif (status := _regular(path)) is not None:
                found = True
                yield SourceFile(path_to_uri(path), status.st_size, _stamp(status))
        if outside and not found:
            raise ConfigError(f"{self.root} holds only links out of it ({outside}); name the folder they lead to")

    def read(self, uri: str) -> bytes:
        """Bytes of a listed file; ImageError where this one is not to be had, ConfigError where the folder is gone."""
        path = uri_to_path(uri)
        if not path.is_absolute() or not self._contains(path):
            raise ImageError(f"{uri} is not inside the image folder {self.root}")
        try:
            if _regular(path) is None:
                self.check()
                raise ImageError(f"{uri} is gone or not a file any more; run `activeseg pool sync`")
            return path.read_bytes()
        except OSError as error:
            raise ImageError(f"{uri} cannot be read: {error.strerror}") from error

    def _contains(self, path: str | Path) -> bool:
        root = os.path.realpath(self.root)
        return os.path.commonpath((root, os.path.realpath(path))) == root

    def check(self) -> None:
        """Raise ConfigError where the folder is not there (a disk that is not mounted)."""
        if not self.root.is_dir():
            state = "is not a folder" if self.root.exists() else "does not exist"
            raise ConfigError(f"image folder {self.root} {state}; check [pool] images, and that its disk is mounted")


def path_to_uri(path: str) -> str:
    """The path itself; where it is not UTF-8, `file://` and the percent-encoded bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return _SCHEME + quote(os.fsencode(path))
    return path


def uri_to_path(uri: str) -> Path:
    """The path of an absolute path or of a `file://` URI."""
    return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix(_SCHEME)))) if uri.startswith(_SCHEME) else Path(uri)


def _walk(folder: str | Path) -> Iterator[str]:
    """Paths named like images, sorted; held in memory are the names in the folders on the way to the present one."""
    for name in sorted(_names(folder)):
        path = os.path.join(folder, name)
        if name.endswith("/"):
            yield from _walk(path[:-1])
        else:
            yield path


def _names(folder: str | Path) -> Iterator[str]:
    """Images by name, and folders with a slash behind, so that names sort as the whole paths below them do.

    Raises ConfigError where the disk fails: taking its images for vanished ones would withdraw them from queries.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith("."):
                        yield entry.name + "/"
                elif is_listed(entry.name):
                    yield entry.name
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # vanished meanwhile, or another user's (lost+found)
    except OSError as error:
        raise ConfigError(f"image folder {folder} cannot be listed: {error.strerror}") from error


def _regular(path: str | Path) -> os.stat_result | None:
    """The state of a regular file; None where there is none, or a pipe, whose reader would wait for ever."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _stamp(status: os.stat_result) -> str | None:
    return str(status.st_mtime_ns) if status.st_mtime < time.time() - SETTLED_SECONDS else None
