"""A folder of masks for each class, where classes overlap: which folder is which class's."""

from __future__ import annotations

from pathlib import Path

from activeseg.core.labels import LabelSet
from activeseg.errors import ConfigError


def class_folders(folder: Path, label_set: LabelSet) -> dict[int, Path]:
    """Class index -> its folder in `folder`. A slash in a name, which no folder can have, is an underscore there.

    Folders whose names begin with a dot do not count; the ignored class needs none.
    Raises ConfigError where two classes would share a folder, where a folder is that of no class, and where a class has
    none: a class that was misspelt would else be nowhere, without a word.
    """
    known = folder_names(label_set, f"mask folder {folder}")
    if not folder.is_dir():
        raise ConfigError(f"mask folder {folder} does not exist")
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    unknown = [name for name in found if name not in known]
    if unknown or not found:
        raise ConfigError(
            f"mask folder {folder}: expected a folder of masks for each class ({', '.join(known)}), because [labels] "
            f"overlap is on; got {', '.join(unknown) or 'none'}"
        )
    missing = [name for name, index in known.items() if name not in found and index != label_set.ignore_index]
    if missing:
        raise ConfigError(
            f"mask folder {folder} has no folder {', '.join(missing)}: make an empty one for a class that is in none of the "
            "images"
        )
    return {known[name]: path for name, path in found.items()}


def png_masks(folder: Path) -> dict[str, Path]:
    """The PNG files in a folder by their stems, however the ending is written."""
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".png"}


def folder_names(label_set: LabelSet, what: str) -> dict[str, int]:
    """Folder name -> class index. Raises ConfigError, beginning with `what`, where two classes would share one."""
    known: dict[str, int] = {}
    for index, name in enumerate(label_set.names):
        other = known.setdefault(name.replace("/", "_"), index)
        if other != index:
            raise ConfigError(
                f"{what}: the classes {label_set.names[other]!r} and {name!r} would share a folder, because a "
                "slash is an underscore in its name; rename one in the class list"
            )
    return known
