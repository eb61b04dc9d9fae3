"""The labeling configuration: what an annotator's screen shows, and what an existing project's screen asks for.

Where classes may overlap, the screen says so, and the sentence's CSS class is how an existing project is recognised.
"""

from __future__ import annotations

from typing import Literal
from xml.etree import ElementTree as ET

from activeseg.core.labels import LabelSet
from activeseg.errors import LabelStudioError

MaskKind = Literal["brush", "bitmask"]
CONTROL, IMAGE, ENTROPY = "label", "image", "entropy"
_TAGS: dict[MaskKind, str] = {"brush": "BrushLabels", "bitmask": "BitmaskLabels"}
_OVERLAP = "activeseg-overlap"
_OVERLAP_HINT = "Classes may overlap: mark each one whole, also where it lies under or on another."
# A flex row collapses to icons in Label Studio; a grid does not. An image list has a pager, useless for a single map. The
# slider for the brush's size would cover the image's right edge. The prediction's tab would show its score.
_STYLE = """
.activeseg-pair { display: grid; grid-template-columns: 1fr 1fr; gap: 40px; }
.activeseg-pair > * { min-width: 0; }
.activeseg-pair [class*="withPagination"] { padding-top: 0; }
.activeseg-pair [class^="pagination"] { display: none; }
.activeseg-pair .lsf-tool__controls { left: 100%; right: auto; }
.lsf-annotation-button__info span { display: none; }
"""


def labeling_config(label_set: LabelSet, *, mask_kind: MaskKind) -> str:
    """XML for a project: the image with its mask and the entropy map side by side, the classes in doubt, the labels.

    The second image is not labelled. Label Studio gives the labels the hotkeys 1-9, 0, q, w, ...
    """
    view = ET.Element("View")
    ET.SubElement(view, "Style").text = _STYLE
    grid = ET.SubElement(view, "View", className="activeseg-pair")
    cell = ET.SubElement(grid, "View")
    ET.SubElement(cell, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true", zoomControl="true", smoothing="false")
    # `valueList`, because Label Studio refuses uploads to projects whose configuration has a second `value="$..."`.
    cell = ET.SubElement(grid, "View")
    ET.SubElement(cell, "Image", name=ENTROPY, valueList=f"${ENTROPY}", zoom="true", zoomControl="true")
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


def config_overlap(xml: str) -> bool:
    """Whether a project's screen tells annotators that classes may overlap."""
    return any(element.get("className") == _OVERLAP for element in _parse(xml).iter())


def config_mask_kind(xml: str) -> MaskKind | None:
    """How a project's masks are drawn; None where it has no mask control named `label`."""
    control = _mask_control(xml)
    return None if control is None else next(kind for kind, tag in _TAGS.items() if control.tag == tag)


def _mask_control(xml: str) -> ET.Element | None:
    elements = (element for element in _parse(xml).iter() if element.tag in _TAGS.values())
    return next((element for element in elements if element.get("name") == CONTROL), None)


def _parse(xml: str) -> ET.Element:
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise LabelStudioError("the labeling configuration declares XML entities, which it does not need: remove them")
    try:
        return ET.fromstring(xml)
    except ET.ParseError as error:
        raise LabelStudioError(f"the labeling configuration is not XML ({error}): mend it in the project's settings") from error
