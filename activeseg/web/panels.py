"""What the page of an image shows side by side: image, prediction, entropy map, annotation; and their classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from activeseg.core.bounds import max_entropy
from activeseg.core.class_table import ClassRow, class_table
from activeseg.core.labels import LabelSet, Mask
from activeseg.db.browse import ImageDetail
from activeseg.db.shown import StoredMask, StoredPrediction
from activeseg.errors import ActivesegError
from activeseg.imaging.coloring import SEVERAL_CLASSES, Color, has_several, seen_classes, with_palette
from activeseg.web.pictures import Palette, read_stored, why_no_map
from activeseg.web.render import file_name
from activeseg.workspace import Workspace

NEVER_ASKED = "No prediction is stored: only images that were asked about have one, drawn when their round opens."
UNREADABLE = "It is stored, but cannot be read: see below."
_MOST = 3


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. tail: of its address below the image's, None where there is none. said: under it, or in its place."""

    heading: str
    tail: str | None
    alt: str
    said: str


@dataclass(frozen=True, slots=True)
class ClassLine:
    """A class in the masks. color: '#rrggbb'. Shares and figures are 0..1, None where there is no such."""

    name: str
    color: str
    predicted: float | None = None
    confidence: float | None = None
    annotated: float | None = None
    iou: float | None = None
    dice: float | None = None


@dataclass(frozen=True, slots=True)
class EntropyScale:
    """What the colours of the entropy map mean. upper: nats, the last colour. means: what a pixel of it is."""

    upper: float
    means: str


@dataclass(frozen=True, slots=True)
class Panels:
    """All of it. lines: the classes of the masks, see `class_table`. notes: what the colours do not say by themselves.

    problems: why masks cannot be read.

    predicted, annotated: whether that mask could be read. version: of the model whose confidence the lines hold.
    """

    pictures: list[Panel]
    lines: list[ClassLine]
    notes: list[str]
    problems: list[str]
    scale: EntropyScale | None
    predicted: bool
    annotated: bool
    version: str | None
    palette: Palette


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """A stored mask and its classes in the colours to draw; or why they cannot be had."""

    mask: Mask | None = None
    label_set: LabelSet | None = None
    problem: str = ""


def panels_of(
    workspace: Workspace,
    image: ImageDetail,
    prediction: StoredPrediction | None,
    annotation: StoredMask | None,
    palette: Palette = "labels",
) -> Panels:
    """Read the masks and say what there is. A mask that cannot be read is told in its place; nothing else fails for it."""
    predicted = _read(workspace, prediction.mask if prediction else None, palette)
    annotated = _read(workspace, annotation, palette)
    lines, notes = _lines(predicted, annotated, prediction.confidences if prediction else {})
    has_map = prediction is not None and prediction.entropy_location is not None
    return Panels(
        pictures=list(_pictures(image, prediction, predicted, annotated)),
        lines=lines,
        notes=notes,
        problems=[read.problem for read in (predicted, annotated) if read.problem],
        scale=scale_of(prediction.mask.label_set) if prediction and prediction.mask.label_set and has_map else None,
        predicted=predicted.mask is not None,
        annotated=annotated.mask is not None,
        version=prediction.model_version if prediction else None,
        palette=palette,
    )


def scale_of(label_set: LabelSet) -> EntropyScale:
    """The scale that entropy maps are drawn on: the same in every picture of these classes."""
    count = label_set.num_classes
    upper = max_entropy(count, sigmoid=label_set.overlap)
    if label_set.overlap:
        return EntropyScale(upper, f"{count} log 2, where each of the {count} classes is as likely as not")
    return EntropyScale(upper, f"log {count}, where all {count} classes are equally likely")


def _read(workspace: Workspace, stored: StoredMask | None, palette: Palette) -> _Read:
    if stored is None:
        return _Read()
    try:
        mask, label_set = read_stored(workspace, stored)
    except ActivesegError as error:
        return _Read(problem=str(error))
    return _Read(mask, with_palette(label_set, palette))


def _pictures(image: ImageDetail, prediction: StoredPrediction | None, predicted: _Read, annotated: _Read) -> Iterator[Panel]:
    name = file_name(image.uri)
    if image.status == "active":
        yield Panel("Image", "thumbnail", f"the image {name}", "")
    if prediction is None:
        yield Panel("Prediction", None, "", NEVER_ASKED)
    else:
        by = prediction.model_version or prediction.source
        said = f"by {by}" if prediction.of_champion else f"by {by}, not the champion"
        tail = None if predicted.problem else "prediction"
        yield Panel(
            "Prediction", tail, f"the mask that {by} predicts{_mostly(predicted)}", UNREADABLE if predicted.problem else said
        )
        if prediction.entropy_location is None:
            yield Panel("Entropy", None, "", f"There is no map: {why_no_map(prediction)}.")
        else:
            alt = "the entropy map: blue where the model is sure, red where it is not"
            yield Panel("Entropy", "entropy", alt, "blue: sure, red: unsure")
    if annotated.mask is not None or annotated.problem:
        tail = None if annotated.problem else "annotation"
        yield Panel(
            "Annotation",
            tail,
            f"the mask a person drew{_mostly(annotated)}",
            UNREADABLE if annotated.problem else "it counts today",
        )


def _mostly(read: _Read) -> str:
    """': road 40%, sky 31%', the classes that take most of it, for who cannot see it."""
    if read.mask is None or read.label_set is None:
        return ""
    label_set = read.label_set
    rows = class_table(read.mask, None, label_set)[:_MOST]
    return ": " + ", ".join(f"{label_set.names[row.index]} {row.predicted:.0%}" for row in rows) if rows else ": nothing"


def _lines(predicted: _Read, annotated: _Read, confidences: Mapping[int, float]) -> tuple[list[ClassLine], list[str]]:
    """The lines of both masks, and what is to be said about them."""
    label_set = predicted.label_set or annotated.label_set
    if label_set is None:
        return [], []
    masks = [read.mask for read in (predicted, annotated) if read.mask is not None]
    if (problem := _unlike(predicted, annotated)) is not None:
        apart = (_lines(predicted, _Read(), confidences), _lines(_Read(), annotated, {}))
        return [line for lines, _ in apart for line in lines], [problem, *(note for _, notes in apart for note in notes)]
    rows = class_table(predicted.mask, annotated.mask, label_set)
    named = [_line(row, label_set, confidences) for row in rows]
    # seen_classes names the colour of pixels without a class last, where there are such.
    other = [ClassLine(name, _hex(color)) for name, color in seen_classes(masks, label_set)[len(named) :]]
    return named + other, [f"Where there are {SEVERAL_CLASSES}."] if has_several(masks, label_set) else []


def _unlike(predicted: _Read, annotated: _Read) -> str | None:
    """Why the two masks cannot be compared; None where they can, or there are not two."""
    if predicted.mask is None or annotated.mask is None or predicted.label_set is None or annotated.label_set is None:
        return None
    if not predicted.label_set.same_masks(annotated.label_set):
        return "The two masks are of different class lists, so they are not compared."
    if predicted.mask.shape != annotated.mask.shape:
        return "The two masks are of different sizes, so they are not compared."
    return None


def _line(row: ClassRow, label_set: LabelSet, confidences: Mapping[int, float]) -> ClassLine:
    return ClassLine(
        name=label_set.names[row.index],
        color=_hex(label_set.colors[row.index]),
        predicted=row.predicted,
        confidence=confidences.get(row.index),
        annotated=row.annotated,
        iou=row.iou,
        dice=row.dice,
    )


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
