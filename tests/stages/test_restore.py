"""An export imported again gives the same labels; COCO files of others come in too; hostile ones break nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from activeseg.core.labels import UNLABELED, LabelSet
from activeseg.db import truth
from activeseg.db.models import Annotation, Image, ImageStatus, Split
from activeseg.errors import ActivesegError, ConfigError, LabelSetMismatch, NotReadyError
from activeseg.records import StageReport
from activeseg.stages.dataset import import_dataset
from activeseg.stages.export import ExportRequest, export_dataset
from activeseg.stages.pool import sync_pool
from activeseg.stages.restore import import_from
from activeseg.workspace import Workspace
from tests.factories import CLASSES, WorkspaceFactory, write_balls, write_class_folders
from tests.stages.exports import labels, manifest_of

Make = Callable[..., Workspace]
LAYOUTS = ["masks", "coco"]


@pytest.fixture
def source(tmp_path: Path, migrated_sqlite: Path) -> Any:
    """Makes the workspace that labels are exported from, in a folder and on a database of its own."""
    folder = tmp_path / "source"
    folder.mkdir()
    shutil.copyfile(migrated_sqlite, folder / "activeseg.db")
    factory = WorkspaceFactory(folder, f"sqlite:///{folder / 'activeseg.db'}")
    yield factory
    factory.close()


def fill(workspace: Workspace, *, overlap: bool = False) -> Workspace:
    """Labels in all splits, with groups, unlabelled pixels, an EXIF-rotated, a 16-bit and a 1x1 image."""
    root = workspace.settings.root
    for split, seeds in ((Split.TRAIN, range(3)), (Split.VAL, range(10, 12)), (Split.TEST, range(20, 21))):
        images, masks = root / f"{split}-images", root / f"{split}-masks"
        write_balls(images, seeds, masks=masks)
        if split is Split.TRAIN:
            _odd_images(images, masks)
        if overlap:
            write_class_folders(masks, root / f"{split}-planes")
            masks = root / f"{split}-planes"
        report = import_dataset(workspace, str(images), masks, split)
        assert not report.failed, report.details
    sync_pool(workspace)
    if not overlap:
        assert import_dataset(workspace, str(root / "pool"), root / "truth", None).written == 8
    with workspace.database.write() as session:
        session.execute(sa.update(Image).where(Image.id % 2 == 0).values(group_name="clip 7"))
    return workspace


def _odd_images(images: Path, masks: Path) -> None:
    mask = np.asarray(Pillow.open(masks / "ball_0001.png")).copy()
    mask[:, :9] = UNLABELED
    mask[-1] = 3
    Pillow.fromarray(mask).save(masks / "ball_0001.png")
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.fromarray(np.zeros((48, 64, 3), np.uint8)).save(images / "turned.jpg", exif=exif)
    Pillow.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20).save(images / "deep.png")
    Pillow.new("RGB", (1, 1)).save(images / "dot.png")
    corner = np.zeros((64, 48), np.uint8)
    corner[:5, :5] = 2
    for name, values in {"turned": corner, "deep": corner.T, "dot": np.zeros((1, 1), np.uint8)}.items():
        Pillow.fromarray(np.ascontiguousarray(values)).save(masks / f"{name}.png")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("overlap", [False, True])
def test_an_export_imported_again_gives_the_same_masks_splits_and_groups(
    source: Any, make_workspace: Make, tmp_path: Path, layout: Any, overlap: bool
) -> None:
    section = {"labels": {"overlap": overlap}}
    exported = fill(source(**section), overlap=overlap)
    out = tmp_path / "out"
    export_dataset(exported, out, ExportRequest(layout=layout, images="copy", annotators=True))
    shutil.move(out, tmp_path / "moved")
    shutil.rmtree(tmp_path / "source")  # nothing is read from where the images were
    workspace = make_workspace(pool=0, **section)
    report = import_from(workspace, tmp_path / "moved")
    count = 9 if overlap else 17
    assert report.details.get("outside_the_pool", 0) == (0 if overlap else 8)
    assert (report.written, report.failed, report.details["problems"]) == (count, 0, {})
    assert labels(workspace) == labels_of(tmp_path / "moved")
    assert import_from(workspace, tmp_path / "moved").written == 0
    with workspace.database.read() as session:
        for item in truth.current(session):
            workspace.read_labeled(item)
    again = tmp_path / "again"
    export_dataset(workspace, again, ExportRequest(layout=layout, images="copy"))
    for path in [*again.rglob("*.png"), *again.rglob("annotations.json"), again / "classes.txt"]:
        assert path.read_bytes() == (tmp_path / "moved" / path.relative_to(again)).read_bytes()


def labels_of(folder: Path) -> set[tuple[Any, ...]]:
    """What the manifest says, in the form of `labels`."""
    return {
        (item["sha256"], item["split"], item["group"], item["mask_sha256"], item["width"], item["height"])
        for item in manifest_of(folder)["images"]
    }


def test_a_group_of_the_manifest_wins_over_the_pattern_and_what_has_none_is_named_by_where_it_came_from(
    source: Any, make_workspace: Make, tmp_path: Path
) -> None:
    export_dataset(fill(source()), tmp_path / "images", ExportRequest(images="copy"))
    moved = shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    workspace = make_workspace(pool=0, pool_section={"group_pattern": "([^/]+)/[^/]+$"})
    report = import_from(workspace, moved)
    told = {item["sha256"]: item for item in manifest_of(moved)["images"]}
    with workspace.database.read() as session:
        groups = dict(session.execute(sa.select(Image.sha256, Image.group_name)).all())
    # All images of an export lie in folders called images: the pattern finds the clip where they were registered.
    assert groups == {sha256: item["group"] or item["uri"].split("/")[-2] for sha256, item in told.items()}
    assert set(groups.values()) == {"clip 7", "train-images", "val-images", "test-images", "pool"}
    assert report.details["groups in both train and val"] == "1 (clip 7)"


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_imported_where_it_came_from_it_writes_nothing(source: Any, tmp_path: Path, layout: Any) -> None:
    workspace = fill(source())
    export_dataset(workspace, tmp_path / "out", ExportRequest(layout=layout))
    before = labels(workspace)
    report = import_from(workspace, tmp_path / "out")
    assert (report.written, report.failed, report.details["unchanged"]) == (0, 0, 17)
    assert labels(workspace) == before
    with workspace.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Image)) == 17


@pytest.mark.parametrize("overlap", [False, True])
def test_the_masks_of_an_export_are_imported_like_any_folder(
    source: Any, make_sqlite_workspace: Make, tmp_path: Path, overlap: bool
) -> None:
    section = {"labels": {"overlap": overlap}}
    export_dataset(fill(source(**section), overlap=overlap), tmp_path / "out", ExportRequest())
    workspace, train = make_sqlite_workspace(pool=0, **section), tmp_path / "out/train"
    assert import_dataset(workspace, str(train / "images"), train / "masks", Split.TRAIN).written == 6
    expected = {row[3] for row in labels_of(tmp_path / "out") if row[1] == "train"}
    assert {row[3] for row in labels(workspace)} == expected


def test_without_images_the_labels_find_the_images_that_are_known(
    source: Any, make_sqlite_workspace: Make, tmp_path: Path
) -> None:
    exported = fill(source())
    export_dataset(exported, tmp_path / "out", ExportRequest(images="none"))
    shutil.copytree(tmp_path / "source/pool", tmp_path / "pool")
    workspace = make_sqlite_workspace()  # the same eight balls in its pool, at another place
    sync_pool(workspace)
    report = import_from(workspace, tmp_path / "out")
    # In the source three of the balls were labelled elsewhere, too: which image is meant is not clear there.
    assert (report.written, report.failed) == (5, 12)
    assert all("its image is neither in the export nor known here" in text for text in report.details["problems"].values())
    with workspace.database.read() as session:
        assert {Path(item.image.uri).parent for item in truth.current(session)} == {tmp_path / "pool"}


def test_images_that_were_in_the_pool_go_to_the_named_split(source: Any, make_sqlite_workspace: Make, tmp_path: Path) -> None:
    export_dataset(fill(source()), tmp_path / "out", ExportRequest(images="copy"))
    workspace = make_sqlite_workspace(pool=0)
    assert "outside_the_pool" not in import_from(workspace, tmp_path / "out", split=Split.TEST).details
    with workspace.database.read() as session:
        counts = {split: len(truth.current(session, split=split)) for split in Split}
    assert counts == {Split.TRAIN: 6, Split.VAL: 2, Split.TEST: 9, Split.POOL: 0}


def test_a_validation_image_stays_one_whatever_an_export_says(source: Any, tmp_path: Path) -> None:
    workspace = fill(source())
    export_dataset(workspace, tmp_path / "out", ExportRequest(images="copy"))
    edit(tmp_path / "out", lambda item: item.update(split="train"))
    report = import_from(workspace, tmp_path / "out")
    moved = {text for text in report.details["problems"].values() if "cannot move" in text}
    assert moved == {
        "already in the split 'val'; it cannot move to 'train'",
        "already in the split 'test'; it cannot move to 'train'",
    }


def edit(out: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change every image of the manifest."""
    document = manifest_of(out)
    for item in document["images"]:
        change(item)
    (out / "manifest.json").write_text(json.dumps(document))


