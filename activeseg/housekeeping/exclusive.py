"""Copying files and removing them keep out of each other's way: both hold a lease of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from activeseg.db import lease
from activeseg.db.database import Database
from activeseg.errors import LeaseError
from activeseg.workspace import Workspace

LEASES = (lease.LOOP, lease.FILES)
"""What a restore holds, with the tables themselves."""


@contextmanager
def files_lease(workspace: Workspace) -> Iterator[None]:
    """Hold the lease on files. The loop goes on meanwhile: it only adds some.

    Raises LeaseError where a backup is being made, or garbage collected.
    """
    # A Database of its own: the lease must not fence what the loop writes through the workspace's.
    with ExitStack() as stack:
        database = stack.enter_context(closing(Database(workspace.database.url.render_as_string(hide_password=False))))
        try:
            stack.enter_context(lease.holding(database, lease.FILES))
        except LeaseError as error:
            raise LeaseError(f"a backup is being made, or files are being removed: {error}") from error
        yield
