"""Labelled images from outside -> images and annotations: masks beside images, matched by file name.

Where classes exclude each other a mask is one file of class indices. Where they overlap it is up to one file per class, in
folders named like the classes.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from activeseg.core.labels import LabelSet, Mask
from activeseg.db import images, truth
from activeseg.db.models import Image, ImageStatus, Query, QueryStatus, Split
from activeseg.errors import ConfigError, DataError, MaskError, NotReadyError
from activeseg.imaging.class_folders import class_folders, png_masks
from activeseg.imaging.decode import ImageInfo, probe
from activeseg.imaging.masks import decode_mask, decode_plane
from activeseg.records import StageReport
from activeseg.storage.files import SourceFile
from activeseg.storage.sources import ImageSource, open_source
from activeseg.workspace import Workspace

_NOWHERE = " in any class folder; where an image has none of the classes, say so by an empty (all 0) mask in one of them"


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """An image with its mask, both proven to fit. mask_sha256: of the mask's file or files, as they came."""

    uri: str
    sha256: str
    size: int
    info: ImageInfo
    mask: Mask
    mask_sha256: str


@dataclass(frozen=True)
class _MaskFiles:
    """The mask files of a folder."""

    folder: Path
    label_set: LabelSet
    max_pixels: int

    @cached_property
    def files(self) -> dict[str, dict[int, Path]]:
        """By the image's stem and then by class index; a file of all exclusive classes stands under 0.

        Raises ConfigError where the folder is not there or not laid out as the classes ask.
        """
        if not self.folder.is_dir():
            raise ConfigError(f"mask folder {self.folder} does not exist")
        if not self.label_set.overlap:
            return {stem: {0: path} for stem, path in _index_masks(self.folder, self.label_set).items()}
        found: dict[str, dict[int, Path]] = {}
        for index, folder in class_folders(self.folder, self.label_set).items():
            for stem, path in png_masks(folder).items():
                found.setdefault(stem, {})[index] = path
        return found

    def read(self, stem: str, size: tuple[int, int]) -> tuple[Mask, str]:
        """The mask of an image of size (H, W), and the sha256 of its file or files. Raises MaskError where it does not fit."""
        paths = self.files.get(stem)
        if paths is None:
            raise MaskError(f"no mask {stem}.png" + (_NOWHERE if self.label_set.overlap else ""))
        return self._planes(paths, size) if self.label_set.overlap else self._indices(paths[0], size)

    def _planes(self, paths: dict[int, Path], size: tuple[int, int]) -> tuple[Mask, str]:
        mask, digest = np.zeros((len(self.label_set.names), *size), np.bool_), hashlib.sha256()
        for index, path in sorted(paths.items()):
            content, name = path.read_bytes(), f"{path.parent.name}/{path.name}"
            try:
                plane = decode_plane(content, max_pixels=self.max_pixels)
            except MaskError as error:
                raise MaskError(f"{name}: {error}") from error
            _check_size(plane, size, name)
            mask[index] = plane
            digest.update(f"{index} {hashlib.sha256(content).hexdigest()}\n".encode())
        return mask, digest.hexdigest()

    def _indices(self, path: Path, size: tuple[int, int]) -> tuple[Mask, str]:
        content = path.read_bytes()
        mask = decode_mask(content, max_pixels=self.max_pixels)
        _check_size(mask, size, path.name)
        return mask, hashlib.sha256(content).hexdigest()


def _check_size(mask: Mask, size: tuple[int, int], name: str) -> None:
    if mask.shape != size:
        raise MaskError(f"mask {name} is {mask.shape[1]}x{mask.shape[0]}, its image {size[1]}x{size[0]}")


def _index_masks(folder: Path, label_set: LabelSet) -> dict[str, Path]:
    files = png_masks(folder)
    named = [name for name in label_set.names if (folder / name.replace("/", "_")).is_dir()]
    if named and not files:
        raise ConfigError(
            f"mask folder {folder} holds no mask, but folders named like classes ({', '.join(named)}): set [labels] overlap "
            "to true where classes overlap, or name a folder of index masks"
        )
    return files