def test_a_class_list_that_differs_is_told_before_anything_is_imported(
    source: Any, make_sqlite_workspace: Make, tmp_path: Path
) -> None:
    export_dataset(fill(source()), tmp_path / "out", ExportRequest())
    workspace = make_sqlite_workspace(labels={"overlap": True})
    with pytest.raises(
        LabelSetMismatch, match=r"was exported with the classes sky, .*restore \[labels\] overlap; its class list"
    ):
        import_from(workspace, tmp_path / "out")


@pytest.fixture
def small(source: Any, tmp_path: Path) -> Path:
    """An export of three training images."""
    workspace = source(pool=0)
    write_balls(tmp_path / "balls", range(3), masks=tmp_path / "ball-masks")
    import_dataset(workspace, str(tmp_path / "balls"), tmp_path / "ball-masks", Split.TRAIN)
    export_dataset(workspace, tmp_path / "out", ExportRequest(images="copy"))
    shutil.rmtree(tmp_path / "balls")
    return tmp_path / "out"


def refused(make: Make, out: Path) -> dict[str, str]:
    """What an import into an empty workspace lists."""
    problems = import_from(make(pool=0), out).details["problems"]
    assert isinstance(problems, dict)
    return problems


@pytest.mark.parametrize("file", ["train/images/ball_0001.png", "train/masks/ball_0001.png"])
def test_a_file_that_changed_costs_its_pair(make_sqlite_workspace: Make, small: Path, file: str) -> None:
    Pillow.new("L", (64, 48), 1).save(small / file)
    assert refused(make_sqlite_workspace, small) == {
        "train/ball_0001.png": f"{file} changed since it was exported: export again, or import it with --images and --masks"
    }


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"image": "../secret.png"}, "is not inside of"),
    ({"image": "/etc/passwd"}, "is not inside of"),
    ({"image": "train/images/../../../secret.png"}, "is not inside of"),
    ({"image": "train\\..\\secret"}, "is not inside of"),
    ({"image": "link"}, "is not inside of"),
    ({"image": "x\0y"}, "is not inside of"),
    ({"image": ""}, "is not inside of"),
    ({"image": "train"}, "is no regular file"),
    ({"image": "pipe"}, "is no regular file"),
    ({"image": "a" * 5000}, "cannot be read"),
    ({"image": 7}, "image cannot be '7' (int)"),
    ({"masks": {"../secret.png": "0" * 64}}, "is not inside of"),
    ({"masks": {}}, "expected one mask file; the manifest names 0"),
    ({"masks": {"a.png": "0" * 64, "b.png": "0" * 64}}, "cannot be read"),
    ({"masks": {"a.png": "short"}}, "masks must say the sha256 of each file"),
    ({"masks": ["a.png"]}, "masks cannot be"),
    ({"sha256": "A" * 64}, "sha256 must be 64 hexadecimal digits"),
    ({"split": "training"}, "split must be one of pool, train, val, test"),
    ({"split": {}}, "split cannot be"),
    ({"width": 10**30}, "the manifest says 1000000000000000000000000000000x48, the image is 64x48"),
    ({"width": -1}, "the manifest says -1x48"),
    ({"height": True}, "height cannot be 'True' (bool)"),
    ({"group": "g" * 300}, "group is longer than 255 characters"),
    ({"group": "a\0b"}, "or has a zero in it"),
    ({"uri": None}, "uri cannot be 'None'"),
    ({"group": "\ud800"}, "halves of characters"),
    ({"name": "\udc80"}, "halves of characters"),
    ({"masks": {"\ud800": "0" * 64}}, "halves of characters"),
    ({"updated_at": "yesterday"}, "updated_at must be a time with its zone"),
    ({"updated_at": "2026-11-01T00:00:00"}, "updated_at must be a time with its zone"),
    ({"updated_at": "0001-01-01T00:00:00+14:00"}, "updated_at must be a time with its zone"),
    ({"image": None}, "its image is neither in the export nor known here"),
]


