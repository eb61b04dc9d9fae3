"""Exports and COCO files -> images and annotations.

Both are material from outside: what does not fit costs its image, with a reason, and nothing outside of the folder is read.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from activeseg.core.labels import UNLABELED, Mask
from activeseg.db import groups, imports
from activeseg.db.groups import GroupReader
from activeseg.db.imports import ImportedFile, ImportedMask
from activeseg.db.models import Image, ImageStatus, Split
from activeseg.errors import ConfigError, DataError, LabelSetMismatch, NotReadyError
from activeseg.imaging.class_folders import folder_names
from activeseg.imaging.coco_files import CocoFile, parse_coco
from activeseg.imaging.mask_files import indices_of, planes_of
from activeseg.imaging.sandbox import probe
from activeseg.records import StageReport
from activeseg.storage import manifest
from activeseg.storage.local import path_to_uri
from activeseg.storage.manifest import Entry, Manifest, inside, load_json, parse_json, read_inside
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
    Nothing is written where a newer mask than an export's counts (`older`), and for images of a COCO file without annotations
    unless the file or `uncovered` says what they mean (`unlabelled`).
    An export says the group (clip, site) of its images; where it says none, and for a COCO file, [pool] group_pattern does.
    What does not fit is left out, counted as failed and listed. Raises ConfigError, or LabelSetMismatch, where nothing of it
    can be imported, NotReadyError where it lists no image.
    """
    started = time.monotonic()
    folder = source.parent if source.name == manifest.NAME else source
    group = groups.group_reader(workspace.settings.pool.group_pattern)
    work: _Export | _Coco
    if manifest.is_export(folder):
        if images is not None or uncovered is not None:
            raise ConfigError(f"{folder} is an export, which says itself where its images are: give --from without --images")
        if query:
            raise ConfigError(f"{folder} is an export, whose images have splits already: give --from without --split query")
        work = _Export(workspace, folder, split, manifest.read_manifest(folder), group)
    else:
        file = _coco_file(source)
        if split is None and not query:
            raise ConfigError(f"{source} is no export of activeseg, so it does not say which split it is: add --split")
        document = parse_coco(load_json(file))
        work = _Coco(workspace, images or _images_beside(file), split, uncovered, document, group)
    counts, problems = work.counts, dict(work.problems)
    for done, name in enumerate(work.names):
        try:
            counts[work.take(name)] += 1
        except DataError as error:
            problems[name] = str(error)
        if on_progress:
            on_progress(done + 1, len(work.names))
    if not work.names and not problems:
        raise NotReadyError(f"{source} lists no images")
    counted = ("older", "unlabelled", "outside_the_pool")
    details: dict[str, Any] = {"unchanged": counts["unchanged"]} | {name: counts[name] for name in counted if counts[name]}
    details |= groups.name_and_tell(workspace.database, group) | {"problems": problems}
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


def _read_image(workspace: Workspace, folder: Path, relative: str, sha256: str | None) -> ImportedFile:
    """An image of the folder, read and proven to decode."""
    limits = workspace.settings.pool
    data = read_inside(folder, relative, sha256=sha256, max_bytes=limits.max_bytes)
    info = probe(data, max_pixels=limits.max_pixels, policy=workspace.input_policy)
    uri = path_to_uri(str(inside(folder, relative)))
    return ImportedFile(uri, hashlib.sha256(data).hexdigest(), len(data), info.width, info.height)


@dataclass
class _Coco:
    """A COCO file that somebody else wrote."""

    workspace: Workspace
    images: Path
    split: Split | None
    uncovered: str | None
    document: CocoFile
    group: GroupReader
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.fill = UNLABELED if self.uncovered is None else self.workspace.label_set.index_of(self.uncovered)

    @property
    def names(self) -> list[str]:
        return sorted(self.document.images)

    @property
    def problems(self) -> Mapping[str, str]:
        return self.document.problems

    def take(self, name: str) -> str:
        """Import one image by its file name. Returns what became of it."""
        workspace = self.workspace
        if not self._says_something(name):
            return "unlabelled"
        file = _read_image(workspace, self.images, name, None)
        size = file.height, file.width
        drawn = self.document.mask(name, size, workspace.label_set, fill=self.fill)
        workspace.label_set.require_labelled(drawn)
        artifact = workspace.store_mask(drawn)
        mask = ImportedMask(artifact.location, artifact.sha256, artifact.sha256)
        with workspace.database.write() as session:
            named = replace(file, group=self.group(file.uri))
            return imports.take(session, named, mask, workspace.label_set, split=self.split)

    def _says_something(self, name: str) -> bool:
        """Whether an image is annotated; one without annotations, by others, may only be one that nobody has looked at."""
        if self.document.images[name].annotated:
            return True
        # It is no answer to a query. Else overlapping classes are all absent, as the format says, and exclusive ones uncovered.
        return self.split is not None and (self.workspace.label_set.overlap or self.uncovered is not None)


