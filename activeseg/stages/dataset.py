"""Labelled images from outside -> images and annotations: masks beside images, matched by file name.

Where classes exclude each other a mask is one file of class indices. Where they overlap it is up to one file per class, in
folders named like the classes.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from activeseg.core.labels import Mask
from activeseg.db import groups, imports
from activeseg.db.models import Split
from activeseg.errors import DataError, NotReadyError
from activeseg.imaging.decode import ImageInfo
from activeseg.imaging.mask_files import MaskFiles
from activeseg.imaging.sandbox import probe
from activeseg.records import StageReport
from activeseg.storage.files import SourceFile
from activeseg.storage.sources import ImageSource, open_source
from activeseg.wording import counted
from activeseg.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """An image with its mask, both proven to fit. mask_sha256: of the mask's file or files, as they came."""

    uri: str
    sha256: str
    size: int
    info: ImageInfo
    mask: Mask
    mask_sha256: str


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
    Images get the group (clip, site) that [pool] group_pattern finds in their path, also those imported earlier that have
    none. The report tells of groups that are in training and validation then: the split is the caller's word.
    Raises ConfigError where a folder (also that of a class) is missing, is that of no class or is laid out for the other
    [labels] overlap, NotReadyError where there is not one image, or not one with a mask.
    """
    started = time.monotonic()
    group = groups.group_reader(workspace.settings.pool.group_pattern)
    masks = MaskFiles(mask_folder, workspace.label_set, workspace.settings.pool.max_pixels)
    known, source = masks.files, open_source(image_folder)
    counts, problems, passed_over = Counter[str](), {}, 0
    for file in source.files():
        if split is None and PurePosixPath(file.uri).stem not in known:
            passed_over += 1
            continue  # an answer to some of the open queries says nothing about other images
        try:
            pair = _read_pair(workspace, source, file, masks)
            counts[_store(workspace, pair, group(pair.uri), split, annotator)] += 1
        except DataError as error:
            problems[file.uri] = str(error)
    if not counts and not problems and passed_over:
        raise NotReadyError(
            f"none of the {counted(passed_over, 'image')} in {image_folder} has a mask in {mask_folder}: "
            "masks are PNG files named like their images"
        )
    if not counts and not problems:
        raise NotReadyError(f"no images in {image_folder}")
    details = {"unchanged": counts["unchanged"]} | groups.name_and_tell(workspace.database, group) | {"problems": problems}
    return StageReport("dataset import", counts["written"], len(problems), time.monotonic() - started, details)


def _read_pair(workspace: Workspace, source: ImageSource, file: SourceFile, masks: MaskFiles) -> _Pair:
    limits = workspace.settings.pool
    data = source.read(file.uri, max_bytes=limits.max_bytes)
    info = probe(data, max_pixels=limits.max_pixels, policy=workspace.input_policy)
    mask, digest = masks.read(PurePosixPath(file.uri).stem, (info.height, info.width))
    workspace.label_set.check_mask(mask)
    workspace.label_set.require_labelled(mask)
    return _Pair(file.uri, hashlib.sha256(data).hexdigest(), len(data), info, mask, digest)


def _store(workspace: Workspace, pair: _Pair, group: str | None, split: Split | None, annotator: str | None) -> str:
    artifact = workspace.store_mask(pair.mask)
    mask = imports.ImportedMask(artifact.location, artifact.sha256, pair.mask_sha256, annotator)
    file = imports.ImportedFile(pair.uri, pair.sha256, pair.size, pair.info.width, pair.info.height, group)
    with workspace.database.write() as session:
        return imports.take(session, file, mask, workspace.label_set, split=split)
