"""Images in a folder of this machine."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from activeseg.errors import ConfigError, ImageError, SourceGoneError
from activeseg.storage.files import SourceFile, is_listed, read_file, require_storable, storable

_SCHEME = "file://"

SETTLED_SECONDS = 2.0
"""Age from which a time of change says that the bytes are the same: no file system in use counts time more coarsely (FAT)."""

# A link that leads nowhere or round, a name that is too long: and, for `LocalSource.hidden` to tell, no permission to look.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)

# No handles or memory left in this process or machine: whatever file is read next would fail as well.
_NOT_OF_A_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

_NEIGHBOURS = 3
"""Files that are tried where one cannot be read."""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """The images below `root` (absolute). A file's URI is its absolute path.

    Linked folders are not entered, and links to files outside `root` are neither listed nor read: what a pool holds
    should not depend on what lies elsewhere. A name that is not UTF-8 gets a percent-encoded `file://` URI, which any
    database can store.
    """

    root: Path

    def files(self) -> Iterator[SourceFile]:
        """Images sorted by path. Raises SourceGoneError where the folder is gone or the disk fails, ConfigError where it
        holds nothing but links out of it.

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
            elif (status := _listed(path)) is not None:
                found = True
                yield SourceFile(storable(path_to_uri(path)), status.st_size, _stamp(status))
        if outside and not found:
            raise ConfigError(f"{self.root} holds only links out of it ({outside}); name the folder they lead to")

    def read(self, uri: str, *, max_bytes: int | None = None) -> bytes:
        """Bytes of a listed file; ImageError where this one is not to be had, SourceGoneError where none is.

        A disk that fails over one file (a bad block, a handle gone stale) and gives others says something about that file. One
        that does not list the folder, or fails over the files beside it too, says nothing about it, nor does a machine without
        memory.
        """
        require_storable(uri)
        path = uri_to_path(uri)
        if not path.is_absolute() or not self._contains(path):
            raise ImageError(f"{uri} is not inside the image folder {self.root}")
        try:
            if _regular(path) is None:
                self.check()
                if not self._answers(path):
                    raise SourceGoneError(
                        f"image folder {self.root} is empty; check [pool] images, and that its disk is mounted"
                    )
                raise ImageError(f"{uri} is gone or not a file any more; run `activeseg pool sync`")
            return read_file(path, max_bytes)
        except OSError as error:
            if error.errno in _NOT_OF_A_FILE or not self._answers(path):
                raise SourceGoneError(f"image folder {self.root} cannot be read: {error.strerror} ({uri})") from error
            raise ImageError(f"{uri} cannot be read: {error.strerror}") from error

    def _answers(self, path: Path) -> bool:
        """Whether the disk lists the folder, and gives a byte of one of the first files beside this one.

        A listing alone may come from memory where the disk is away.
        """
        try:
            with os.scandir(self.root) as entries:
                if next(entries, None) is None:
                    return False
        except OSError:
            return False
        try:
            beside = list(islice(_others(path), _NEIGHBOURS))
        except OSError:  # its own folder went away: the rest did not
            return True
        return not beside or any(map(_gives_a_byte, beside))

    def hidden(self, uris: Iterable[str]) -> set[str]:
        """Those of these unlisted files that lie in a folder this user may not list or enter."""
        closed: dict[Path, bool] = {self.root.parent: False}

        def is_closed(folder: Path) -> bool:
            if folder not in closed:
                closed[folder] = not _may_list(folder) or is_closed(folder.parent)
            return closed[folder]

        below = {uri: path for uri in uris if self.root in (path := uri_to_path(uri)).parents}
        return {uri for uri, path in below.items() if is_closed(path.parent) or not _may_look(path)}

    def _contains(self, path: str | Path) -> bool:
        root = os.path.realpath(self.root)
        return os.path.commonpath((root, os.path.realpath(path))) == root

    def check(self) -> None:
        """Raise SourceGoneError where the folder is not there (a disk that is not mounted) or cannot be looked at."""
        try:
            if self.root.is_dir():
                return
            state = "is not a folder" if self.root.exists() else "does not exist"
        except OSError as error:  # no permission, a share whose server is gone
            raise SourceGoneError(f"image folder {self.root} cannot be read: {error.strerror}") from error
        raise SourceGoneError(f"image folder {self.root} {state}; check [pool] images, and that its disk is mounted")


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


def _others(path: Path) -> Iterator[str]:
    """Images in the folder of this one."""
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name != path.name and is_listed(entry.name) and entry.is_file(follow_symlinks=False):
                yield entry.path


def _gives_a_byte(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.read(descriptor, 1)
        finally:
            os.close(descriptor)
    except PermissionError:
        return True  # the disk said so
    except OSError:
        return False
    return True


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

    Raises SourceGoneError where the disk fails: taking its images for vanished ones would withdraw them from queries.
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
        raise SourceGoneError(f"image folder {folder} cannot be listed: {error.strerror}") from error


def _listed(path: str) -> os.stat_result | None:
    try:
        return _regular(path)
    except OSError as error:  # as in `_names`: what the disk fails to tell has not vanished
        raise SourceGoneError(f"image folder {os.path.dirname(path)} cannot be listed: {error.strerror} ({path})") from error


def _regular(path: str | Path) -> os.stat_result | None:
    """The state of a regular file; None where there is none, or a pipe, whose reader would wait for ever.

    Raises OSError where the disk does not say.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def _may_list(folder: Path) -> bool:
    try:
        os.scandir(folder).close()
    except OSError as error:
        return not isinstance(error, PermissionError)
    return True


def _may_look(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return not isinstance(error, PermissionError)
    return True


def _stamp(status: os.stat_result) -> str | None:
    return str(status.st_mtime_ns) if status.st_mtime < time.time() - SETTLED_SECONDS else None
