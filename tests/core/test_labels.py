from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activeseg.core.labels import UNLABELED, LabelSet, parse_classes
from activeseg.errors import ConfigError, MaskError

STREET = "sky #8080ff\nvoid #000000 ignore\nroad #804080\nparked car #ff0000\n"

words = st.text("ab-_9é ", min_size=1, max_size=8).map(str.strip).filter(bool)
names = st.lists(words, min_size=3, max_size=8, unique=True)


def test_a_class_file_gives_names_colours_and_the_ignored_class() -> None:
    label_set = parse_classes(STREET)
    assert label_set.names == ("sky", "void", "road", "parked car")
    assert label_set.colors[2] == (0x80, 0x40, 0x80)
    assert label_set.ignore_index == 1
    assert (label_set.channels, label_set.num_classes) == ((0, 2, 3), 3)
    assert label_set.index_of("parked car") == 3


def test_text_and_json_forms_read_back() -> None:
    label_set = parse_classes(STREET)
    assert label_set.to_text() == STREET
    assert LabelSet.from_dict(label_set.as_dict()) == label_set


@settings(deadline=None, max_examples=50)
@given(names, st.integers(0, 2))
def test_any_label_set_reads_back_from_its_text(class_names: list[str], ignored: int) -> None:
    colors = tuple((i, 2 * i, 255 - i) for i in range(len(class_names)))
    label_set = LabelSet(tuple(class_names), colors, ignored)
    assert parse_classes(label_set.to_text()) == label_set


def test_a_class_may_be_called_ignore() -> None:
    label_set = LabelSet(("ignore", "traffic light", "road"), ((1, 2, 3),) * 3, 1)
    assert parse_classes(label_set.to_text()) == label_set


@pytest.mark.parametrize("line", ["ignore #000000", "Ignore", "void ignore #000000"])
def test_a_mark_that_would_be_a_class_to_train_is_refused_with_the_line_that_was_meant(line: str) -> None:
    with pytest.raises(ConfigError, match=r"line 3: .* write 'void #000000 ignore'"):
        parse_classes(f"sky\nroad #808080\n{line}\n")


@pytest.mark.parametrize("line", ["sky #fff", "sky #80808", "# a comment", "sky#808080", "sky #808080 ignored"])
def test_a_mistyped_mark_is_an_error_and_no_part_of_the_name(line: str) -> None:
    with pytest.raises(ConfigError, match="line 3: expected 'name #rrggbb"):
        parse_classes(f"a\nb\n{line}\n")


@pytest.mark.parametrize("name", ["", " road", "road "])
def test_names_that_a_class_file_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="class names"):
        LabelSet(("sky", name, "car"), ((0, 0, 0),) * 3)


def test_missing_colours_are_filled_with_different_ones() -> None:
    label_set = parse_classes("\n".join(f"class {i}" for i in range(40)))
    assert len(set(label_set.colors)) == 40
    assert all(0 <= value <= 255 for color in label_set.colors for value in color)


def test_trailing_blank_lines_are_no_classes() -> None:
    assert parse_classes("a\nb\n\n  \n").names == ("a", "b")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "2 to"),
        ("only", "2 to"),
        ("a\na\nb", "repeated: a"),
        ("a ignore\nb ignore\nc\nd", "at most one"),
        ("a\n\nb", "line 2"),
        ("\n".join(f"c{i}" for i in range(256)), "2 to 254"),
    ],
)
def test_bad_class_files_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_classes(text)


def test_void_may_be_a_class_like_any_other_beside_a_single_one() -> None:
    label_set = parse_classes("road\nvoid ignore\n", include_void=True)
    assert (label_set.ignore_index, label_set.channels) == (None, (0, 1))
    with pytest.raises(ConfigError, match="2 to"):
        parse_classes("road\nvoid ignore\n")
    assert parse_classes(STREET, include_void=True).names == parse_classes(STREET).names


@pytest.mark.parametrize(
    ("text", "sections", "told"),
    [
        (STREET, {"overlap": True}, "[labels] overlap"),
        (STREET, {"include_void": True}, "[labels] include_void"),
        (STREET, {"overlap": True, "include_void": True}, "[labels] overlap and [labels] include_void"),
        (STREET + "tree\n", {}, "the class list"),
        (STREET.replace(" ignore", "").replace("sky #8080ff", "sky #8080ff ignore"), {}, "the class list"),
    ],
)
def test_what_makes_two_label_sets_differ_has_a_name(text: str, sections: dict[str, bool], told: str) -> None:
    ours, theirs = parse_classes(STREET), parse_classes(text, **sections)
    assert not ours.same_classes(theirs)
    assert ours.settings_unlike(theirs) == theirs.settings_unlike(ours) == told


def test_masks_mean_the_same_whichever_class_is_ignored() -> None:
    ours = parse_classes(STREET)
    assert ours.same_masks(parse_classes(STREET, include_void=True))
    assert not ours.same_masks(parse_classes(STREET, overlap=True))
    assert not ours.same_masks(parse_classes(STREET + "tree\n"))


