"""The labeling configuration: what an annotator's screen shows, and what an existing project's screen asks for.

Where classes may overlap, the screen says so, and the sentence's CSS class is how an existing project is recognised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args
from xml.etree import ElementTree as ET

from activeseg.core.labels import LabelSet
from activeseg.errors import LabelStudioError

MaskKind = Literal["brush", "bitmask"]
EntropyMap = Literal["beside", "folded", "none"]
FOLD_TITLE = "Where the model doubts"
CONTROL, IMAGE, ENTROPY = "label", "image", "entropy"
_TAGS: dict[MaskKind, str] = {"brush": "BrushLabels", "bitmask": "BitmaskLabels"}
_OVERLAP = "activeseg-overlap"
_OVERLAP_HINT = "Classes may overlap: mark each one whole, also where it lies under or on another."
# A flex row collapses to icons in Label Studio; a grid does not. An image list has a pager, useless for a single map. The
# slider for the brush's size would cover the image's right edge. The tools come after the image was fitted to its place, and
# would push its edge out of sight: their place is kept free, and is high enough for them beside a flat image, or they would
# lie on the labels. The prediction's tab would show its score. The button that
# folds the map away stands above it at the right in both states, so that it does not move under the mouse.
_STYLE = """
.activeseg-pair { display: grid; grid-template-columns: 1fr; gap: 40px; padding-right: 36px; }
.activeseg-pair > * { min-width: 0; }
.activeseg-pair [class*="withPagination"] { padding-top: 0; }
.activeseg-pair [class^="pagination"] { display: none; }
.activeseg-pair [class*="wrapperComponent"] { padding-right: 42px; min-height: 264px; }
.activeseg-pair .lsf-toolbar { position: absolute; right: 0; top: 0; margin: 0; }
.activeseg-pair .lsf-tool__controls { left: 100%; right: auto; top: 0; bottom: auto; transform: none; }
.lsf-annotation-button__info span { display: none; }
"""
_FOLDING = """
.activeseg-pair { position: relative; padding-top: 28px; row-gap: 0; }
.activeseg-pair:has([class*="collapse-item-active"]) { grid-template-columns: 1fr 1fr; padding-right: 0; }
.activeseg-map [role="button"] { position: absolute !important; top: 0; right: 48px; padding: 0 0 4px !important; }
.activeseg-map [class*="collapse-item"], .activeseg-map [class*="collapse-content"] { position: static; border: 0; }
.activeseg-map [class*="collapse-content-box"] { padding: 0 !important; }
"""


def labeling_config(label_set: LabelSet, *, mask_kind: MaskKind, entropy_map: EntropyMap = "beside") -> str:
    """XML for a project: the image with its mask, the entropy map beside it, the classes in doubt, the labels.

    entropy_map: 'beside' = a click folds it away and brings it back; 'folded' = the same, but closed when a task opens;
    'none' = no map. Without it the image has the whole width. The map is not labelled. Label Studio gives the labels the
    hotkeys 1-9, 0, q, w, ...
    """
    view = ET.Element("View")
    ET.SubElement(view, "Style").text = _STYLE if entropy_map == "none" else _STYLE + _FOLDING
    pair = ET.SubElement(view, "View", className="activeseg-pair")
    # Fitted to a wide place, a small image would stay zoomed in when folding the map out makes the place narrow.
    zoom = {"zoom": "true", "zoomControl": "true", "defaultZoom": "auto" if entropy_map == "folded" else "fit"}
    image = ET.SubElement(pair, "View")
    ET.SubElement(image, "Image", zoom, name=IMAGE, value=f"${IMAGE}", smoothing="false")
    if entropy_map != "none":
        fold = ET.SubElement(ET.SubElement(pair, "View", className="activeseg-map"), "Collapse", accordion="false")
        fold.set("open", str(entropy_map == "beside").lower())
        # `valueList`, because Label Studio refuses uploads to projects whose configuration has a second `value="$..."`.
        ET.SubElement(ET.SubElement(fold, "Panel", value=FOLD_TITLE), "Image", zoom, name=ENTROPY, valueList=f"${ENTROPY}")
    ET.SubElement(view, "Header", value="$doubt", size="5")
    if label_set.overlap:
        ET.SubElement(ET.SubElement(view, "View", className=_OVERLAP), "Header", value=_OVERLAP_HINT, size="5")
    labels = ET.SubElement(view, _TAGS[mask_kind], name=CONTROL, toName=IMAGE, opacity="0.5")
    for class_name, (r, g, b) in zip(label_set.names, label_set.colors, strict=True):
        ET.SubElement(labels, "Label", value=class_name, background=f"#{r:02x}{g:02x}{b:02x}")
    ET.indent(view)
    return ET.tostring(view, encoding="unicode")


def config_labels(xml: str) -> list[str]:
    """Class names of a labeling configuration, in its order; empty where it has no mask control named `label`."""
    control = _mask_control(xml)
    return [] if control is None else [label.get("value", "") for label in control.iter("Label")]


def classes_unlike(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Which classes of a project differ from ours, in words: with many of them, two long lists do not show it."""
    missing, only = [name for name in ours if name not in theirs], [name for name in theirs if name not in ours]
    parts = [f"{what}: {', '.join(names)}" for what, names in (("missing there", missing), ("only there", only)) if names]
    return "; ".join(parts) or "the same classes in another order"


def config_overlap(xml: str) -> bool:
    """Whether a project's screen tells annotators that classes may overlap."""
    return any(element.get("className") == _OVERLAP for element in _parse(xml).iter())


def config_entropy_map(xml: str, label_set: LabelSet, mask_kind: MaskKind) -> EntropyMap | None:
    """Where a project's screen has the entropy map; None for a screen that is not ours, sign by sign but for spaces."""
    for entropy_map in get_args(EntropyMap):
        if _canonical(labeling_config(label_set, mask_kind=mask_kind, entropy_map=entropy_map)) == _canonical(xml):
            return cast(EntropyMap, entropy_map)
    return None


def config_mask_kind(xml: str) -> MaskKind | None:
    """How a project's masks are drawn; None where it has no mask control named `label`."""
    control = _mask_control(xml)
    return None if control is None else next(kind for kind, tag in _TAGS.items() if control.tag == tag)


def _mask_control(xml: str) -> ET.Element | None:
    elements = (element for element in _parse(xml).iter() if element.tag in _TAGS.values())
    return next((element for element in elements if element.get("name") == CONTROL), None)


def _canonical(xml: str) -> str:
    return ET.canonicalize(ET.tostring(_parse(xml), encoding="unicode"), strip_text=True)


def _parse(xml: str) -> ET.Element:
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise LabelStudioError("the labeling configuration declares XML entities, which it does not need: remove them")
    try:
        return ET.fromstring(xml)
    except ET.ParseError as error:
        raise LabelStudioError(f"the labeling configuration is not XML ({error}): mend it in the project's settings") from error
