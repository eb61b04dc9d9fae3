"""Label sets: ordered classes with names and colours, and which of them is ignored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from activeseg.errors import ConfigError, MaskError

# Class names are read by commands that see no pixel, and numpy is a fifth of their start: the methods on masks import it.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

UNLABELED = 255
"""Value of a pixel nobody labelled, in index masks and in training targets. Never a class index."""

Mask: TypeAlias = "npt.NDArray[Any]"
"""(H, W) uint8 class indices or, for a label set whose classes overlap, (len(names), H, W) bool planes."""

# A name holds no '#': a mistyped colour must not become part of it.
_LINE = re.compile(r"^(?P<name>[^#\s][^#]*?)(?:\s+#(?P<color>[0-9a-f]{6}))?(?:\s+(?P<ignore>ignore))?$", re.IGNORECASE)

# Golden-angle hues at two lightnesses: neighbours in the list are far apart in colour.
_HUE_STEP = 137.508


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Ordered classes of an index mask: pixel value i means `names[i]`.

    names: unique, at most 255.
    colors: one (r, g, b) per name, 0..255.
    ignore_index: the class that is drawn and stored but neither trained nor counted (void), or None.
    overlap: classes may overlap (multi-label): a pixel may have several or none, and networks have a sigmoid head.

    The network's channels are the classes without the ignored one, in the same order (`channels`).

    A mask is an array (H, W) uint8 of class indices or, where classes overlap, planes (len(names), H, W) bool.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int | None = None
    overlap: bool = False

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            repeated = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ConfigError(f"class names must be unique; repeated: {', '.join(repeated)}")
        padded = [name for name in self.names if not name or name != name.strip()]
        if padded:
            raise ConfigError(f"class names must not be empty or begin or end with spaces; got {padded[0]!r}")
        if len(self.colors) != len(self.names):
            raise ConfigError(f"expected {len(self.names)} colours, one per class; got {len(self.colors)}")
        if self.ignore_index is not None and not 0 <= self.ignore_index < len(self.names):
            raise ConfigError(f"ignore_index {self.ignore_index} is not one of the {len(self.names)} classes")
        least = 1 if self.overlap else 2
        if not least <= len(self.channels) <= UNLABELED - 1:
            raise ConfigError(f"expected {least} to {UNLABELED - 1} classes besides the ignored one; got {len(self.channels)}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Class index of each network channel: all classes but the ignored one."""
        return tuple(i for i in range(len(self.names)) if i != self.ignore_index)

    @property
    def num_classes(self) -> int:
        """Number of network channels C."""
        return len(self.channels)

    @property
    def fingerprint(self) -> str:
        """sha256 over names, colours and ignore_index: equal label sets have equal fingerprints."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def index_of(self, name: str) -> int:
        """Class index of a name. Raises ConfigError naming the known classes."""
        if name not in self.names:
            raise ConfigError(f"unknown class {name!r}; the label set has: {', '.join(self.names)}")
        return self.names.index(name)

    def same_classes(self, other: LabelSet) -> bool:
        """Whether a network for one is a network for the other; colours do not matter."""
        return self.same_masks(other) and self.ignore_index == other.ignore_index

    def same_masks(self, other: LabelSet) -> bool:
        """Whether masks drawn for one mean the same under the other, whichever class is ignored."""
        return (self.names, self.overlap) == (other.names, other.overlap)

    def settings_unlike(self, other: LabelSet) -> str:
        """What in [labels] makes the difference to another label set, for an error message."""
        changed = {
            "the class list": self.names != other.names,
            "[labels] overlap": self.overlap != other.overlap,
            # Taken out as a whole or put back; another class that is ignored is the list's doing.
            "[labels] include_void": (self.ignore_index is None) != (other.ignore_index is None),
        }
        return " and ".join(name for name, differs in changed.items() if differs) or "the class list"

    def sentence(self) -> str:
        """The classes for an error message: 'road, car (void ignored, may overlap)'."""
        ignored = [] if self.ignore_index is None else [f"{self.names[self.ignore_index]} ignored"]
        notes = ", ".join(ignored + (["may overlap"] if self.overlap else []))
        return ", ".join(self.names) + (f" ({notes})" if notes else "")

    def to_channels(self, mask: Mask) -> npt.NDArray[np.uint8]:
        """What the network is trained to say; ignored and unlabelled pixels become UNLABELED.

        Class indices (H, W) -> channel numbers (H, W) uint8. Planes (len(names), H, W) bool -> 0 or 1 for each channel,
        (C, H, W) uint8; UNLABELED in all channels under the ignored class.
        """
        import numpy as np

        if self.overlap:
            targets = mask[list(self.channels)].astype(np.uint8)
            if self.ignore_index is not None:
                targets[:, mask[self.ignore_index].astype(np.bool_)] = UNLABELED
            return targets
        table = np.full(256, UNLABELED, np.uint8)
        table[list(self.channels)] = np.arange(self.num_classes, dtype=np.uint8)
        return table[mask]

    def to_indices(self, channels: Mask) -> Mask:
        """What the network says -> a mask.

        Channel numbers (H, W) uint8 -> class indices (H, W) uint8; UNLABELED stays (inverse of `to_channels`). Where
        classes overlap, (C, H, W) bool -> planes (len(names), H, W) bool; nothing is predicted as the ignored class.
        """
        import numpy as np

        if self.overlap:
            planes = np.zeros((len(self.names), *channels.shape[1:]), np.bool_)
            planes[list(self.channels)] = channels
            return planes
        table = np.full(256, UNLABELED, np.uint8)
        table[: self.num_classes] = self.channels
        return table[channels]

    def check_mask(self, mask: Mask) -> None:
        """Raise MaskError for an array that is no mask of these classes.

        Without overlap: values that are neither a class index nor UNLABELED. With: another shape or dtype than planes.
        """
        import numpy as np

        expected = 3 if self.overlap else 2
        if mask.ndim != expected:
            kind = f"planes ({len(self.names)}, H, W)" if self.overlap else "class indices (H, W)"
            raise MaskError(f"expected {kind}; got an array of shape {mask.shape}: is it a mask of this label set?")
        if self.overlap:
            if mask.dtype != np.bool_ or len(mask) != len(self.names):
                raise MaskError(f"expected planes ({len(self.names)}, H, W) bool; got {mask.shape} {mask.dtype}")
            return
        if mask.dtype == np.uint8 and mask.max(initial=0) < len(self.names):  # the usual case, in a thirtieth of the time
            return
        # bincount does not sort: on 12 megapixels that is most of the time.
        values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        unknown = [int(v) for v in values if v != UNLABELED and v >= len(self.names)]
        if unknown:
            raise MaskError(
                f"mask values {unknown[:5]} are not classes; expected 0..{len(self.names) - 1} "
                f"({self.names[0]} .. {self.names[-1]}) or {UNLABELED} for unlabelled: is it an index mask of this label set?"
            )

    def require_labelled(self, mask: Mask) -> None:
        """Raise MaskError for a mask in which no pixel has a class: nothing can be learned from it, nor judged by it.

        Where classes overlap, an empty mask says that none of them is there.
        """
        if not self.overlap and (mask == UNLABELED).all():
            raise MaskError("no pixel has a class: label what is there, or skip the image")

    def as_dict(self) -> dict[str, Any]:
        """JSON form; `from_dict` reads it back."""
        data = {"names": list(self.names), "colors": [list(c) for c in self.colors], "ignore_index": self.ignore_index}
        # Only where it is true: the fingerprints of label sets made before there was a choice stay what they were.
        return data | ({"overlap": True} if self.overlap else {})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LabelSet:
        """Inverse of `as_dict`."""
        colors = tuple((int(r), int(g), int(b)) for r, g, b in data["colors"])
        return cls(tuple(data["names"]), colors, data["ignore_index"], bool(data.get("overlap", False)))

    def to_text(self) -> str:
        """The text of a class file; `parse_classes` reads it back."""
        lines = []
        for index, (name, (r, g, b)) in enumerate(zip(self.names, self.colors, strict=True)):
            lines.append(f"{name} #{r:02x}{g:02x}{b:02x}" + (" ignore" if index == self.ignore_index else ""))
        return "\n".join(lines) + "\n"


def parse_classes(text: str, *, overlap: bool = False, include_void: bool = False) -> LabelSet:
    """Read a class file: one class a line, `name [#rrggbb] [ignore]`, index = line number from 0.

    overlap: whether the classes may overlap. include_void: the class marked 'ignore' is a class like any other.
    Missing colours are filled with well separated ones.
    Raises ConfigError on an empty list, a repeated name, more than one ignored class, or a mark taken for a name.
    """
    names: list[str] = []
    colors: list[tuple[int, int, int]] = []
    ignored: list[int] = []
    for number, line in enumerate(line.strip() for line in _without_trailing_blanks(text.splitlines())):
        match = _LINE.match(line)
        if match is None:
            raise ConfigError(f"class file line {number + 1}: expected 'name #rrggbb [ignore]', got {line!r}")
        names.append(match["name"])
        colors.append(_parse_color(match["color"]) if match["color"] else _default_color(number))
        if match["ignore"]:
            ignored.append(number)
    if not ignored:
        _refuse_misplaced_mark(names, text.splitlines())
    if len(ignored) > 1:
        raise ConfigError(f"at most one class may be marked 'ignore'; got {[names[i] for i in ignored]}")
    return LabelSet(tuple(names), tuple(colors), None if include_void or not ignored else ignored[0], overlap)


def _refuse_misplaced_mark(names: Iterable[str], lines: list[str]) -> None:
    """Where no class is marked, 'ignore #000000' and 'void ignore #000000' mean the mark; they would be classes to train."""
    for number, name in enumerate(names):
        *before, last = name.split()
        if last.lower() == "ignore":
            raise ConfigError(
                f"class file line {number + 1}: {lines[number].strip()!r} would be a class to train: to leave its pixels out, "
                f"write '{' '.join(before) or 'void'} #000000 ignore', the mark last; else give it another name"
            )


def _without_trailing_blanks(lines: Iterable[str]) -> list[str]:
    kept = list(lines)
    while kept and not kept[-1].strip():
        kept.pop()
    return kept


def _parse_color(text: str) -> tuple[int, int, int]:
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)


def _default_color(index: int) -> tuple[int, int, int]:
    import colorsys

    r, g, b = colorsys.hls_to_rgb(index * _HUE_STEP % 360 / 360, (0.45, 0.65)[index % 2], 0.8)
    return round(r * 255), round(g * 255), round(b * 255)
