"""What every stage is handed: settings, database, artifacts and label set, opened once and closed by the caller."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from activeseg.config import Settings
from activeseg.core.labels import LabelSet, Mask, parse_classes
from activeseg.db.database import Database
from activeseg.errors import ConfigError, DeviceMemoryError, ImageError
from activeseg.records import ImageRef, InputPolicy
from activeseg.storage.artifacts import Artifact, ArtifactStore
from activeseg.storage.sources import ImageSource, open_source

# Commands that only read the database start without numpy and Pillow: the methods on pixels import what they need.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from activeseg.db.truth import AnnotatedImage
    from activeseg.imaging.decode import Decoded


@dataclass(frozen=True)
class Workspace:
    """Settings and what they point at. Nothing is opened before it is used."""

    settings: Settings
    database: Database

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """Masks, checkpoints, weights and pictures."""
        return ArtifactStore(self.settings.path(self.settings.artifacts.dir))

    @cached_property
    def label_set(self) -> LabelSet:
        """The configured classes. Raises ConfigError where the file is missing or wrong."""
        section = self.settings.labels
        file = self.settings.path(section.file)
        try:
            text = file.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ConfigError(f"class list {file} cannot be read: {error.strerror}; set [labels] file") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"class list {file} is not UTF-8 text") from error
        return parse_classes(text, overlap=section.overlap, include_void=section.include_void)

    @property
    def input_policy(self) -> InputPolicy:
        """How new checkpoints see pixels."""
        model = self.settings.model
        # At the image's own size nothing is reduced, and the policy is the one that older checkpoints have.
        return InputPolicy(model.short_side, model.mean, model.std, reduced=model.short_side is not None)

    @cached_property
    def pool_source(self) -> ImageSource:
        """The place the unlabelled images come from. Raises ConfigError where it is not there."""
        return open_source(self.settings.images_uri)

    def _read(self, uri: str) -> bytes:
        limit = self.settings.pool.max_bytes
        if uri.startswith(self.settings.images_uri.rstrip("/") + "/"):
            return self.pool_source.read(uri, max_bytes=limit)
        # Imported datasets lie outside the pool; their folder is opened for the one file.
        try:
            return open_source(uri.rsplit("/", 1)[0] or "/").read(uri, max_bytes=limit)
        except ConfigError as error:
            if isinstance(error.__cause__, OSError):
                raise  # the disk, the store or this machine fails
            # Gone, or empty: one data set that was removed must not keep the whole pool from being scored.
            raise ImageError(f"its folder outside the pool is gone ({error})") from error

    def read_bytes(self, ref: ImageRef) -> bytes:
        """The bytes of an image, proven to be those that were registered.

        Raises ImageError where the file is gone or its content changed since the pool was synchronised.
        """
        data = self._read(ref.uri)
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise ImageError("the file changed since it was registered: run `activeseg pool sync`")
        return data

    def read_image(self, ref: ImageRef) -> npt.NDArray[np.uint8]:
        """Pixels (H, W, 3) uint8, upright, decoded in a process of their own. Raises ImageError."""
        from activeseg.imaging.sandbox import decode_image

        return decode_image(self.read_bytes(ref), max_pixels=self.settings.pool.max_pixels)

    def read_input(self, ref: ImageRef, policy: InputPolicy) -> Decoded:
        """Pixels as a network with this policy takes them, and the image's own size. Raises ImageError, and DeviceMemoryError
        where this process has no memory left, which is no fault of the image.

        Decoded in this process, as those bytes were decoded in one of their own when they were registered; with [pool]
        isolation = "always" in one of their own each time.
        """
        limits = self.settings.pool
        if limits.isolation == "always":
            from activeseg.imaging.sandbox import decode_input
        else:
            from activeseg.imaging.decode import decode_input

        try:
            return decode_input(self.read_bytes(ref), policy, max_pixels=limits.max_pixels)
        except MemoryError as error:
            raise DeviceMemoryError(
                f"no memory to decode {ref.uri} in: nothing is wrong with it; end what holds the memory, or set a smaller "
                "batch_size or fewer [scoring] readers, and go on"
            ) from error

    def read_mask(self, location: str, sha256: str | None = None, *, label_set: LabelSet | None = None) -> Mask:
        """A stored mask, as the label set it was stored for (default: today's) describes masks.

        Raises MaskError where it is missing or altered.
        """
        from activeseg.imaging.masks import decode_mask, decode_planes

        label_set = label_set or self.label_set
        data = self.artifacts.read(location, sha256=sha256)
        limit = self.settings.pool.max_pixels
        if label_set.overlap:
            return decode_planes(data, len(label_set.names), max_pixels=limit)
        return decode_mask(data, max_pixels=limit)

    def store_mask(self, mask: Mask, *, label_set: LabelSet | None = None) -> Artifact:
        """Store a mask of a label set (default: today's); `read_mask` reads it back. Raises MaskError where it is none."""
        from activeseg.imaging.masks import encode_mask, encode_planes

        label_set = label_set or self.label_set
        label_set.check_mask(mask)
        return self.artifacts.put(encode_planes(mask) if label_set.overlap else encode_mask(mask), "mask", ".png")

    def read_labeled(self, item: AnnotatedImage) -> tuple[npt.NDArray[np.uint8], Mask]:
        """Pixels and the mask that counts."""
        return self.read_image(item.image), self.read_mask(item.mask_location, item.mask_sha256)

    def read_sample(self, item: AnnotatedImage, policy: InputPolicy) -> tuple[Decoded, Mask]:
        """Pixels as a network with this policy takes them, and the mask that counts, at the image's own size."""
        return self.read_input(item.image, policy), self.read_mask(item.mask_location, item.mask_sha256)


@contextmanager
def open_workspace(settings: Settings, *, check_schema: bool = True, beside: Database | None = None) -> Iterator[Workspace]:
    """A workspace whose database is at the right schema (SchemaError otherwise) and is closed at the end.

    beside: of the same settings, in a process that opens workspaces again and again (`Database.beside`).
    """
    database = Database(settings.database_url) if beside is None else beside.beside()
    try:
        if check_schema:
            database.require_schema()
        yield Workspace(settings, database)
    finally:
        database.close()