@dataclass
class _Export:
    """A folder that `activeseg dataset export` wrote, or that says so.

    counts: `outside_the_pool` are images without a split that are registered although they lie elsewhere.
    """

    workspace: Workspace
    folder: Path
    split: Split | None
    manifest: Manifest
    group: GroupReader
    counts: Counter[str] = field(default_factory=Counter)
    entries: dict[str, Entry] = field(init=False)
    problems: dict[str, str] = field(init=False)
    often: Counter[str] = field(init=False)
    contents: dict[str, int] = field(init=False)
    _file: tuple[str, CocoFile | str] | None = None

    def __post_init__(self) -> None:
        label_set, ours = self.manifest.label_set, self.workspace.label_set
        if not label_set.same_masks(ours):
            raise LabelSetMismatch(
                f"{self.folder} was exported with the classes {label_set.sentence()}, [labels] has {ours.sentence()}: restore "
                f"{label_set.settings_unlike(ours)}; its class list is {self.folder / manifest.CLASSES}"
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
        """Import one image by split/name. Returns what became of it."""
        entry, workspace = self.entries[name], self.workspace
        file = self._known(entry) if entry.image is None else _read_image(workspace, self.folder, entry.image, entry.sha256)
        if (file.width, file.height) != (entry.width, entry.height):
            raise DataError(f"the manifest says {entry.width}x{entry.height}, the image is {file.width}x{file.height}")
        read = self._mask(entry, (file.height, file.width))
        workspace.label_set.require_labelled(read)
        artifact = workspace.store_mask(read)
        drawn = datetime.fromisoformat(entry.updated_at)
        mask = ImportedMask(artifact.location, artifact.sha256, artifact.sha256, entry.annotator, drawn)
        # What had no split keeps none, unless one is named.
        split = self.split if entry.split == Split.POOL and self.split is not None else Split(entry.split)
        with workspace.database.write() as session:
            known = self._find(session, entry) or imports.find_image(session, file.uri, file.sha256)
            named = replace(file, group=self._group(entry, file))
            outcome = imports.take(session, named, mask, workspace.label_set, split=split, known=known)
        self.counts["outside_the_pool"] += known is None and split == Split.POOL
        return outcome

    def _find(self, session: Session, entry: Entry) -> Image | None:
        """The image that is known here already: by its place, or by a content that nothing else has."""
        image = imports.find_image(session, entry.uri, entry.sha256)
        if image is not None and image.status == ImageStatus.ACTIVE:
            return image
        known = self.contents.get(entry.sha256) if self.often[entry.sha256] == 1 else None
        return session.get(Image, known) if known is not None else None

    def _group(self, entry: Entry, file: ImportedFile) -> str | None:
        """As the export says; else as the path says: where the image was registered first, for an export has no folders."""
        return entry.group or self.group(entry.uri) or self.group(file.uri)

    def _known(self, entry: Entry) -> ImportedFile:
        with self.workspace.database.read() as session:
            image = self._find(session, entry)
        if image is None or image.width is None or image.height is None:
            raise DataError(
                "its image is neither in the export nor known here: `activeseg pool sync` first, or export with --images copy"
            )
        return ImportedFile(image.uri, image.sha256, image.size_bytes, image.width, image.height)

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
        """The COCO file of a split. Names come split by split, so that one file at a time is held."""
        if self._file is None or self._file[0] != split:
            self._file = None  # let go of one before the next is read
            self._file = (split, self._read_coco(split))
        file = self._file[1]
        if isinstance(file, str):
            raise DataError(file)
        return file

    def _read_coco(self, split: str) -> CocoFile | str:
        """The COCO file of a split, or why there is none: the reason is each of its images' own."""
        relative = f"{split}/{manifest.ANNOTATIONS}"
        try:
            if relative not in self.manifest.files:
                raise DataError(f"the manifest names no {relative}")
            sha256 = self.manifest.files[relative]
            data = read_inside(self.folder, relative, sha256=sha256, max_bytes=manifest.MAX_JSON_BYTES)
            return parse_coco(parse_json(data, relative))
        except DataError as error:
            return str(error)
