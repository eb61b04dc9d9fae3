"""Files to pixels ahead of the network: how many at once, and what a bad one becomes.

Threads, because Pillow decodes and resizes without Python's lock; processes were measured and brought nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

from activeseg.errors import DataError
from activeseg.imaging.decode import Decoded, resize_short_side
from activeseg.nn.batches import Loaded
from activeseg.nn.data import Array, decoded, to_pixels
from activeseg.nn.prefetch import map_ahead
from activeseg.records import ImageRef, InputPolicy, ScoreFailure

Read = Callable[[ImageRef], Array | Decoded]
"""What an image holds: pixels (H, W, 3) uint8 of its own size, or decoded as the network's input policy wants it."""

FEWEST_READERS = 4
"""On few cores too: while one waits for a disk or a bucket, others decode."""
MOST_READERS = 32


def default_readers() -> int:
    """Threads that read and decode where nobody asks for another number: one for each core this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores, FEWEST_READERS), MOST_READERS)


@dataclass(frozen=True, slots=True)
class Loader:
    """Reads images and makes them ready for a network with this input policy; safe to call from several threads."""

    read: Read
    policy: InputPolicy

    def __call__(self, image: ImageRef) -> Loaded[ImageRef] | ScoreFailure:
        """A DataError of `read` becomes a ScoreFailure; anything else is raised."""
        try:
            found = decoded(self.read(image))
            pixels = to_pixels(resize_short_side(found.pixels, self.policy.short_side))
        except DataError as error:
            return ScoreFailure(image.image_id, str(error))
        return Loaded(image, pixels, found.size)

    def ahead(
        self, images: Iterable[ImageRef], *, readers: int, ahead: int
    ) -> Generator[Loaded[ImageRef] | ScoreFailure, None, None]:
        """Images in their order, up to `ahead` of them loaded before they are asked for. readers: threads; 0 = by the cores."""
        return map_ahead(self, images, workers=readers or default_readers(), ahead=ahead)
