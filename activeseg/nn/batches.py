"""Images of one size into batches: grouped as they come, as many as asked for or as many as the memory takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from activeseg.errors import DeviceMemoryError

BATCH_SIZE = 8
"""Images in a batch where nobody asks for another number."""

MAX_BATCH_PIXELS = 4 * 1024**2
"""A batch holds fewer images than asked for where it would exceed this; one image always makes a batch."""

LARGEST_TRIED = 256

MOST_REFUSED = 64
"""Images that fit alone nowhere, one after the other with none that does: then it is the memory's fault."""

REMEDY = ": set [model] short_side, or device to one with more"

Tag = TypeVar("Tag")
Other = TypeVar("Other")
Computed = TypeVar("Computed")


@dataclass(frozen=True, slots=True, eq=False)
class Loaded(Generic[Tag]):
    """An image ready for the network. pixels: (3, h, w) uint8 after the input policy's resize. size: its own (H, W)."""

    tag: Tag
    pixels: Tensor
    size: tuple[int, int]

    @property
    def area(self) -> int:
        """Pixels the network sees."""
        return self.pixels[0].numel()


@dataclass(slots=True)
class BatchLimit:
    """How many images of a size make a batch. images: at most. pixels: at most, but one image always is one."""

    images: int = BATCH_SIZE
    pixels: int = field(default_factory=lambda: MAX_BATCH_PIXELS)

    def of(self, area: int) -> int:
        """Images of `area` pixels each that make a batch."""
        return max(1, min(self.images, self.pixels // area))

    def halve(self, batch: list[Loaded[Tag]]) -> None:
        """No batch shall be larger than half of this one, which did not fit."""
        self.pixels = min(self.pixels, len(batch) // 2 * batch[0].area)


def batches_by_size(images: Iterable[Loaded[Tag] | Other], limit: int | BatchLimit) -> Iterator[list[Loaded[Tag]] | Other]:
    """Group images of one size into batches; a bounded number waits for others of its size. What is none passes."""
    waiting: _Waiting[Tag] = _Waiting(BatchLimit(limit) if isinstance(limit, int) else limit)
    for loaded in images:
        if not isinstance(loaded, Loaded):
            yield loaded
        elif batch := waiting.add(loaded):
            yield batch
    while waiting.by_size:
        yield waiting.pop_oldest()


@dataclass(slots=True)
class _Waiting(Generic[Tag]):
    """Images by size, sizes in the order in which their oldest image came."""

    limit: BatchLimit
    by_size: dict[torch.Size, list[Loaded[Tag]]] = field(default_factory=dict)
    images: int = 0
    pixels: int = 0

    def add(self, loaded: Loaded[Tag]) -> list[Loaded[Tag]] | None:
        """Keep an image; hand out a batch when its size has enough, or the oldest one when too much is waiting."""
        same_size = self.by_size.setdefault(loaded.pixels.shape, [])
        same_size.append(loaded)
        self.images, self.pixels = self.images + 1, self.pixels + loaded.area
        if len(same_size) >= self.limit.of(loaded.area):
            return self._pop(loaded.pixels.shape)
        too_much = self.images >= 4 * self.limit.images or self.pixels > 4 * self.limit.pixels
        return self.pop_oldest() if too_much else None

    def pop_oldest(self) -> list[Loaded[Tag]]:
        return self._pop(next(iter(self.by_size)))

    def _pop(self, size: torch.Size) -> list[Loaded[Tag]]:
        batch = self.by_size.pop(size)
        self.images, self.pixels = self.images - len(batch), self.pixels - len(batch) * batch[0].area
        return batch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, the device's or the machine's, was too small for a computation."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # CPU allocations and cuDNN fail with a plain RuntimeError.
    said = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "_alloc_failed")
    return isinstance(error, RuntimeError) and any(sign in said for sign in signs)


class Fitting(Generic[Tag, Computed]):
    """Computes batches; one that does not fit into memory is halved until it does, and so are all that come later.

    compute: a batch of one size to whatever; called again with the halves of a batch for which it raised out of memory.
    An image that does not fit alone is put aside and tried once more at the end (`rest`), when it is known whether others
    fit; a batch of them, of any more only the name is kept. Where an image that is no smaller has been computed before, or
    MOST_REFUSED do not fit and none does, the fault is not the image's: DeviceMemoryError.
    """

    def __init__(self, compute: Callable[[list[Loaded[Tag]]], Computed], limit: BatchLimit, where: str) -> None:
        self._compute, self.limit, self._where = compute, limit, where
        self._largest = 0
        self._aside: list[Loaded[Tag]] = []
        self._refused: list[tuple[Loaded[Tag], str]] = []

    def of(self, batch: list[Loaded[Tag]]) -> Iterator[Computed]:
        """What `compute` makes of the batch or of its parts, in their order."""
        computed, reason = self._try(batch)
        if computed is not None:
            yield computed
        elif len(batch) > 1:
            self.limit.halve(batch)
            half = len(batch) // 2
            yield from self.of(batch[:half])
            yield from self.of(batch[half:])
        elif self._largest >= batch[0].area:
            raise DeviceMemoryError(self._sentence(batch[0], reason) + ": another process may hold it; free it and go on")
        elif len(self._aside) < BATCH_SIZE:
            self._aside.append(batch[0])
        elif self._largest or len(self._refused) < MOST_REFUSED:
            without_pixels = replace(batch[0], pixels=batch[0].pixels.new_empty(3, 0, 0))
            self._refused.append((without_pixels, self._sentence(batch[0], reason) + REMEDY))
        else:
            raise DeviceMemoryError(self._sentence(batch[0], reason) + REMEDY)

    def rest(self) -> Iterator[Computed | tuple[Loaded[Tag], str]]:
        """What comes of the images put aside: computed, or why not. Raises DeviceMemoryError where nothing at all fits."""
        for loaded in self._aside:
            computed, reason = self._try([loaded])
            if computed is not None:
                yield computed
                continue
            sentence = self._sentence(loaded, reason) + REMEDY
            if not self._largest:
                raise DeviceMemoryError(sentence)
            yield loaded, sentence
        yield from self._refused
        self._aside.clear()
        self._refused.clear()

    def _try(self, batch: list[Loaded[Tag]]) -> tuple[Computed | None, str]:
        try:
            computed = self._compute(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().split("\n")[0][:200]
        else:
            self._largest = max(self._largest, batch[0].area)
            return computed, ""
        # Only here has the exception let go of the tensors that its frames held.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None, reason

    def _sentence(self, loaded: Loaded[Tag], reason: str) -> str:
        height, width = loaded.pixels.shape[1:]
        said = reason or "out of memory"
        return f"an image of {width}x{height} pixels alone is more than the memory of {self._where} ({said})"


def find_batch_size(seconds: Callable[[int], float], *, enough: float = 1.05) -> int:
    """The number of images a batch is best made of, by trying 1, 2, 4, ... up to LARGEST_TRIED.

    seconds: computes a batch of so many images and says how long it took. Ends where memory is too small or twice the images
    bring less than `enough` times the speed.
    """
    best, speed, images = 1, 0.0, 1
    while images <= LARGEST_TRIED:
        try:
            found = images / seconds(images)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        if found < enough * speed:
            break
        best, speed, images = images, found, 2 * images
    return best
