"""First masks by a classifier: the right object, or none with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.db import images, labeling, lease
from activeseg.db.models import Image
from activeseg.errors import ConfigError
from activeseg.preannotate import map_categories, pre_annotate_and_store
from activeseg.records import ImageRef
from activeseg.stages.pool import sync_pool
from activeseg.workspace import Workspace
from tests.classifiers import annotator_of, redness

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow

Make = Callable[..., Workspace]
LABELS = LabelSet(("Sky", "ball", "void"), ((0, 0, 0),) * 3, 2)


def refs_of(workspace: Workspace) -> list[ImageRef]:
    with lease.holding(workspace.database):
        sync_pool(workspace)
    with workspace.database.read() as session:
        return list(images.refs(session, list(session.scalars(sa.select(Image.id).order_by(Image.uri)))).values())


@pytest.mark.parametrize("overlap", [False, True])
def test_the_object_is_outlined_and_nothing_is_said_of_the_rest(
    make_sqlite_workspace: Make, tmp_path: Path, overlap: bool
) -> None:
    workspace = make_sqlite_workspace(pool=8, labels={"overlap": overlap})
    annotator, refs = annotator_of(workspace), refs_of(workspace)
    assert pre_annotate_and_store(workspace, annotator, refs) == ({}, {})
    with workspace.database.read() as session:
        stored = labeling.predictions_of(session, annotator.source, [ref.image_id for ref in refs])
    ious = []
    for ref in refs:
        mask = workspace.read_mask(stored[ref.image_id].mask_location, stored[ref.image_id].mask_sha256)
        ball = np.asarray(Pillow.open(tmp_path / "truth" / Path(ref.uri).name)) == 2
        drawn = mask[2] if overlap else mask == 2
        ious.append((drawn & ball).sum() / (drawn | ball).sum())
        rest = mask[[0, 1, 3]] if overlap else mask[~drawn]
        assert not rest.any() if overlap else (rest == UNLABELED).all()
    assert np.median(ious) > 0.8, ious


def test_an_image_without_a_class_or_an_object_gets_no_mask_but_a_reason(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=2)
    for name, color in (("pale", (90, 90, 90)), ("red", (200, 0, 0))):
        Pillow.new("RGB", (64, 48), color).save(tmp_path / "pool" / f"{name}.png")
    refs = refs_of(workspace)
    gone = refs[0]
    Path(gone.uri).unlink()
    unreadable, without = pre_annotate_and_store(workspace, annotator_of(workspace, 0.001), refs)
    assert list(unreadable) == [gone.image_id]
    names = {ref.image_id: Path(ref.uri).stem for ref in refs}
    reasons = {names[number]: reason for number, reason in without.items()}
    assert reasons.pop("pale") == "its likeliest category 'cloud' is mapped to no class"
    assert "points nowhere" in reasons.pop("red")
    assert reasons == {}


def test_categories_are_matched_by_equal_names_and_as_told() -> None:
    assert map_categories(redness(0, "SKY", "Void"), LABELS, {}) == {0: 0}
    assert map_categories(redness(0, "SKY", "tennis ball"), LABELS, {"Tennis Ball": "ball"}) == {0: 0, 1: 1}
    assert map_categories(redness(0, "crane", "crane"), LABELS, {"crane": "void"}) == {0: 2, 1: 2}
    assert map_categories(redness(0, "sky", "x"), LABELS, {"sky": "ball"}) == {0: 1}


@pytest.mark.parametrize(
    ("categories", "given", "told"),
    [
        (
            ("cat", "dog"),
            {},
            r"redness \(cat, dog, ...\) has the name of a class \(Sky, ball, void\)",
        ),
        (("tennis ball", "dog"), {"ball": "ball"}, "knows no category 'ball' among its 2; similar: tennis ball"),
        (("sky", "dog"), {"dog": "animal"}, "unknown class 'animal'; the label set has: Sky, ball, void"),
    ],
)
def test_names_that_fit_nothing_are_refused(categories: tuple[str, ...], given: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        map_categories(redness(0, *categories), LABELS, given)


def test_whatever_decides_a_mask_decides_its_source(make_sqlite_workspace: Make) -> None:
    workspace = make_sqlite_workspace(pool=1)
    overlapping = make_sqlite_workspace(pool=1, labels={"overlap": True})
    same = annotator_of(workspace).source
    assert same == annotator_of(workspace).source
    assert same.startswith("graphcut:redness@")
    others = [annotator_of(workspace, 0.5), annotator_of(overlapping), annotator_of(workspace, cloud="sky")]
    assert len({same} | {other.source for other in others}) == 4
