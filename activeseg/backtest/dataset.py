"""The labelled images of a backtest: the pool whose masks only the replayed annotator sees, and the images held out.

    <folder>/classes.txt
    <folder>/pool/images, pool/masks      what strategies choose from; the masks are handed out one query at a time
    <folder>/held/images, held/masks      what every checkpoint is measured on; never in the pool

Files are hard links where the file system can, and copies elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from activeseg.config import Settings
from activeseg.core.labels import UNLABELED, LabelSet, Mask, parse_classes
from activeseg.db.groups import group_reader
from activeseg.errors import ConfigError, DataError
from activeseg.imaging.class_folders import folder_names
from activeseg.imaging.mask_files import MaskFiles
from activeseg.imaging.sandbox import probe
from activeseg.storage.local import LocalSource, uri_to_path
from activeseg.storage.manifest import is_export, read_manifest

PARTS = ("train/images", "train/masks", "val/images", "val/masks")

Progress = Callable[[int, int], None]

HoldOut = Callable[[str], bool]
"""Whether the image of that name is held out."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A labelled image. name: its path in the folder of images. pixels: of each class in its mask, by network channel."""

    name: str
    sha256: str
    mask_sha256: str
    pixels: tuple[int, ...]

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes it the same labelled image anywhere."""
        return self.name, self.sha256, self.mask_sha256


@dataclass(frozen=True)
class ReplayData:
    """What is replayed. folder: absolute, as the URIs of its images begin. pool, held: by name, in order of the names.
    left_out: files without a mask that fits, and why. parts: of `held`, by the folder they come from, where there are two.
    groups: clip or site of the images of the pool that have one."""

    folder: Path
    label_set: LabelSet
    pool: dict[str, Sample]
    held: dict[str, Sample]
    left_out: dict[str, str]
    parts: dict[str, frozenset[str]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)


def prepare(
    source: Path,
    folder: Path,
    settings: Settings,
    *,
    hold_out: HoldOut | None = None,
    with_val: bool = False,
    on_progress: Progress | None = None,
) -> ReplayData:
    """Look through a labelled dataset and lay it out in `folder`; a second call changes nothing.

    source: train/images train/masks classes.txt and, unless `hold_out`, val/images val/masks; masks are index PNGs named like
    their image, or a folder of them for each class where [labels] overlap. hold_out: which training images are held out; val
    is read beside them only `with_val`.

    Every mask is decoded once, so that one that does not fit is known now and not after hours. Nobody may choose an image whose
    copy is held out. Raises ConfigError where parts are missing, two images share a mask, or nothing is left on either side.
    """
    folder = Path(os.path.abspath(folder))  # `absolute()` keeps '..', which the URIs of images have not
    for part in PARTS[: 2 if hold_out and not with_val else 4]:
        if not (source / part).is_dir():
            raise ConfigError(f"{source / part} is missing; expected {', '.join(PARTS)} and classes.txt in {source}")
    text = _classes(source / "classes.txt")
    label_set = parse_classes(text, overlap=settings.labels.overlap, include_void=settings.labels.include_void)
    pool, held = _sides(source, label_set, settings.pool.max_pixels, hold_out, with_val=with_val)
    progress = _Counted(on_progress, len(pool.names) + sum(len(side.names) for side in held.values()))
    left_out: dict[str, str] = {}
    to_choose = pool.read(left_out, progress)
    to_measure = {part: side.read(left_out, progress) for part, side in held.items()}
    measured = dict(sorted((name, sample) for samples in to_measure.values() for name, sample in samples.items()))
    _leave_out_copies(to_choose, measured, left_out)
    for samples, purpose in ((to_choose, "to choose from"), *((of, "to measure on") for of in to_measure.values())):
        if not samples:
            because = f"; {len(left_out)} were left out, such as: {next(iter(left_out.values()))}" if left_out else ""
            raise ConfigError(f"{source}: no labelled image is left {purpose}{because}")
    _lay_out(folder / "pool", [(pool, to_choose)], label_set)
    _lay_out(folder / "held", [(held[part], samples) for part, samples in to_measure.items()], label_set)
    _replace(folder / "classes.txt", text.encode())
    parts = {part: frozenset(samples) for part, samples in to_measure.items()} if len(to_measure) > 1 else {}
    return ReplayData(folder, label_set, to_choose, measured, left_out, parts, _groups(source, to_choose, settings))


def _groups(source: Path, names: Iterable[str], settings: Settings) -> dict[str, str]:
    """Clip or site by name: as the export says that `source` is, else as [pool] group_pattern finds it in the name. What lies
    above that says nothing: `train/images` would be one clip for a pattern that takes the folder."""
    group, prefix = group_reader(settings.pool.group_pattern), "train/images/"
    entries = read_manifest(source).entries if is_export(source) else ()
    exported = {entry.image.removeprefix(prefix): entry.group for entry in entries if entry.image}
    found = {name: exported.get(name) or group(name) for name in names}
    return {name: group for name, group in found.items() if group is not None}


def _leave_out_copies(pool: dict[str, Sample], held: dict[str, Sample], left_out: dict[str, str]) -> None:
    """Take out of the pool what is held out, too: measured on what it was trained on, a network looks better than it is."""
    names = {sample.sha256: name for name, sample in held.items()}
    for name, sample in list(pool.items()):
        if sample.sha256 in names:
            left_out[name] = f"the same image is held out as {names[sample.sha256]}"
            del pool[name]


def _sides(
    source: Path, label_set: LabelSet, max_pixels: int, hold_out: HoldOut | None, *, with_val: bool
) -> tuple[_Side, dict[str, _Side]]:
    """What is chosen from, and what is held out, by the folder it lies in."""
    pool = _Side(source / "train", label_set, max_pixels)
    held = {}
    if hold_out is not None:
        matching = {name for name in pool.names if hold_out(name)}
        pool, held["train"] = pool.only(set(pool.names) - matching), pool.only(matching)
    if hold_out is None or with_val:
        held["val"] = _Side(source / "val", label_set, max_pixels)
    stems = Counter(path.stem for side in held.values() for path in side.names.values())
    if twins := [stem for stem, count in stems.items() if count > 1]:
        raise ConfigError(f"{source}: an image held out of train and one of val are both called {twins[0]!r}; rename one")
    return pool, held


@dataclass
class _Counted:
    """Tells how many of the images were looked at."""

    on_progress: Progress | None
    planned: int
    done: int = 0

    def __call__(self) -> None:
        self.done += 1
        if self.on_progress:
            self.on_progress(self.done, self.planned)


def _classes(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"class list {file} cannot be read: {error}") from error


def matching(expression: str) -> HoldOut:
    """Holds out the images whose path the regular expression matches somewhere. Raises ConfigError where it is none."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ConfigError(f"--hold-out {expression!r} is not a regular expression: {error}") from error
    return lambda name: pattern.search(name) is not None


