from __future__ import annotations

from dataclasses import replace

import pytest
from label_studio_sdk.label_interface import LabelInterface

from activeseg.core.labels import LabelSet
from activeseg.errors import LabelStudioError
from activeseg.labelstudio.labeling import (
    classes_unlike,
    config_entropy_map,
    config_labels,
    config_mask_kind,
    config_overlap,
    labeling_config,
)

NAMES = ("sky & <sun>", "a \"quoted\" 'name'", "Fußweg 歩道", "$image", "void")
LABELS = LabelSet(NAMES, tuple((i, 2 * i, 255 - i) for i in range(5)), 4)


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_names_of_any_signs_come_back_in_order(kind):
    xml = labeling_config(LABELS, mask_kind=kind)
    assert config_labels(xml) == list(NAMES)
    assert config_mask_kind(xml) == kind


@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_the_sdk_reads_the_same_labels_and_colours(kind):
    control = LabelInterface(labeling_config(LABELS, mask_kind=kind)).get_control("label")
    assert list(control.labels) == list(NAMES)
    assert control.labels_attrs["Fußweg 歩道"].attr["background"] == "#0204fd"
    assert control.to_name == ["image"]


@pytest.mark.parametrize("overlap", [False, True])
def test_the_screen_says_whether_classes_may_overlap_and_a_project_is_known_by_it(overlap):
    xml = labeling_config(replace(LABELS, overlap=overlap), mask_kind="brush")
    assert config_overlap(xml) is overlap
    assert ("Classes may overlap" in xml) is overlap
    assert config_labels(xml) == list(NAMES)
    assert list(LabelInterface(xml).get_control("label").labels) == list(NAMES)


def test_only_one_tag_has_a_variable_value_so_that_files_can_be_uploaded():
    xml = labeling_config(LABELS, mask_kind="brush")
    named = [line for line in xml.splitlines() if "<Image" in line]
    assert [" value=" in line for line in named] == [True, False]


def test_annotators_are_shown_no_score_rank_or_arm():
    xml = labeling_config(LABELS, mask_kind="brush").lower()
    assert not any(word in xml for word in ("score", "rank", "$arm", "$order", "$key"))


@pytest.mark.parametrize(
    "xml",
    [
        '<View><Image name="i" value="$i"/></View>',
        '<View><RectangleLabels name="label" toName="i"><Label value="a"/></RectangleLabels></View>',
        '<View><BrushLabels name="other" toName="i"><Label value="a"/></BrushLabels></View>',
    ],
)
def test_a_configuration_without_our_control_has_no_labels(xml):
    assert config_labels(xml) == []
    assert config_mask_kind(xml) is None


@pytest.mark.parametrize("xml", ["", "<View>", '<!DOCTYPE a [<!ENTITY b "c">]><View/>'])
def test_a_configuration_that_cannot_be_read_is_an_error(xml):
    with pytest.raises(LabelStudioError, match="labeling configuration"):
        config_labels(xml)


@pytest.mark.parametrize("entropy_map", ["beside", "folded", "none"])
@pytest.mark.parametrize("kind", ["brush", "bitmask"])
def test_where_a_screen_has_the_map_is_read_back_and_a_screen_changed_by_hand_is_nobodys(kind, entropy_map):
    xml = labeling_config(LABELS, mask_kind=kind, entropy_map=entropy_map)
    assert config_entropy_map(xml, LABELS, kind) == entropy_map
    assert config_entropy_map(xml.replace('value="$doubt"', 'value="$hint"'), LABELS, kind) is None
    assert config_entropy_map(xml, replace(LABELS, overlap=True), kind) is None
    assert ("$entropy" in xml) is (entropy_map != "none")
    assert config_labels(xml) == list(NAMES)
    assert list(LabelInterface(xml).get_control("label").labels) == list(NAMES)


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        (["sky", "car"], "missing there: bus; only there: car"),
        (["sky"], "missing there: bus"),
        (["bus", "sky"], "the same classes in another order"),
        ([], "missing there: sky, bus"),
    ],
)
def test_which_classes_of_a_project_differ_is_said_in_words(theirs, told):
    assert classes_unlike(theirs, ("sky", "bus")) == told
