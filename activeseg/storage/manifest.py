"""The manifest of an exported data set: which files lie in its folder, what they hash to, and where they came from.

    DIR/manifest.json
    DIR/classes.txt                       as [labels] file wants it
    DIR/train/images/<name>.<suffix>      the images, as they are
    DIR/train/masks/<name>.png            index masks; where classes overlap, masks/<class>/<name>.png
    DIR/train/annotations.json            with COCO, in place of the masks

What is read here may come from anywhere: a path leads nowhere but into the folder, and a value of another kind than
expected costs its image, not the whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from activeseg.core.labels import LabelSet
from activeseg.errors import ConfigError, DataError

NAME, CLASSES, ANNOTATIONS = "manifest.json", "classes.txt", "annotations.json"
FORMAT, VERSION = "activeseg dataset", 1
LAYOUTS = ("masks", "coco")

MAX_JSON_BYTES = 1 << 30
"""Larger manifests and COCO files are refused: reading one takes several times its size of memory."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPLITS = ("pool", "train", "val", "test")


@dataclass(frozen=True, slots=True)
class Entry:
    """An image and its annotation.

    image: the file inside the folder, None where images were left out; uri: where it was registered; sha256 and size_bytes:
    of its bytes; width, height: upright, in pixels. masks: path inside the folder -> sha256; empty with COCO.
    mask_sha256: of the mask as it is stored. updated_at: when the annotator changed it last, else when it came in.
    """

    image: str | None
    split: str
    uri: str
    sha256: str
    size_bytes: int
    width: int
    height: int
    group: str | None
    source: str
    updated_at: str
    mask_sha256: str
    annotator: str | None = None
    masks: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON form. An annotator who is not told is not there at all."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name != "annotator" or value is not None}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an export holds. files: path -> sha256 of what belongs to no single image; problems: of unusable entries."""

    layout: str
    label_set: LabelSet
    selection: Mapping[str, Any]
    files: Mapping[str, str]
    entries: tuple[Entry, ...]
    problems: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file. Equal manifests give equal bytes."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "layout": self.layout,
            "label_set": self.label_set.as_dict(),
            "selection": dict(self.selection),
            "files": dict(self.files),
            "images": [entry.as_dict() for entry in self.entries],
        }
        return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export of ours, of whatever version."""
    try:
        return _is_ours(load_json(folder / NAME))
    except (DataError, ConfigError):
        return False


def _is_ours(document: Any) -> bool:
    return isinstance(document, dict) and document.get("format") == FORMAT


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export. Raises ConfigError where it is none, or one of a later version."""
    document = load_json(folder / NAME)
    if not _is_ours(document):
        raise ConfigError(f"{folder / NAME} is no manifest of `activeseg dataset export`")
    if document.get("version") != VERSION:
        raise ConfigError(f"{folder / NAME}: expected version {VERSION}, got {document.get('version')!r:.40}: update activeseg")
    layout, images = document.get("layout"), document.get("images")
    if layout not in LAYOUTS or not isinstance(images, list):
        raise ConfigError(f"{folder / NAME} is damaged: expected a layout ({' or '.join(LAYOUTS)}) and a list of images")
    entries: list[Entry] = []
    problems: dict[str, str] = {}
    for number, item in enumerate(images):
        try:
            entries.append(_entry(item))
        except DataError as error:
            problems[f"{NAME} image {number + 1}"] = str(error)
    files = document.get("files")
    return Manifest(layout, _label_set(document, folder), {}, _hashes(files, "files"), tuple(entries), problems)


def load_json(path: Path) -> Any:
    """A JSON file. Raises ConfigError where it is not there or too large, DataError where it is no JSON."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path} is no regular file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size} bytes, more than the {MAX_JSON_BYTES} that are read: split it")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return parse_json(data, str(path))


def parse_json(data: bytes, name: str) -> Any:
    """The JSON of a file of this name. Raises DataError where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is no JSON: {' '.join(str(error).split())[:120]}") from error