@pytest.mark.parametrize(("change", "told"), HOSTILE, ids=[f"{next(iter(change))}-{told[:20]}" for change, told in HOSTILE])
def test_a_hostile_entry_costs_its_image_and_reads_nothing_outside(
    make_sqlite_workspace: Make, small: Path, change: dict[str, Any], told: str
) -> None:
    shutil.copy(small / "train/images/ball_0001.png", small.parent / "secret.png")
    (small / "link").symlink_to(small.parent / "secret.png")
    os.mkfifo(small / "pipe")
    edit(small, lambda item: item.update(change) if item["name"] == "ball_0001.png" else None)
    workspace = make_sqlite_workspace(pool=0)
    report = import_from(workspace, small)
    assert (report.written, report.failed) == (2, 1)
    ((name, problem),) = report.details["problems"].items()
    assert told in problem
    f"{name} {problem}".encode()


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"format": "activeseg dataset", "version": 2}, r"expected version 1, got 2: update activeseg"),
        ({"format": "activeseg dataset", "version": 1}, "is damaged: expected a layout"),
        ({"format": "activeseg dataset", "version": 1, "layout": "masks", "images": []}, "label_set cannot be read"),
        (
            {"format": "activeseg dataset", "version": 1, "layout": "masks", "images": [], "label_set": {"names": 7}},
            "label_set cannot be read",
        ),
        (
            {"format": "activeseg dataset", "version": 1, "layout": "masks", "images": [], "label_set": CLASSES.as_dict()},
            "files must say the sha256 of each file",
        ),
        (
            {"format": "activeseg dataset", "version": 1, "layout": "masks", "images": [],
             "label_set": CLASSES.as_dict() | {"names": ["\ud800", *CLASSES.names[1:]]}},
            "label_set cannot be read",
        ),
    ],
)  # fmt: skip
def test_a_manifest_that_makes_no_sense_is_refused(
    make_sqlite_workspace: Make, small: Path, document: dict[str, Any], told: str
) -> None:
    (small / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ActivesegError, match=told):
        import_from(make_sqlite_workspace(pool=0), small)


