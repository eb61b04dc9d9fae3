"""Images in a folder of this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from activeseg.errors import ConfigError, ImageError
from activeseg.storage.files import SourceFile, is_listed

_SCHEME = "file://"


@dataclass(frozen=True, slots=True)
class LocalSource:
    """The images below `root` (absolute). A file's URI is its absolute path.

    Linked folders are not entered, and links to files outside `root` are neither listed nor read: what a pool holds
    should not depend on what lies elsewhere. A name that is not UTF-8 gets a percent-encoded `file://` URI, which any
    database can store.
    """

    root: Path

    def files(self) -> Iterator[SourceFile]:
        """Images sorted by path. Raises ConfigError where the folder is gone or holds nothing but links out of it."""
        self.check()
        outside = None
        found = False
        for path in sorted(self._candidates()):
            if not self._contains(path):
                outside = path
            elif (size := _size(path)) is not None:
                found = True
                yield SourceFile(path_to_uri(path), size)
        if outside and not found:
            raise ConfigError(f"{self.root} holds only links out of it ({outside}); name the folder they lead to")

    def read(self, uri: str) -> bytes:
        """Bytes of a listed file; ImageError where this one is not to be had, ConfigError where the folder is gone."""
        path = uri_to_path(uri)
        if not path.is_absolute() or not self._contains(path):
            raise ImageError(f"{uri} is not inside the image folder {self.root}")
        try:
            if _size(path) is None:
                self.check()
                raise ImageError(f"{uri} is gone or not a file any more; run `activeseg pool sync`")
            return path.read_bytes()
        except OSError as error:
            raise ImageError(f"{uri} cannot be read: {error.strerror}") from error

    def _candidates(self) -> Iterator[str]:
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            yield from (os.path.join(folder, name) for name in names if is_listed(name))

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


def _size(path: str | Path) -> int | None:
    """Size in bytes of a regular file; None where there is none, or a pipe, whose reader would wait for ever."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
