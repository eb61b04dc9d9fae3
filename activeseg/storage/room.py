"""Room on a disk: how much is free, and what a full one looks like."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from activeseg.errors import NoRoomError

GB = 1e9
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
REMEDY = "run `activeseg gc`, free some room, or move it to a larger disk"


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())


def free_bytes(path: Path) -> int:
    """Bytes that may still be written on the disk of a path, whether or not there is something at it."""
    return shutil.disk_usage(existing(path)).free


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room: a full disk, a quota, a limit on the size of files."""
    return isinstance(error, OSError) and error.errno in _FULL


def no_room(error: OSError, path: Path) -> NoRoomError:
    """What to raise instead of an error that `is_full`. path: what was being written."""
    return NoRoomError(f"no room left to write {path} ({error.strerror or error}): {REMEDY}; the next run goes on")
