"""annotations -> a folder of images, masks or COCO files, classes and a manifest: the labels for other tools, or for another
workspace.

The same rows and files give the same bytes, whatever the time, the folder's name or the database.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from activeseg.core.labels import LabelSet, Mask
from activeseg.db import exports
from activeseg.db.exports import LabelledImage
from activeseg.db.models import ImageStatus, LabelSetRow, Split
from activeseg.errors import ConfigError, DataError, ImageError, LabelSetMismatch, MaskError, NotReadyError
from activeseg.imaging.class_folders import folder_names
from activeseg.imaging.coco_files import CocoWriter
from activeseg.imaging.masks import decode_mask, decode_planes, encode_plane
from activeseg.records import StageReport
from activeseg.storage import manifest
from activeseg.storage.export_names import export_names
from activeseg.storage.folders import check_new, new_folder
from activeseg.storage.local import uri_to_path
from activeseg.storage.manifest import Entry, Manifest
from activeseg.workspace import Workspace

Layout = Literal["masks", "coco"]
Images = Literal["link", "copy", "none"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    splits: only these; empty: all. training_run: what this run saw; as_of: what counted at this aware time; neither: what
    counts today. images: 'link' makes hard links where the file system can, and copies elsewhere. annotators: tell who drew.
    """

    layout: Layout = "masks"
    splits: tuple[Split, ...] = ()
    training_run: int | None = None
    as_of: datetime | None = None
    images: Images = "link"
    annotators: bool = False

    def __post_init__(self) -> None:
        if self.training_run is not None and self.as_of is not None:
            raise ConfigError("a training run and a time were named: give one of them")
        if self.as_of is not None and self.as_of.tzinfo is None:
            raise ConfigError(f"{self.as_of.isoformat()} has no time zone: add one, as in {self.as_of.isoformat()}Z for UTC")
        if self.as_of is not None and self.as_of > datetime.now(UTC):
            raise ConfigError(f"{self.as_of.isoformat()} is yet to come: what will count then cannot be exported")

    def selection(self) -> dict[str, Any]:
        """For the manifest."""
        splits = {"splits": sorted(split.value for split in self.splits)} if self.splits else {}
        if self.training_run is not None:
            return {"training_run": self.training_run} | splits
        return {"as_of": self.as_of.astimezone(UTC).isoformat() if self.as_of else "today"} | splits


def export_dataset(
    workspace: Workspace, folder: Path, request: ExportRequest, *, on_progress: Progress | None = None
) -> StageReport:
    """Write an export to `folder`, which must not be there yet or be empty.

    Written beside and renamed at the end, so that whoever is killed leaves nothing that looks like an export. An image whose
    file is gone or changed, or whose mask cannot be read, is left out, counted as failed and listed with its reason.
    Raises ConfigError where the folder cannot be taken, NotReadyError where there is nothing to export, LabelSetMismatch where
    the masks were drawn for different classes.
    """
    started = time.monotonic()
    _refuse_inside(workspace, folder)
    check_new(Path(os.path.realpath(folder)))
    chosen, label_set, details = _choose(workspace, request)
    with new_folder(folder) as partial:
        writer = _Writer(workspace, partial, label_set, request)
        problems = writer.write(chosen, on_progress)
    details |= {"splits": writer.counts, "copied": writer.copied, "problems": problems}
    return StageReport("dataset export", len(writer.entries), len(problems), time.monotonic() - started, details)


def _choose(workspace: Workspace, request: ExportRequest) -> tuple[list[LabelledImage], LabelSet, dict[str, Any]]:
    details: dict[str, Any] = {}
    with workspace.database.read() as session:
        if request.training_run is not None:
            run = exports.require_training(session, request.training_run)
            found = exports.seen_by(session, run)
            if "validation" not in run.configuration:
                details["validation"] = "not recorded by this training"
        elif request.as_of is not None:
            found = exports.counted_at(session, request.as_of)
        else:
            everything = exports.counting(session)
            # What a file held before it was replaced counts nowhere any more.
            found = [item for item in everything if item.status != ImageStatus.SUPERSEDED]
            details["superseded"] = len(everything) - len(found)
        chosen = [item for item in found if not request.splits or item.split in request.splits]
        if not chosen:
            wanted = f" in {', '.join(request.splits)}" if request.splits else ""
            raise NotReadyError(f"nothing to export: no annotation counts{wanted}; `activeseg status` shows what there is")
        rows = {number: session.get_one(LabelSetRow, number) for number in sorted({item.label_set_id for item in chosen})}
        sets = [LabelSet.from_dict(row.definition) for row in rows.values()]
    return chosen, _common_label_set(sets, workspace.label_set), details


