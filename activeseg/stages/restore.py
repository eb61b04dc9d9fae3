"""Exports and COCO files -> images and annotations.

Both are material from outside: what does not fit costs its image, with a reason, and nothing outside of the folder is read.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from activeseg.core.labels import UNLABELED, Mask
from activeseg.db import imports, truth
from activeseg.db.models import Image, ImageStatus, Split
from activeseg.errors import ConfigError, DataError, LabelSetMismatch, NotReadyError
from activeseg.imaging.class_folders import folder_names
from activeseg.imaging.coco_files import CocoFile, parse_coco
from activeseg.imaging.decode import probe
from activeseg.imaging.mask_files import indices_of, planes_of
from activeseg.records import StageReport
from activeseg.storage import manifest
from activeseg.storage.local import path_to_uri
from activeseg.storage.manifest import Entry, Manifest, inside, load_json, read_inside
from activeseg.workspace import Workspace

Progress = Callable[[int, int], None]


def import_from(
    workspace: Workspace,
    source: Path,
    *,
    images: Path | None = None,
    split: Split | None = None,
    query: bool = False,
    uncovered: str | None = None,
    on_progress: Progress | None = None,
) -> StageReport:
    """Import what `activeseg dataset export` wrote (a folder with a manifest), or a COCO file or a folder with one.

    Of an export every image goes to the split it was in, and `split` is for those that were in the pool; a COCO file says
    nothing of splits, so it needs one, or `query` to answer open queries. images: where the COCO file's images lie; by
    default in the folder `images` beside it, or else beside it. uncovered: the class of pixels under no segmentation of a
    COCO file; None: nobody said.
    What does not fit is left out, counted as failed and listed. Raises ConfigError, or LabelSetMismatch, where nothing of it
    can be imported, NotReadyError where it lists no image.
    """
    started = time.monotonic()
    folder = source.parent if source.name == manifest.NAME else source
    work: _Export | _Coco
    if manifest.is_export(folder):
        if images is not None or uncovered is not None or query:
            raise ConfigError(f"{folder} is an export, which says itself where its images are: give --from without --images")
        work = _Export(workspace, folder, split, manifest.read_manifest(folder))
    else:
        if split is None and not query:
            raise ConfigError(f"{source} is no export of activeseg, so it does not say which split it is: add --split")
        file = _coco_file(source)
        document = parse_coco(load_json(file))
        work = _Coco(workspace, images or _images_beside(file), split, _fill(workspace, uncovered), document)
    counts, problems = Counter[str](), dict(work.problems)
    for done, name in enumerate(work.names):
        try:
            counts[work.take(name)] += 1
        except DataError as error:
            problems[name] = str(error)
        if on_progress:
            on_progress(done + 1, len(work.names))
    if not counts and not problems:
        raise NotReadyError(f"{source} lists no images")
    details: dict[str, Any] = {"unchanged": counts["unchanged"], "problems": problems}
    if isinstance(work, _Export) and work.outside_the_pool:
        details["outside_the_pool"] = work.outside_the_pool
    return StageReport("dataset import", counts["written"], len(problems), time.monotonic() - started, details)


def _coco_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise ConfigError(f"{source} does not exist: name a folder that `activeseg dataset export` wrote, or a COCO file")
    if (source / manifest.ANNOTATIONS).is_file():
        return source / manifest.ANNOTATIONS
    found = sorted(path for path in source.iterdir() if path.suffix.lower() == ".json")
    if len(found) != 1:
        raise ConfigError(
            f"{source} holds no {manifest.NAME} of `activeseg dataset export` and {len(found)} JSON files: name the COCO file "
            "itself"
        )
    return found[0]


def _images_beside(file: Path) -> Path:
    return file.parent / "images" if (file.parent / "images").is_dir() else file.parent


def _fill(workspace: Workspace, uncovered: str | None) -> int:
    return UNLABELED if uncovered is None else workspace.label_set.index_of(uncovered)


@dataclass(frozen=True, slots=True)
class _Found:
    """An image of the folder, read and proven to decode."""

    uri: str
    sha256: str
    size_bytes: int
    size: tuple[int, int]


def _read_image(workspace: Workspace, folder: Path, relative: str, sha256: str | None) -> _Found:
    limits = workspace.settings.pool
    data = read_inside(folder, relative, sha256=sha256, max_bytes=limits.max_bytes)
    info = probe(data, max_pixels=limits.max_pixels)
    uri = path_to_uri(str(inside(folder, relative)))
    return _Found(uri, hashlib.sha256(data).hexdigest(), len(data), (info.height, info.width))


def _new_row(found: _Found, split: Split, group: str | None) -> Image:
    return Image(
        uri=found.uri, sha256=found.sha256, size_bytes=found.size_bytes, width=found.size[1], height=found.size[0],
        group_name=group, split=split, status=ImageStatus.ACTIVE,
    )  # fmt: skip


@dataclass
class _Coco:
    """A COCO file that somebody else wrote."""

    workspace: Workspace
    images: Path
    split: Split | None
    fill: int
    document: CocoFile

    @property
    def names(self) -> list[str]:
        return sorted(self.document.images)

    @property
    def problems(self) -> dict[str, str]:
        return dict(self.document.problems)

    def take(self, name: str) -> str:
        """Import one image by its file name. Returns 'written' or 'unchanged'."""
        workspace = self.workspace
        found = _read_image(workspace, self.images, name, None)
        artifact = workspace.store_mask(self.document.mask(name, found.size, workspace.label_set, fill=self.fill))
        with workspace.database.write() as session:
            image = imports.find_image(session, found.uri, found.sha256)
            if image is None:
                if self.split is None:
                    raise DataError("not in the pool: run `activeseg pool sync` first, or name a split")
                image = imports.add_image(session, _new_row(found, self.split, None))
            if self.split is not None:
                imports.move(session, image, self.split)
            if truth.known_import(session, image.id, artifact.sha256):
                return "unchanged"
            mask = imports.ImportedMask(artifact.location, artifact.sha256, artifact.sha256)
            imports.record_mask(session, image, mask, workspace.label_set)
        return "written"


@dataclass
class _Export:
    """A folder that `activeseg dataset export` wrote, or that says so.

    outside_the_pool: images that were in the pool there, and are now although they lie elsewhere: a sync takes them for lost.
    """

    workspace: Workspace
    folder: Path
    split: Split | None
    manifest: Manifest
    entries: dict[str, Entry] = field(init=False)
    problems: dict[str, str] = field(init=False)
    often: Counter[str] = field(init=False)
    contents: dict[str, int] = field(init=False)
    outside_the_pool: int = 0
    _files: dict[str, CocoFile | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        label_set = self.workspace.label_set
        if not self.manifest.label_set.same_masks(label_set):
            raise LabelSetMismatch(
                f"{self.folder} was exported with the classes {self.manifest.label_set.sentence()}, [labels] has "
                f"{label_set.sentence()}: restore {self.manifest.label_set.settings_unlike(label_set)}; its class list is "
                f"{self.folder / manifest.CLASSES}"
            )
        self.problems = dict(self.manifest.problems)
        self.entries = {}
        for entry in self.manifest.entries:
            name = f"{entry.split}/{entry.name}"
            if name in self.entries:
                self.problems[name] = "listed more than once"
            self.entries[name] = entry
        for name in self.problems:
            self.entries.pop(name, None)
        # As it was before: what this import adds has a place of its own.
        with self.workspace.database.read() as session:
            self.contents = imports.contents(session)
        self.often = Counter(entry.sha256 for entry in self.manifest.entries)

    @property
    def names(self) -> list[str]:
        return sorted(self.entries)

    @cached_property
    def _folders(self) -> dict[str, int]:
        return folder_names(self.workspace.label_set, str(self.folder))

    def take(self, name: str) -> str:
        """Import one image by split/name. Returns 'written' or 'unchanged'."""
        entry, workspace = self.entries[name], self.workspace
        found = self._known(entry) if entry.image is None else _read_image(workspace, self.folder, entry.image, entry.sha256)
        if found.size != (entry.height, entry.width):
            raise DataError(f"the manifest says {entry.width}x{entry.height}, the image is {found.size[1]}x{found.size[0]}")
        artifact = workspace.store_mask(self._mask(entry, found.size))
        with workspace.database.write() as session:
            image = self._row(session, entry, found)
            if entry.group is not None and image.group_name is None:
                image.group_name = entry.group
            same = imports.counts_already(session, image, artifact.sha256)
            if same or truth.known_import(session, image.id, artifact.sha256):
                return "unchanged"
            mask = imports.ImportedMask(artifact.location, artifact.sha256, artifact.sha256, entry.annotator)
            imports.record_mask(session, image, mask, workspace.label_set)
        return "written"

    def _row(self, session: Session, entry: Entry, found: _Found) -> Image:
        """The image's row, in its split: the one it was exported from, one of the same content, or a new one."""
        was_in_pool = entry.split == Split.POOL
        split = self.split if was_in_pool and self.split is not None else Split(entry.split)
        image = self._find(session, entry) or imports.find_image(session, found.uri, found.sha256)
        if image is None:
            self.outside_the_pool += split == Split.POOL
            return imports.add_image(session, _new_row(found, split, entry.group))
        if image.status == ImageStatus.MISSING:
            image.status = ImageStatus.ACTIVE  # its bytes were just read
        if not (was_in_pool and self.split is None):
            imports.move(session, image, split)
        return image

    def _find(self, session: Session, entry: Entry) -> Image | None:
        """The image that is known here already: by its place, or by a content that nothing else has."""
        image = imports.find_image(session, entry.uri, entry.sha256)
        if image is not None and image.status == ImageStatus.ACTIVE:
            return image
        known = self.contents.get(entry.sha256) if self.often[entry.sha256] == 1 else None
        return session.get(Image, known) if known is not None else None

    def _known(self, entry: Entry) -> _Found:
        with self.workspace.database.read() as session:
            image = self._find(session, entry)
        if image is None or image.width is None or image.height is None:
            raise DataError(
                "its image is neither in the export nor known here: `activeseg pool sync` first, or export with --images copy"
            )
        return _Found(image.uri, image.sha256, image.size_bytes, (image.height, image.width))

    def _mask(self, entry: Entry, size: tuple[int, int]) -> Mask:
        label_set, limits = self.workspace.label_set, self.workspace.settings.pool
        if self.manifest.layout == "coco":
            return self._coco(entry.split).mask(entry.name, size, label_set, fill=UNLABELED)
        files = {
            path: read_inside(self.folder, path, sha256=sha256, max_bytes=limits.max_bytes)
            for path, sha256 in list(entry.masks.items())[: len(label_set.names) + 1]
        }
        if not label_set.overlap:
            if len(files) != 1:
                raise DataError(f"expected one mask file; the manifest names {len(entry.masks)}")
            ((path, content),) = files.items()
            return indices_of(path, content, size, max_pixels=limits.max_pixels)
        planes: dict[int, tuple[str, bytes]] = {}
        for path, content in files.items():
            index = self._folders.get(Path(path).parent.name)
            if index is None or index in planes:
                raise DataError(f"{path} is in the folder of no class, or of one that has a mask already")
            planes[index] = (path, content)
        if not planes:
            raise DataError("the manifest names no mask file")
        return planes_of(planes, len(label_set.names), size, max_pixels=limits.max_pixels)

    def _coco(self, split: str) -> CocoFile:
        if split not in self._files:
            self._files[split] = self._read_coco(split)
        file = self._files[split]
        if isinstance(file, str):
            raise DataError(file)
        return file

    def _read_coco(self, split: str) -> CocoFile | str:
        """The COCO file of a split, or why there is none: the reason is each of its images' own."""
        relative = f"{split}/{manifest.ANNOTATIONS}"
        try:
            if relative not in self.manifest.files:
                raise DataError(f"the manifest names no {relative}")
            read_inside(self.folder, relative, sha256=self.manifest.files[relative], max_bytes=manifest.MAX_JSON_BYTES)
            return parse_coco(load_json(inside(self.folder, relative)))
        except (DataError, ConfigError) as error:
            return str(error)