def is_unicode(text: str) -> bool:
    """Whether text can be written: JSON may hold halves of characters, which no file name and no column takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_inside(folder: Path, relative: str, *, sha256: str | None, max_bytes: int) -> bytes:
    """The bytes of a file of the folder. Raises DataError where it is outside, gone, too large or not what was exported."""
    path = inside(folder, relative)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{relative} is no regular file")
        if status.st_size > max_bytes:
            raise DataError(f"{relative} has {status.st_size} bytes, more than the {max_bytes} allowed by [pool] max_bytes")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{relative} cannot be read: {error.strerror}") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{relative} changed since it was exported: export again, or import it with --images and --masks")
    return data


def inside(folder: Path, relative: str) -> Path:
    """The path of a file of the folder. Raises DataError for absolute paths, '..' and links that lead out of it."""
    parts = PurePosixPath(relative).parts
    plain = (
        bool(parts) and is_unicode(relative) and not any(part in ("..", "/") or "\\" in part or "\0" in part for part in parts)
    )
    path = Path(os.path.abspath(folder), *parts) if plain else None
    try:
        if path is not None and path.resolve().is_relative_to(folder.resolve()):
            return path
    except OSError as error:  # a name that is too long, links that go round
        raise DataError(f"{relative[:120]!r} cannot be read: {error.strerror}") from error
    raise DataError(f"{relative[:120]!r} is not inside of {folder}: nothing outside of it is read")


def _label_set(document: Mapping[str, Any], folder: Path) -> LabelSet:
    try:
        label_set = LabelSet.from_dict(document["label_set"])
        label_set.to_text().encode()
        return label_set
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder / NAME} is damaged: label_set cannot be read ({ascii(str(error))[:120]})") from error


_KINDS: dict[str, type | tuple[type, ...]] = {
    "image": (str, type(None)), "split": str, "uri": str, "sha256": str, "size_bytes": int, "width": int, "height": int,
    "group": (str, type(None)), "source": str, "updated_at": str, "mask_sha256": str, "annotator": (str, type(None)),
    "masks": dict, "name": str,
}  # fmt: skip


def _entry(item: Any) -> Entry:
    if not isinstance(item, dict):
        raise DataError(f"expected an object; got {type(item).__name__}")
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise DataError("it has halves of characters in it, or lists in lists without end") from error
    values: dict[str, Any] = {known.name: item.get(known.name) for known in fields(Entry)}
    for name, kind in _KINDS.items():
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            raise DataError(f"{name} cannot be {str(values[name])[:60]!r} ({type(values[name]).__name__})")
    for name in ("sha256", "mask_sha256"):
        if not _SHA256.fullmatch(values[name]):
            raise DataError(f"{name} must be 64 hexadecimal digits; got {values[name][:80]!r}")
    if values["split"] not in _SPLITS:
        raise DataError(f"split must be one of {', '.join(_SPLITS)}; got {values['split'][:40]!r}")
    # As long as the columns are: PostgreSQL refuses more.
    for name, limit in (("uri", 2048), ("group", 255), ("annotator", 255)):
        if len(values[name] or "") > limit or "\0" in (values[name] or ""):
            raise DataError(f"{name} is longer than {limit} characters, or has a zero in it")
    return Entry(**values | {"masks": _hashes(values["masks"], "masks"), "updated_at": _moment(values["updated_at"])})


def _moment(text: str) -> str:
    with suppress(ValueError, OverflowError):
        if (moment := datetime.fromisoformat(text)).tzinfo is not None:
            moment.astimezone(UTC)  # fails where no database can hold it
            return text
    raise DataError(f"updated_at must be a time with its zone; got {text[:40]!r}")


def _hashes(value: Any, what: str) -> dict[str, str]:
    sound = isinstance(value, dict) and all(isinstance(sha, str) and _SHA256.fullmatch(sha) for sha in value.values())
    if not sound:
        raise DataError(f"{what} must say the sha256 of each file")
    return dict(value)