def _common_label_set(drawn_for: Sequence[LabelSet], configured: LabelSet) -> LabelSet:
    """The configured classes where the masks fit them, else those the masks were drawn for."""
    label_set = configured if drawn_for[-1].same_masks(configured) else drawn_for[-1]
    for other in drawn_for:
        if not other.same_masks(label_set):
            raise LabelSetMismatch(
                f"some masks were drawn for the classes {other.sentence()}, others for {label_set.sentence()}: an export has "
                "one class list; export by --training-run, or by --as-of a time before the classes changed"
            )
    return label_set


def _refuse_inside(workspace: Workspace, folder: Path) -> None:
    uri = workspace.settings.images_uri
    if "://" not in uri or uri.startswith("file://"):
        pool = os.path.realpath(uri_to_path(uri))
        if _is_inside(folder, pool):
            raise ConfigError(f"{folder} is in the pool {pool}, which would take its images for new ones: name another folder")
    artifacts = os.path.realpath(workspace.settings.path(workspace.settings.artifacts.dir))
    if _is_inside(folder, artifacts):
        raise ConfigError(
            f"{folder} is in the artifacts folder {artifacts}, which is not to hold other files: name another folder"
        )


def _is_inside(folder: Path, outer: str) -> bool:
    return os.path.commonpath((outer, os.path.realpath(folder))) == outer