@pytest.mark.parametrize("ignored", [-1, 3])
def test_the_ignored_class_must_exist(ignored: int) -> None:
    with pytest.raises(ConfigError, match="ignore_index"):
        LabelSet(("a", "b", "c"), ((0, 0, 0),) * 3, ignored)


def test_each_class_has_one_colour() -> None:
    with pytest.raises(ConfigError, match="expected 3 colours"):
        LabelSet(("a", "b", "c"), ((0, 0, 0),) * 2)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'tree'.*sky, void, road"):
        parse_classes(STREET).index_of("tree")


def test_channels_leave_out_the_ignored_class_and_come_back() -> None:
    label_set = parse_classes(STREET)
    mask = np.array([[0, 1, 2], [3, UNLABELED, 0]], np.uint8)
    channels = label_set.to_channels(mask)
    assert channels.dtype == np.uint8
    assert channels.tolist() == [[0, UNLABELED, 1], [2, UNLABELED, 0]]
    assert label_set.to_indices(channels).tolist() == [[0, UNLABELED, 2], [3, UNLABELED, 0]]


def test_without_an_ignored_class_channels_are_indices() -> None:
    label_set = LabelSet(("a", "b", "c"), ((0, 0, 0),) * 3)
    mask = np.array([[0, 1, 2, UNLABELED]], np.uint8)
    assert label_set.to_channels(mask).tolist() == label_set.to_indices(mask).tolist() == mask.tolist()


def test_a_mask_holds_only_classes_and_unlabelled_pixels() -> None:
    label_set = parse_classes(STREET)
    label_set.check_mask(np.array([[0, 1, 2, 3, UNLABELED]], np.uint8))
    with pytest.raises(MaskError, match=r"\[4, 9\].*0\.\.3"):
        label_set.check_mask(np.array([[0, 9, 4]], np.uint8))


def test_the_fingerprint_tells_label_sets_apart() -> None:
    label_set = parse_classes(STREET)
    assert parse_classes(STREET).fingerprint == label_set.fingerprint
    variants = [
        STREET.replace("sky", "Sky"),
        STREET.replace("8080ff", "8080fe"),
        STREET.replace(" ignore", ""),
        "".join(reversed(STREET.splitlines(keepends=True))),
    ]
    assert len({label_set.fingerprint, *(parse_classes(text).fingerprint for text in variants)}) == 5


def overlapping(*, ignore_index: int | None = None) -> LabelSet:
    return LabelSet(("roof", "panel", "void"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)), ignore_index, overlap=True)


def test_planes_become_a_target_for_each_channel_and_come_back():
    planes = np.zeros((3, 2, 2), np.bool_)
    planes[0] = True
    planes[1, 0] = True  # a panel on the roof
    label_set = overlapping()
    targets = label_set.to_channels(planes)
    assert targets.dtype == np.uint8
    assert targets.tolist() == planes.astype(np.uint8).tolist()
    assert np.array_equal(label_set.to_indices(targets.astype(np.bool_)), planes)


def test_pixels_under_the_ignored_plane_train_no_channel():
    planes = np.zeros((3, 1, 3), np.bool_)
    planes[0, 0] = [True, True, False]
    planes[2, 0, 0] = True
    targets = overlapping(ignore_index=2).to_channels(planes)
    assert targets.tolist() == [[[UNLABELED, 1, 0]], [[UNLABELED, 0, 0]]]


@pytest.mark.parametrize(
    ("label_set", "mask"),
    [
        (overlapping(), np.zeros((4, 4), np.uint8)),
        (overlapping(), np.zeros((2, 4, 4), np.bool_)),
        (overlapping(), np.zeros((3, 4, 4), np.uint8)),
        (LabelSet(("a", "b"), ((0, 0, 0), (1, 1, 1))), np.zeros((2, 4, 4), np.bool_)),
    ],
)
def test_a_mask_of_the_other_kind_is_refused(label_set, mask):
    with pytest.raises(MaskError, match="expected"):
        label_set.check_mask(mask)


def test_overlap_is_part_of_what_classes_mean():
    exclusive = LabelSet(("roof", "panel", "void"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
    assert not exclusive.same_classes(overlapping())
    assert exclusive.fingerprint != overlapping().fingerprint
    assert LabelSet.from_dict(overlapping().as_dict()) == overlapping()
    assert "overlap" not in exclusive.as_dict(), "fingerprints of existing databases must not change"


def test_a_single_class_is_enough_where_classes_overlap():
    assert LabelSet(("crack",), ((9, 9, 9),), overlap=True).num_classes == 1
    with pytest.raises(ConfigError, match="expected 2"):
        LabelSet(("crack",), ((9, 9, 9),))


def test_a_mask_without_a_labelled_pixel_is_refused_but_where_classes_overlap() -> None:
    exclusive, overlapping = parse_classes("a\nb\n"), parse_classes("a\nb\n", overlap=True)
    blank = np.full((3, 4), UNLABELED, np.uint8)
    with pytest.raises(MaskError, match="no pixel has a class"):
        exclusive.require_labelled(blank)
    blank[1, 2] = 1
    exclusive.require_labelled(blank)
    overlapping.require_labelled(np.zeros((2, 3, 4), np.bool_))