def test_the_same_entry_twice_counts_for_nothing(make_sqlite_workspace: Make, small: Path) -> None:
    document = manifest_of(small)
    document["images"] += [document["images"][0], "text"]
    (small / "manifest.json").write_text(json.dumps(document))
    assert refused(make_sqlite_workspace, small) == {
        "train/ball_0000.png": "listed more than once",
        "manifest.json image 5": "expected an object; got str",
    }


def coco(folder: Path, document: dict[str, Any], name: str = "instances.json") -> Path:
    (folder / name).write_text(json.dumps(document))
    return folder / name


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Two images in a folder, and a COCO file beside it as other tools write them: polygons, crowds, ids of their own."""
    folder = tmp_path / "foreign"
    write_balls(folder / "images", range(2))
    document = {
        "images": [{"id": 7 + n, "file_name": f"ball_000{n}.png", "width": 64, "height": 48} for n in range(2)],
        "categories": [{"id": 18, "name": "ball"}, {"id": 3, "name": "ground"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, "segmentation": [[0, 20, 64, 20, 64, 48, 0, 48]]},
            {"id": 2, "image_id": 7, "category_id": 18, "iscrowd": 1,
             "segmentation": {"size": [48, 64], "counts": [48 * 10 + 30, 5, 43, 5, 48 * 64 - 480 - 30 - 53]}},
        ],
    }  # fmt: skip
    coco(folder, document)
    return folder


def test_a_coco_file_of_others_is_imported(make_workspace: Make, foreign: Path) -> None:
    workspace = make_workspace(pool=0, pool_section={"group_pattern": "/(foreign)/"})
    report = import_from(workspace, foreign, split=Split.TRAIN)
    # Nobody says whether the second image was looked at.
    assert (report.written, report.failed, report.details["unlabelled"]) == (1, 0, 1)
    assert "got a group" not in report.details  # it came with it
    assert import_from(workspace, foreign / "instances.json", split=Split.TRAIN).written == 0
    with workspace.database.read() as session:
        (first,) = (workspace.read_labeled(item)[1] for item in truth.current(session, split=Split.TRAIN))
        assert session.scalars(sa.select(Image.group_name)).all() == ["foreign"]
    expected = np.full((48, 64), UNLABELED, np.uint8)
    expected[20:] = 1
    expected[30:35, 10:12] = 2
    assert np.array_equal(first, expected)
    other = import_from(workspace, foreign, split=Split.TRAIN, uncovered="sky")
    assert (other.written, "unlabelled" in other.details) == (2, False)


def test_an_image_whose_annotations_give_no_pixel_a_class_is_left_out(make_sqlite_workspace: Make, foreign: Path) -> None:
    document = json.loads((foreign / "instances.json").read_text())
    document["annotations"] = [document["annotations"][0] | {"segmentation": {"size": [48, 64], "counts": [48 * 64]}}]
    coco(foreign, document)
    report = import_from(make_sqlite_workspace(pool=0), foreign, split=Split.VAL)
    assert (report.written, report.failed) == (0, 1)
    assert "no pixel has a class" in report.details["problems"]["ball_0000.png"]


def test_a_blank_mask_of_an_export_is_left_out(make_sqlite_workspace: Make, small: Path) -> None:
    document = manifest_of(small)
    ((name, _),) = document["images"][0]["masks"].items()
    Pillow.new("L", (64, 48), UNLABELED).save(small / name)
    document["images"][0]["masks"][name] = hashlib.sha256((small / name).read_bytes()).hexdigest()
    (small / "manifest.json").write_text(json.dumps(document))
    (told,) = refused(make_sqlite_workspace, small).values()
    assert "no pixel has a class" in told


def test_where_classes_overlap_an_image_without_annotations_has_none_of_them(
    make_sqlite_workspace: Make, foreign: Path, tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(pool=2, labels={"overlap": True})
    assert import_from(workspace, foreign, split=Split.TRAIN).written == 2
    sync_pool(workspace)
    report = import_from(workspace, foreign / "instances.json", images=tmp_path / "pool", query=True)
    assert (report.written, report.details["unlabelled"]) == (1, 1)


def test_a_coco_file_answers_open_queries_of_pool_images(make_sqlite_workspace: Make, foreign: Path, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=2)
    pool = tmp_path / "pool"
    report = import_from(workspace, foreign / "instances.json", images=pool, query=True)
    assert set(report.details["problems"].values()) == {"not in the pool: run `activeseg pool sync` first, or name a split"}
    sync_pool(workspace)
    report = import_from(workspace, foreign / "instances.json", images=pool, query=True, uncovered="sky")
    assert (report.written, report.details["unlabelled"]) == (1, 1)


def test_an_annotation_of_no_listed_image_lets_nothing_be_written(make_sqlite_workspace: Make, foreign: Path) -> None:
    document = json.loads((foreign / "instances.json").read_text())
    document["annotations"].append(document["annotations"][0] | {"image_id": 99})
    workspace = make_sqlite_workspace(pool=0)
    with pytest.raises(ActivesegError, match="annotation 3 belongs to no listed image: its image_id is 99"):
        import_from(workspace, coco(foreign, document), split=Split.TRAIN)
    assert labels(workspace) == set()


def test_images_of_a_coco_file_lie_in_its_folder_or_nowhere(make_sqlite_workspace: Make, foreign: Path, tmp_path: Path) -> None:
    document = json.loads((foreign / "instances.json").read_text())
    shutil.copy(foreign / "images/ball_0000.png", tmp_path / "secret.png")
    document["images"][0]["file_name"] = str(tmp_path / "secret.png")
    document["images"][1]["file_name"] = "../../secret.png"
    document["annotations"].append(document["annotations"][0] | {"image_id": 8})
    coco(foreign, document)
    report = import_from(make_sqlite_workspace(pool=0), foreign, split=Split.TRAIN)
    assert (report.written, report.failed) == (0, 2)
    assert all("nothing outside of it is read" in text for text in report.details["problems"].values())


def test_what_is_neither_is_told(make_sqlite_workspace: Make, foreign: Path, small: Path, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=0)
    with pytest.raises(ConfigError, match="is no export of activeseg, so it does not say which split it is: add --split"):
        import_from(workspace, foreign)
    with pytest.raises(ConfigError, match="does not exist: name a folder that `activeseg dataset export` wrote"):
        import_from(workspace, tmp_path / "nowhere", split=Split.TRAIN)
    with pytest.raises(ConfigError, match="and 0 JSON files: name the COCO file itself"):
        import_from(workspace, foreign / "images", split=Split.TRAIN)
    with pytest.raises(ConfigError, match="is an export, which says itself where its images are"):
        import_from(workspace, small, images=foreign / "images")
    with pytest.raises(ConfigError, match="is an export, whose images have splits already: give --from without --split query"):
        import_from(workspace, small, query=True)
    with pytest.raises(ActivesegError, match="is no JSON"):
        import_from(workspace, coco_text(foreign, "[[[" * 100_000), split=Split.TRAIN)
    with pytest.raises(ActivesegError, match="expected a COCO file"):
        import_from(workspace, coco_text(foreign, "[]"), split=Split.TRAIN)
    with pytest.raises(ConfigError, match="unknown class 'cloud'"):
        import_from(workspace, small.parent / "foreign/instances.json", split=Split.TRAIN, uncovered="cloud")
    coco(foreign, {"images": [], "annotations": [], "categories": []})
    with pytest.raises(NotReadyError, match="lists no images"):
        import_from(workspace, foreign / "instances.json", split=Split.TRAIN)


def coco_text(folder: Path, text: str) -> Path:
    (folder / "broken.json").write_text(text)
    return folder / "broken.json"


def test_a_coco_file_of_an_export_that_changed_costs_its_split(
    source: Any, make_sqlite_workspace: Make, tmp_path: Path
) -> None:
    export_dataset(fill(source()), tmp_path / "out", ExportRequest(layout="coco", images="copy"))
    with (tmp_path / "out/val/annotations.json").open("a") as stream:
        stream.write(" ")
    workspace = make_sqlite_workspace(pool=0)
    report = import_from(workspace, tmp_path / "out")
    assert (report.written, report.failed) == (15, 2)
    assert {text.split(":")[0] for text in report.details["problems"].values()} == {
        "val/annotations.json changed since it was exported"
    }
    # What another tool made of it is imported as a COCO file like any other.
    assert import_from(workspace, tmp_path / "out/val", split=Split.VAL).written == 2
    assert labels(workspace) == labels_of(tmp_path / "out") - {
        row for row in labels_of(tmp_path / "out") if row[1] == "val"
    } | {(sha, split, None, *rest) for sha, split, _, *rest in labels_of(tmp_path / "out") if split == "val"}


def test_an_image_that_a_sync_lost_comes_back_with_its_export(source: Any, make_sqlite_workspace: Make, tmp_path: Path) -> None:
    export_dataset(fill(source()), tmp_path / "out", ExportRequest(images="copy"))
    workspace = make_sqlite_workspace(pool=1)
    import_from(workspace, tmp_path / "out")
    before = labels(workspace)
    with workspace.database.write() as session:
        session.execute(sa.update(Image).values(status=ImageStatus.MISSING))
    assert import_from(workspace, tmp_path / "out").written == 0
    with workspace.database.read() as session:
        assert set(session.scalars(sa.select(Image.status))) == {ImageStatus.ACTIVE}
        assert len(session.scalars(sa.select(Annotation)).all()) == 17
    assert labels(workspace) == before


def redraw(root: Path, value: int) -> None:
    """Change the mask of the first training image."""
    Pillow.new("L", (64, 48), value).save(root / "train-masks/ball_0000.png")


def masks_of(workspace: Workspace, name: str) -> int:
    """The value that an even mask holds which counts for an image of `train-images`."""
    with workspace.database.read() as session:
        (item,) = [item for item in truth.current(session) if item.image.uri.endswith(name)]
    (value,) = np.unique(workspace.read_labeled(item)[1])
    return int(value)


def _import_at(workspace: Workspace, export: Path, place: Path) -> StageReport:
    """Import an export from a folder where others were before."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(export, place)
    return import_from(workspace, place)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_older_export_reverts_no_newer_mask(source: Any, make_workspace: Make, tmp_path: Path, layout: Any) -> None:
    first, root = fill(source()), tmp_path / "source"
    images = str(root / "train-images")
    wish = ExportRequest(layout=layout, images="copy")
    redraw(root, 0)
    import_dataset(first, images, root / "train-masks", Split.TRAIN)
    export_dataset(first, tmp_path / "old", wish)
    redraw(root, 1)
    import_dataset(first, images, root / "train-masks", Split.TRAIN)
    report = import_from(first, tmp_path / "old")
    assert (report.written, report.failed, report.details["older"], report.details["unchanged"]) == (0, 0, 1, 16)
    assert masks_of(first, "train-images/ball_0000.png") == 1
    # Elsewhere it counts from when it was drawn, not from when it came: there the newer export replaces the older one.
    export_dataset(first, tmp_path / "new", wish)
    second, place = make_workspace(pool=0), tmp_path / "place"
    written = [_import_at(second, tmp_path / name, place) for name in ("old", "new", "old")]
    assert [(report.written, report.details.get("older", 0)) for report in written] == [(17, 0), (1, 0), (0, 1)]
    assert masks_of(second, "train/images/ball_0000.png") == 1
    # Imported as a file it counts, whenever it was drawn.
    redraw(root, 0)
    assert import_dataset(first, images, root / "train-masks", Split.TRAIN).written == 1
    assert masks_of(first, "train-images/ball_0000.png") == 0