@dataclass
class _Writer:
    """Writes one export."""

    workspace: Workspace
    root: Path
    label_set: LabelSet
    request: ExportRequest
    entries: list[Entry] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    copied: int = 0

    def write(self, chosen: Sequence[LabelledImage], on_progress: Progress | None) -> dict[str, str]:
        """All splits, the classes and last of all the manifest. Returns uri -> reason for what was left out."""
        problems: dict[str, str] = {}
        names = export_names([(item.split.value, item.image.uri, item.image.sha256) for item in chosen], self._pool)
        order = sorted(zip(names, chosen, strict=True), key=lambda pair: (pair[1].split.value, pair[0]))
        with ExitStack() as open_files:
            coco: dict[Split, CocoWriter] = {}
            for done, (name, item) in enumerate(order):
                try:
                    self._one(name, item, coco, open_files)
                except DataError as error:
                    # A file that was replaced has several rows.
                    uri = item.image.uri
                    problems[uri if uri not in problems else f"{uri} ({item.image.sha256[:12]})"] = str(error)
                if on_progress:
                    on_progress(done + 1, len(order))
            for writer in coco.values():
                writer.close()
        self._finish(sorted(coco))
        return problems

    @property
    def _pool(self) -> str:
        return self.workspace.settings.images_uri.rstrip("/") + "/"

    def _one(self, name: str, item: LabelledImage, coco: dict[Split, CocoWriter], open_files: ExitStack) -> None:
        data = self._read_image(item)
        stored = self.workspace.artifacts.read(item.mask_location, sha256=item.mask_sha256)
        mask = self._decode_mask(stored, item)
        image, masks = f"{item.split.value}/images/{name}", {}
        if self.request.images != "none":
            self._put_image(image, item.image.uri, data)
        if self.request.layout == "masks":
            masks = self._put_masks(f"{item.split.value}/masks", Path(name).stem + ".png", mask, stored)
        else:
            if item.split not in coco:
                coco[item.split] = CocoWriter(open_files.enter_context(self._coco_file(item.split)), self.label_set)
            coco[item.split].add(name, mask)
            self._check_size(item.split)
        self.counts[item.split.value] = self.counts.get(item.split.value, 0) + 1
        entry = Entry(
            image=None if self.request.images == "none" else image,
            name=name,
            split=item.split.value,
            uri=item.image.uri,
            sha256=item.image.sha256,
            size_bytes=len(data),
            width=mask.shape[-1],
            height=mask.shape[-2],
            group=item.group,
            source=item.source,
            updated_at=item.updated_at.astimezone(UTC).isoformat(timespec="microseconds"),
            mask_sha256=item.mask_sha256,
            annotator=item.annotator if self.request.annotators else None,
            masks=masks,
        )
        self.entries.append(entry)

    def _read_image(self, item: LabelledImage) -> bytes:
        today = self.request.training_run is None and self.request.as_of is None
        if today and item.status == ImageStatus.MISSING:
            raise ImageError("its file was gone at the last sync: put it back and run `activeseg pool sync`")
        if today and item.status == ImageStatus.QUARANTINED:
            raise ImageError(f"the image is set aside: {item.reason}")
        return self.workspace.read_bytes(item.image)

    def _decode_mask(self, data: bytes, item: LabelledImage) -> Mask:
        # Not Workspace.read_mask: these masks may be older than the configured classes, and their bytes are needed as well.
        limit = self.workspace.settings.pool.max_pixels
        overlap, count = self.label_set.overlap, len(self.label_set.names)
        mask = decode_planes(data, count, max_pixels=limit) if overlap else decode_mask(data, max_pixels=limit)
        self.label_set.check_mask(mask)
        if mask.shape[-2:] != (item.height, item.width):
            raise MaskError(f"its mask is {mask.shape[-1]}x{mask.shape[-2]}, the image {item.width}x{item.height}")
        return mask

    def _put_image(self, relative: str, uri: str, data: bytes) -> None:
        target = self._path(relative)
        if self.request.images == "link" and ("://" not in uri or uri.startswith("file://")):
            try:
                # A hard link is the file itself: it is read like any other, also where the export was moved to.
                os.link(os.path.realpath(uri_to_path(uri)), target)
            except OSError:
                pass  # another disk, another owner: a copy then
            else:
                return
        target.write_bytes(data)
        self.copied += 1

    def _put_masks(self, folder: str, name: str, mask: Mask, stored: bytes) -> dict[str, str]:
        if not self.label_set.overlap:
            return self._put(f"{folder}/{name}", stored)
        folders = _folders(self.label_set)
        for class_folder in folders:
            (self.root / folder / class_folder).mkdir(parents=True, exist_ok=True)
        written: dict[str, str] = {}
        for class_folder, index in folders.items():
            if mask[index].any():
                written |= self._put(f"{folder}/{class_folder}/{name}", encode_plane(mask[index]))
        if not written:  # an all-0 mask says that the image has none of the classes
            written = self._put(f"{folder}/{next(iter(folders))}/{name}", encode_plane(np.zeros(mask.shape[-2:], np.bool_)))
        return written

    def _coco_file(self, split: Split) -> TextIO:
        return self._path(f"{split.value}/{manifest.ANNOTATIONS}").open("w", encoding="utf-8", newline="\n")

    def _check_size(self, split: Split) -> None:
        """Raise ConfigError for a COCO file that no import would read."""
        path = self.root / f"{split.value}/{manifest.ANNOTATIONS}"
        if path.stat().st_size > manifest.MAX_JSON_BYTES:
            raise ConfigError(
                f"the COCO file of {split.value!r} has more than the {manifest.MAX_JSON_BYTES} bytes that an import reads: "
                "export with --format masks"
            )

    def _finish(self, coco_splits: Sequence[Split]) -> None:
        for split in coco_splits:
            self._check_size(split)
            relative = f"{split.value}/{manifest.ANNOTATIONS}"
            with (self.root / relative).open("rb") as stream:
                self.files[relative] = hashlib.file_digest(stream, "sha256").hexdigest()
        self.files |= self._put(manifest.CLASSES, self.label_set.to_text().encode())
        document = Manifest(self.request.layout, self.label_set, self.request.selection(), self.files, tuple(self.entries))
        self._put(manifest.NAME, document.to_bytes())

    def _put(self, relative: str, data: bytes) -> dict[str, str]:
        self._path(relative).write_bytes(data)
        return {relative: hashlib.sha256(data).hexdigest()}

    def _path(self, relative: str) -> Path:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _folders(label_set: LabelSet) -> dict[str, int]:
    names = folder_names(label_set, "export")
    hidden = [name for name in names if name.startswith(".")]
    if hidden:
        raise ConfigError(f"class {hidden[0]!r} cannot have a folder, because its name begins with a dot: export --format coco")
    return names
