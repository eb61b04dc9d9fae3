"""Before a stage begins: is there room, and does the artifacts folder know which database stores files there?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from activeseg.errors import NoRoomError
from activeseg.housekeeping import owners
from activeseg.storage.room import GB, REMEDY, existing, free_bytes, is_full, no_room
from activeseg.workspace import Workspace


def require_room(workspace: Workspace) -> None:
    """Raise NoRoomError where less than [housekeeping] min_free_gb is free for artifacts, or for a SQLite database.

    With room, the artifacts folder is told that this database stores files there (`owners.claim`).
    """
    if (problem := shortage(workspace)) is not None:
        raise NoRoomError(problem)
    owners.claim(workspace)


def shortage(workspace: Workspace) -> str | None:
    """Where less is free than [housekeeping] min_free_gb, and what to do; None where there is room."""
    floor = workspace.settings.housekeeping.min_free_gb
    for what, path in places(workspace).items():
        if (free := free_bytes(path)) < floor * GB:
            return (
                f"{free / GB:.2f} GB free on the disk of the {what} ({existing(path)}), [housekeeping] min_free_gb asks for "
                f"{floor:g} before anything is begun: {REMEDY}, or set a lower min_free_gb"
            )
    return None


@contextmanager
def with_room(workspace: Workspace) -> Iterator[None]:
    """`require_room`, and NoRoomError where the disk is full before the block ends."""
    try:
        require_room(workspace)
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise no_room(error, Path(error.filename or workspace.artifacts.root)) from error


def places(workspace: Workspace) -> dict[str, Path]:
    """What needs room on which disk: the artifacts, and the database where it is a file."""
    found = {"artifacts folder": workspace.artifacts.root}
    url = workspace.database.url
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        found["database"] = Path(url.database)
    return found
