"""Labelled images from outside -> images and annotations: index masks beside images, matched by file name."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import sqlalchemy as sa

from activeseg.db import images, truth
from activeseg.db.models import Image, ImageStatus, Query, QueryStatus, Split
from activeseg.errors import ConfigError, DataError, MaskError, NotReadyError
from activeseg.imaging.decode import ImageInfo, probe
from activeseg.imaging.masks import decode_mask, encode_mask
from activeseg.records import StageReport
from activeseg.storage.files import SourceFile
from activeseg.storage.sources import ImageSource, open_source
from activeseg.workspace import Workspace


@dataclass(frozen=True, slots=True)
class _Pair:
    """An image with its mask, both proven to fit; `mask` is the re-encoded index mask."""

    uri: str
    sha256: str
    size: int
    info: ImageInfo
    mask: bytes
    mask_file_sha256: str


def import_dataset(
    workspace: Workspace, image_folder: str, mask_folder: Path, split: Split | None, *, annotator: str | None = None
) -> StageReport:
    """Register labelled images: `<name>.<any>` in `image_folder` with the index mask `<name>.png` in `mask_folder`.

    split: train, val or test; None answers open queries: the images must be in the pool already and go to a split when
    the loop assigns one. Importing the same pair again writes nothing; a changed mask is a new version that counts from
    then on. A pair that does not fit (unreadable image, mask missing, of another size or with unknown values) is left
    out, counted as failed and listed with its reason in the report; a bad image also gets its quarantine row.
    Raises ConfigError where a folder is missing, NotReadyError where there is not one image.
    """
    started = time.monotonic()
    if not mask_folder.is_dir():
        raise ConfigError(f"mask folder {mask_folder} does not exist")
    source = open_source(image_folder)
    masks = {path.stem: path for path in sorted(mask_folder.iterdir()) if path.suffix.lower() == ".png"}
    counts, problems = Counter[str](), {}
    for file in source.files():
        if split is None and PurePosixPath(file.uri).stem not in masks:
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


def _read_pair(workspace: Workspace, source: ImageSource, file: SourceFile, masks: dict[str, Path]) -> _Pair:
    data = source.read(file.uri)
    info = probe(data, max_pixels=workspace.settings.pool.max_pixels)
    path = masks.get(PurePosixPath(file.uri).stem)
    if path is None:
        raise MaskError(f"no mask {PurePosixPath(file.uri).stem}.png")
    mask_data = path.read_bytes()
    mask = decode_mask(mask_data)
    if mask.shape != (info.height, info.width):
        raise MaskError(f"mask {path.name} is {mask.shape[1]}x{mask.shape[0]}, its image {info.width}x{info.height}")
    workspace.label_set.check_mask(mask)
    digest = hashlib.sha256(data).hexdigest()
    return _Pair(file.uri, digest, len(data), info, encode_mask(mask), hashlib.sha256(mask_data).hexdigest())


def _store(workspace: Workspace, pair: _Pair, split: Split | None, annotator: str | None) -> str:
    artifact = workspace.artifacts.put(pair.mask, "mask", ".png")
    with workspace.database.write() as session:
        image = session.scalar(sa.select(Image).where(Image.uri == pair.uri, Image.sha256 == pair.sha256))
        if image is None:
            if split is None:
                raise DataError("not in the pool: run `activeseg pool sync` first, or name a split")
            image = Image(
                uri=pair.uri, sha256=pair.sha256, size_bytes=pair.size, width=pair.info.width, height=pair.info.height,
                split=split, status=ImageStatus.ACTIVE,
            )  # fmt: skip
            session.add(image)
            session.flush()
        if split is not None and image.split != split:
            _check_move(image, split)
            images.set_split(session, [image.id], split)
        if truth.known_import(session, image.id, pair.mask_file_sha256):
            return "unchanged"
        query = sa.select(Query.id).where(Query.image_id == image.id, Query.status != QueryStatus.WITHDRAWN)
        truth.record(
            session,
            truth.from_import(
                image_id=image.id,
                label_set_id=images.label_set_row(session, workspace.label_set).id,
                location=artifact.location,
                sha256=artifact.sha256,
                import_sha256=pair.mask_file_sha256,
                query_id=session.scalar(query.order_by(Query.id.desc()).limit(1)),
                annotator=annotator,
            ),
        )
    return "written"


def _check_move(image: Image, split: Split) -> None:
    """A validation image may never become a training image, nor the other way round: figures would lie from then on."""
    if image.split != Split.POOL:
        raise DataError(f"already in the split {image.split.value!r}; it cannot move to {split.value!r}")
