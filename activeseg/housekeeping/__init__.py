"""Room on the disks, files nobody needs, backups.

`room` looks before a stage begins, `garbage` removes, `usage` counts, `backup` and `restore` copy there and back.
"""

from activeseg.housekeeping.garbage import collect_garbage
from activeseg.housekeeping.room import require_room, with_room

__all__ = ["collect_garbage", "require_room", "with_room"]
