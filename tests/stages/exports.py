"""What tests of exports compare: whole trees of files, and the labels a workspace holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from activeseg.core.labels import LabelSet
from activeseg.db import exports
from activeseg.workspace import Workspace


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder below, with the sha256 of the file's bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def labels(workspace: Workspace) -> set[tuple[Any, ...]]:
    """What counts: content of the image, split, group, stored mask, name and order of the classes."""
    with workspace.database.read() as session:
        return {
            (item.image.sha256, item.split, item.group, item.mask_sha256, item.width, item.height)
            for item in exports.counting(session)
        }


def manifest_of(folder: Path) -> Any:
    """The manifest as JSON."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def write_classes(folder: Path, label_set: LabelSet) -> None:
    """A class file for a workspace of other classes than the tests' usual."""
    (folder / "classes.txt").write_text(label_set.to_text(), encoding="utf-8")
