"""Frozen values that cross layers. Nothing here knows a database, a tensor or a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image as stages hand it to the network: its row, where its bytes are and what they hashed to."""

    image_id: int
    uri: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class's share of an image's uncertainty.

    class_index: index in the label set (the value in index masks).
    channel_entropy_sum: sum over valid pixels of -p_c log p_c (of the binary entropy where classes overlap), in nats; over
    all classes these add up to entropy_sum.
    region_pixels: pixels predicted as this class (argmax; p_c > 0.5 where classes overlap).
    region_entropy_sum: sum of the full per-pixel entropy over those pixels, in nats.
    mean_confidence: mean p_c over those pixels; None where the class is predicted nowhere.
    """

    class_index: int
    channel_entropy_sum: float
    region_pixels: int
    region_entropy_sum: float
    mean_confidence: float | None


@dataclass(frozen=True, slots=True)
class ImageScore:
    """All statistics of one image from one forward pass; every score grows with uncertainty.

    entropy_sum: nats, summed over valid pixels (the default acquisition score).
    entropy_mean: entropy_sum / valid_pixels.
    entropy_share: share of valid pixels whose entropy exceeds `core.entropy.SHARE_THRESHOLD` * the largest possible one.
    margin_mean: mean of 1 - (p_first - p_second).
    least_confidence_mean: mean of 1 - p_first.
    grid: row-major regional entropy sums on a `core.entropy.GRID` x `GRID` raster; they add up to entropy_sum.
    bald, tta_jsd: nats, mean over pixels: how far passes with dropout, or over the image flipped and scaled, disagree
    (`core.disagreement`); None where nobody asked.
    feature: what the network sees in the image, packed (`core.embedding`). gradient: how it would change if its prediction
    were right, packed; None where nobody asked.
    """

    image_id: int
    entropy_sum: float
    entropy_mean: float
    valid_pixels: int
    entropy_share: float
    margin_mean: float
    least_confidence_mean: float
    grid: tuple[float, ...]
    classes: tuple[ClassScore, ...]
    bald: float | None = None
    tta_jsd: float | None = None
    feature: bytes | None = None
    gradient: bytes | None = None


STORED: Mapping[str, str] = MappingProxyType(
    {
        "entropy_sum": "entropy_sum",
        "entropy_mean": "entropy_mean",
        "entropy_count": "entropy_share",
        "margin": "margin_mean",
        "least_confidence": "least_confidence_mean",
        "bald": "bald",
        "tta_jsd": "tta_jsd",
    }
)
"""Acquisition functions (`core.acquisition`) that are one number of an ImageScore, and which."""


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """An image that could not be read or decoded, and why: it becomes a quarantine reason."""

    image_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class RankedImage:
    """A row of the ranking: higher score = less sure."""

    image_id: int
    score: float


@dataclass(frozen=True, slots=True)
class QueryItem:
    """An image chosen for annotators.

    rank: 1-based place in the ranking it was chosen from; None where there was no ranking (cold start).
    arm: 'chosen' or 'control'.
    shown_order: 0-based place in which annotators see it; says nothing about rank or arm.
    """

    image_id: int
    rank: int | None
    score: float | None
    arm: str
    shown_order: int
    reason: str


@dataclass(frozen=True, slots=True)
class InputPolicy:
    """How pixels become the network's input. Part of a checkpoint and of a scoring configuration.

    short_side: the shorter side is resized to this many pixels before the network; None keeps the image's own size.
    mean, std: per channel on the 0..1 scale; input = (pixel / 255 - mean) / std. (0.5, 0.5) is pixel / 127.5 - 1.
    reduced: JPEGs at least twice as large as short_side are decoded at a fraction of their size, which changes their pixels
    a little; see `imaging.decode.decode_input`.
    """

    short_side: int | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    reduced: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON form. `reduced` is left out where it is not, so that what older versions scored stays what it was."""
        plain = {"short_side": self.short_side, "mean": list(self.mean), "std": list(self.std)}
        return plain | {"reduced": True} if self.reduced else plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> InputPolicy:
        """Inverse of `as_dict`."""
        mean, std = (tuple(float(v) for v in data[key]) for key in ("mean", "std"))
        return cls(data["short_side"], (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), bool(data.get("reduced", False)))


@dataclass(frozen=True, slots=True)
class ClassMetric:
    """Figures of one class. iou, dice and accuracy are dataset-level, None where the class is absent from the truth.

    smoothed_iou, smoothed_dice: `core.metrics.smoothed`, which an absent class has too; None where not measured.
    """

    class_index: int
    name: str
    iou: float | None
    dice: float | None
    accuracy: float | None
    truth_pixels: int
    smoothed_iou: float | None = None
    smoothed_dice: float | None = None


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage did. Running a stage twice gives `written` = 0 the second time."""

    stage: str
    written: int = 0
    failed: int = 0
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    def sentence(self) -> str:
        """One line for a person: 'score: 120 written, 1 failed in 3.2 s (images_per_second 37.5)'."""
        extra = ", ".join(f"{key} {value}" for key, value in self.details.items() if not isinstance(value, list | dict))
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.stage}: {self.written} written{failed} in {self.seconds:.1f} s" + (f" ({extra})" if extra else "")