def import_dataset(
    workspace: Workspace, image_folder: str, mask_folder: Path, split: Split | None, *, annotator: str | None = None
) -> StageReport:
    """Register labelled images: `<name>.<any>` in `image_folder` with the index mask `<name>.png` in `mask_folder`.

    Where classes overlap, `mask_folder` holds a folder for each class, named like it, with masks `<name>.png` of 0 (no) and
    anything else (yes). A class without a file for an image is absent from it; an image without any file does not fit.
    The ignored class needs no folder.

    split: train, val or test; None answers open queries: the images must be in the pool already and go to a split when
    the loop assigns one. Importing the same pair again writes nothing; a changed mask is a new version that counts from
    then on. A pair that does not fit (unreadable image, mask missing, of another size or with unknown values) is left
    out, counted as failed and listed with its reason in the report; a bad image also gets its quarantine row.
    Raises ConfigError where a folder (also that of a class) is missing, is that of no class or is laid out for the other
    [labels] overlap, NotReadyError where there is not one image.
    """
    started = time.monotonic()
    masks = _MaskFiles(mask_folder, workspace.label_set, workspace.settings.pool.max_pixels)
    known, source = masks.files, open_source(image_folder)
    counts, problems = Counter[str](), {}
    for file in source.files():
        if split is None and PurePosixPath(file.uri).stem not in known:
            continue  # an answer to some of the open queries says nothing about other images
        try:
            pair = _read_pair(workspace, source, file, masks)
            counts[_store(workspace, pair, split, annotator)] += 1
        except DataError as error:
            problems[file.uri] = str(error)
    if not counts and not problems:
        raise NotReadyError(f"no images in {image_folder}")
    details = {"unchanged": counts["unchanged"], "problems": problems}
    return StageReport("dataset import", counts["written"], len(problems), time.monotonic() - started, details)


def _read_pair(workspace: Workspace, source: ImageSource, file: SourceFile, masks: _MaskFiles) -> _Pair:
    data = source.read(file.uri)
    info = probe(data, max_pixels=workspace.settings.pool.max_pixels)
    mask, digest = masks.read(PurePosixPath(file.uri).stem, (info.height, info.width))
    workspace.label_set.check_mask(mask)
    return _Pair(file.uri, hashlib.sha256(data).hexdigest(), len(data), info, mask, digest)


def _store(workspace: Workspace, pair: _Pair, split: Split | None, annotator: str | None) -> str:
    artifact = workspace.store_mask(pair.mask)
    with workspace.database.write() as session:
        image = session.scalar(sa.select(Image).where(Image.uri == pair.uri, Image.sha256 == pair.sha256))
        if image is None:
            if split is None:
                raise DataError("not in the pool: run `activeseg pool sync` first, or name a split")
            _supersede(session, pair.uri, split)
            image = Image(
                uri=pair.uri, sha256=pair.sha256, size_bytes=pair.size, width=pair.info.width, height=pair.info.height,
                split=split, status=ImageStatus.ACTIVE,
            )  # fmt: skip
            session.add(image)
            session.flush()
        if split is not None and image.split != split:
            _check_move(image, split)
            images.set_split(session, [image.id], split)
        if truth.known_import(session, image.id, pair.mask_sha256):
            return "unchanged"
        query = sa.select(Query.id).where(Query.image_id == image.id, Query.status != QueryStatus.WITHDRAWN)
        truth.record(
            session,
            truth.from_import(
                image_id=image.id,
                label_set_id=images.label_set_row(session, workspace.label_set).id,
                location=artifact.location,
                sha256=artifact.sha256,
                import_sha256=pair.mask_sha256,
                query_id=session.scalar(query.order_by(Query.id.desc()).limit(1)),
                annotator=annotator,
            ),
        )
    return "written"


def _supersede(session: Session, uri: str, split: Split) -> None:
    """The file has another content now: what it held before can be read no more, and must not be asked for."""
    former = [image for image in images.by_uri(session, [uri]).get(uri, []) if image.status == ImageStatus.ACTIVE]
    for image in former:
        if image.split != split:
            _check_move(image, split)
    images.retire(session, [image.id for image in former], ImageStatus.SUPERSEDED)


def _check_move(image: Image, split: Split) -> None:
    """A validation image may never become a training image, nor the other way round: figures would lie from then on."""
    if image.split != Split.POOL:
        raise DataError(f"already in the split {image.split.value!r}; it cannot move to {split.value!r}")