def test_a_mask_from_the_future_hides_no_correction(make_sqlite_workspace: Make, small: Path) -> None:
    edit(small, lambda item: item.update(updated_at="9999-01-01T00:00:00+00:00"))
    workspace = make_sqlite_workspace(pool=0)
    assert import_from(workspace, small).written == 3
    Pillow.new("L", (64, 48), 1).save(small / "train/masks/ball_0000.png")
    assert import_dataset(workspace, str(small / "train/images"), small / "train/masks", Split.TRAIN).written >= 1
    assert masks_of(workspace, "ball_0000.png") == 1


def test_images_of_an_export_that_were_in_a_pool_outlast_a_sync(source: Any, make_workspace: Make, tmp_path: Path) -> None:
    export_dataset(fill(source()), tmp_path / "out", ExportRequest(images="copy"))
    workspace = make_workspace(pool=2)
    assert import_from(workspace, tmp_path / "out").details["outside_the_pool"] == 8
    assert sync_pool(workspace).details["missing"] == 0
    assert sync_pool(workspace).details["missing"] == 0
    with workspace.database.read() as session:
        assert len(truth.current(session, split=Split.POOL)) == 8


def test_the_bytes_of_a_coco_file_that_are_read_are_those_that_were_hashed(
    source: Any, make_sqlite_workspace: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes the file while it is imported."""
    export_dataset(fill(source()), tmp_path / "out", ExportRequest(layout="coco", images="copy"))
    read: list[str] = []

    def once(path: Path) -> bytes:
        if path.name == "annotations.json":
            assert str(path) not in read, f"{path} is read twice"
            read.append(str(path))
        with path.open("rb") as stream:
            return stream.read()

    monkeypatch.setattr(Path, "read_bytes", once)
    assert import_from(make_sqlite_workspace(pool=0), tmp_path / "out").written == 17
    assert len(read) == 4


def test_class_names_that_are_no_folder_names_are_told(source: Any, tmp_path: Path) -> None:
    names = LabelSet(("..", "a/b"), ((1, 1, 1), (2, 2, 2)), overlap=True)
    folder = tmp_path / "source"
    workspace = source(pool=0, labels={"overlap": True})
    (folder / "classes.txt").write_text(names.to_text())
    write_balls(tmp_path / "balls", range(1))
    for name in ("a_b", ".."):
        (folder / "planes" / name).mkdir(parents=True, exist_ok=True)
    coco_file = coco(
        tmp_path,
        {
            "images": [{"id": 1, "file_name": "ball_0000.png", "width": 64, "height": 48}],
            "categories": [{"id": 1, "name": ".."}],
            "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]]}],
        },
    )
    assert import_from(workspace, coco_file, images=tmp_path / "balls", split=Split.TRAIN).written == 1
    with pytest.raises(
        ConfigError, match=r"class '..' cannot have a folder, because its name begins with a dot: export --format coco"
    ):
        export_dataset(workspace, tmp_path / "out", ExportRequest())
    assert not (tmp_path / "out").exists()
    assert export_dataset(workspace, tmp_path / "out", ExportRequest(layout="coco")).written == 1