class _Side:
    """A folder with images/ and masks/, or some of its images."""

    def __init__(self, folder: Path, label_set: LabelSet, max_pixels: int) -> None:
        self.masks = MaskFiles(folder / "masks", label_set, max_pixels)
        self.label_set, self.max_pixels = label_set, max_pixels
        source = LocalSource(Path(os.path.abspath(folder / "images")))
        paths = [uri_to_path(file.uri) for file in source.files()]
        self.names = {path.relative_to(source.root).as_posix(): path for path in paths}
        twins = [stem for stem, count in Counter(path.stem for path in paths).items() if count > 1]
        if twins:
            raise ConfigError(f"{source.root}: two images are called {twins[0]!r} and would share a mask; rename one")

    def only(self, names: set[str]) -> _Side:
        """The same folder with these images."""
        some = copy(self)
        some.names = {name: path for name, path in self.names.items() if name in names}
        return some

    def read(self, left_out: dict[str, str], progress: Callable[[], None]) -> dict[str, Sample]:
        """The images whose masks fit; of the others, why not goes into `left_out`."""
        samples: dict[str, Sample] = {}
        for name in self.names:
            try:
                samples[name] = self._check(name)
            except (DataError, OSError) as error:
                left_out[name] = str(error)
            progress()
        return samples

    def _check(self, name: str) -> Sample:
        """An image with its mask, both read. Raises DataError where they do not fit."""
        data = self.names[name].read_bytes()
        info = probe(data, max_pixels=self.max_pixels)
        mask, digest = self.masks.read(self.names[name].stem, (info.height, info.width))
        self.label_set.check_mask(mask)
        self.label_set.require_labelled(mask)
        return Sample(name, hashlib.sha256(data).hexdigest(), digest, class_pixels(mask, self.label_set))

    def files(self, samples: Iterable[str]) -> Iterator[tuple[str, Path]]:
        """The files of these images and of their masks, and where they lie beside each other."""
        for name in samples:
            yield f"images/{name}", self.names[name]
            for path in self.masks.files[self.names[name].stem].values():
                yield f"masks/{path.relative_to(self.masks.folder).as_posix()}", path


def _lay_out(target: Path, sides: Iterable[tuple[_Side, Iterable[str]]], label_set: LabelSet) -> None:
    """Make `target` hold exactly these images of these folders, and their masks."""
    wanted = {relative: path for side, samples in sides for relative, path in side.files(samples)}
    (target / "images").mkdir(parents=True, exist_ok=True)
    (target / "masks").mkdir(parents=True, exist_ok=True)
    if label_set.overlap:
        make_class_folders(target / "masks", label_set)
    for path in _files(target):
        if path.relative_to(target).as_posix() not in wanted:
            path.unlink()
    for relative, path in wanted.items():
        link(path, target / relative)


def class_pixels(mask: Mask, label_set: LabelSet) -> tuple[int, ...]:
    """Labelled pixels of each network channel in a mask."""
    channels = label_set.to_channels(mask)
    if label_set.overlap:
        return tuple(int(np.count_nonzero(plane == 1)) for plane in channels)
    counts = np.bincount(channels[channels != UNLABELED].ravel(), minlength=label_set.num_classes)
    return tuple(counts.tolist())


def make_class_folders(folder: Path, label_set: LabelSet) -> None:
    """A folder for each class, empty where no image has it."""
    for name in folder_names(label_set, str(folder)):
        (folder / name).mkdir(parents=True, exist_ok=True)


def link(source: Path, target: Path) -> None:
    """Make `target` the file `source`: a hard link where that can be, else a copy. Whoever is killed leaves no half file."""
    if target.exists() and (target.samefile(source) or target.read_bytes() == source.read_bytes()):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), partial)
    except OSError:  # another disk, another owner
        shutil.copyfile(source, partial)
    partial.replace(target)
    partial.unlink(missing_ok=True)  # to rename a link to the same file does nothing


def _replace(file: Path, data: bytes) -> None:
    if not file.exists() or file.read_bytes() != data:
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(file)


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file())
