"""An export is what it says: these masks, byte for byte the same each time, and nothing of anybody's is overwritten."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image as Pillow
from pycocotools import mask as api
from pycocotools.coco import COCO

from activeseg.core.labels import UNLABELED, LabelSet, parse_classes
from activeseg.db import imports, lease, truth
from activeseg.db.database import Database
from activeseg.db.models import Annotation, AnnotationStatus, Image, ImageStatus, LabelSetRow, Split, TrainingRun
from activeseg.db.models.columns import now
from activeseg.errors import ConfigError, LabelSetMismatch, NotReadyError
from activeseg.stages.dataset import import_dataset
from activeseg.stages.export import ExportRequest, export_dataset
from activeseg.stages.pool import sync_pool
from activeseg.stages.train import train_challenger
from activeseg.storage import folders, manifest
from activeseg.storage.objects import Entry, ObjectSource
from activeseg.workspace import Workspace
from tests.factories import CLASSES, WorkspaceFactory, write_balls, write_class_folders
from tests.stages.exports import manifest_of, tree

Make = Callable[..., Workspace]
ImportBalls = Callable[[Workspace, range, Split], None]
MASKS, COCO_FILES = ExportRequest(), ExportRequest(layout="coco")


@pytest.fixture
def labelled(make_workspace: Make, import_balls: ImportBalls) -> Workspace:
    """Three training and two validation images, one with unlabelled pixels, on either database."""
    return fill(make_workspace(), import_balls)


@pytest.fixture
def sqlite_labelled(make_sqlite_workspace: Make, import_balls: ImportBalls) -> Workspace:
    return fill(make_sqlite_workspace(), import_balls)


def fill(workspace: Workspace, import_balls: ImportBalls) -> Workspace:
    import_balls(workspace, range(100, 103), Split.TRAIN)
    import_balls(workspace, range(200, 202), Split.VAL)
    folder = workspace.settings.path(Path("train-masks"))
    mask = np.asarray(Pillow.open(folder / "ball_0101.png")).copy()
    mask[:, :9] = UNLABELED
    Pillow.fromarray(mask).save(folder / "ball_0101.png")
    assert import_dataset(workspace, str(folder.parent / "train-images"), folder, Split.TRAIN).written == 1
    return workspace


def test_an_export_holds_images_masks_classes_and_a_manifest(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    report = export_dataset(sqlite_labelled, tmp_path / "out", MASKS)
    assert (report.written, report.failed, report.details["splits"]) == (5, 0, {"train": 3, "val": 2})
    out = tmp_path / "out"
    names = {"train": ("ball_0100", "ball_0101", "ball_0102"), "val": ("ball_0200", "ball_0201")}
    files = {f"{split}/{kind}/{name}.png" for split in names for name in names[split] for kind in ("images", "masks")}
    assert {name for name, what in tree(out).items() if what != "folder"} == files | {"manifest.json", "classes.txt"}
    for split in names:
        for name in names[split]:
            assert (out / f"{split}/images/{name}.png").read_bytes() == (tmp_path / f"{split}-images/{name}.png").read_bytes()
            ours, truth_ = (
                np.asarray(Pillow.open(path / f"{name}.png")) for path in (out / split / "masks", tmp_path / f"{split}-masks")
            )
            assert np.array_equal(ours, truth_)
    assert parse_classes((out / "classes.txt").read_text()) == CLASSES


def test_the_manifest_tells_each_images_origin_and_hashes_and_no_person(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    with sqlite_labelled.database.write() as session:
        session.execute(sa.update(Annotation).values(annotator="ann@example.org"))
        session.execute(sa.update(Image).values(group_name="clip 7"))
    export_dataset(sqlite_labelled, tmp_path / "out", MASKS)
    text = (tmp_path / "out/manifest.json").read_text()
    assert "ann@example.org" not in text
    assert str(tmp_path / "out") not in text
    first = manifest_of(tmp_path / "out")["images"][0]
    found = tree(tmp_path / "out")
    assert first["uri"] == str(tmp_path / "train-images/ball_0100.png")
    assert first["sha256"] == found[first["image"]]
    assert first["masks"] == {"train/masks/ball_0100.png": found["train/masks/ball_0100.png"]}
    assert (first["width"], first["height"], first["split"], first["group"]) == (64, 48, "train", "clip 7")
    assert first["source"] == "import"
    export_dataset(sqlite_labelled, tmp_path / "named", ExportRequest(annotators=True))
    assert {item["annotator"] for item in manifest_of(tmp_path / "named")["images"]} == {"ann@example.org"}


@pytest.mark.parametrize("wish", [MASKS, COCO_FILES], ids=["masks", "coco"])
@pytest.mark.parametrize("database_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_two_databases_give_the_same_bytes_for_the_same_labels(
    tmp_path: Path, sqlite_url: str, database_url: str, wish: ExportRequest
) -> None:
    """The same images and masks, imported in another order, at times set alike."""
    for number in range(5):
        write_balls(tmp_path / f"images-{number}", range(number, number + 1), masks=tmp_path / "masks")
    trees = []
    for name, url in {"sqlite": sqlite_url, "postgres": database_url}.items():
        workspace = (factory := WorkspaceFactory(tmp_path, url))()
        for number in range(5) if name == "sqlite" else reversed(range(5)):
            import_dataset(workspace, str(tmp_path / f"images-{number}"), tmp_path / "masks", Split.TRAIN)
        with workspace.database.write() as session:
            session.execute(sa.update(Annotation).values(received_at=datetime(2026, 11, 1, 12, 0, 0, 120, tzinfo=UTC)))
        assert export_dataset(workspace, tmp_path / f"out-{name}", wish).written == 5
        trees.append(tree(tmp_path / f"out-{name}"))
        factory.close()
    assert trees[0] == trees[1]


@pytest.mark.parametrize("layout", ["masks", "coco"])
@pytest.mark.parametrize("images", ["link", "copy", "none"])
def test_repeated_into_another_folder_it_gives_the_same_bytes(
    sqlite_labelled: Workspace, tmp_path: Path, layout: Any, images: Any
) -> None:
    request = ExportRequest(layout=layout, images=images)
    export_dataset(sqlite_labelled, tmp_path / "out", request)
    first = tree(tmp_path / "out")
    export_dataset(sqlite_labelled, tmp_path / "deep/other", request)
    assert first == tree(tmp_path / "deep/other")
    assert not [path for path in tmp_path.rglob(".*") if "activeseg" in path.name]
    assert ("train/images/ball_0100.png" in first) == (images != "none")


def test_links_are_the_files_themselves_and_copies_are_not(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    original = tmp_path / "train-images/ball_0100.png"
    assert export_dataset(sqlite_labelled, tmp_path / "a", MASKS).details["copied"] == 0
    assert export_dataset(sqlite_labelled, tmp_path / "b", ExportRequest(images="copy")).details["copied"] == 5
    assert os.path.samefile(tmp_path / "a/train/images/ball_0100.png", original)
    assert not os.path.samefile(tmp_path / "b/train/images/ball_0100.png", original)


def test_only_the_wanted_splits_are_exported(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    export_dataset(sqlite_labelled, tmp_path / "out", ExportRequest(splits=(Split.VAL,)))
    assert {item["split"] for item in manifest_of(tmp_path / "out")["images"]} == {"val"}
    with pytest.raises(NotReadyError, match="nothing to export: no annotation counts in test"):
        export_dataset(sqlite_labelled, tmp_path / "none", ExportRequest(splits=(Split.TEST,)))
    assert not (tmp_path / "none").exists()


def test_images_that_are_gone_or_changed_and_broken_masks_are_left_out_with_the_reason(
    sqlite_labelled: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "train-images/ball_0100.png").unlink()
    with (tmp_path / "train-images/ball_0101.png").open("ab") as stream:
        stream.write(b"changed")
    with sqlite_labelled.database.read() as session:
        item = truth.current(session, split=Split.VAL)[0]
    sqlite_labelled.artifacts.path(item.mask_location).write_bytes(b"damaged")
    report = export_dataset(sqlite_labelled, tmp_path / "out", MASKS)
    reasons = {Path(uri).name: reason for uri, reason in report.details["problems"].items()}
    assert (report.written, report.failed) == (2, 3)
    assert "is gone" in reasons["ball_0100.png"]
    assert "the file changed since it was registered" in reasons["ball_0101.png"]
    assert "holds other bytes" in reasons["ball_0200.png"]
    assert [item["name"] for item in manifest_of(tmp_path / "out")["images"]] == ["ball_0102.png", "ball_0201.png"]
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4


def test_what_a_sync_set_aside_is_told_and_what_was_replaced_counts_no_more(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    states = {
        "ball_0100.png": ImageStatus.MISSING,
        "ball_0101.png": ImageStatus.QUARANTINED,
        "ball_0102.png": ImageStatus.SUPERSEDED,
    }
    with sqlite_labelled.database.write() as session:
        for name, status in states.items():
            changed = sa.update(Image).where(Image.uri.endswith(name)).values(status=status, reason="file is empty")
            session.execute(changed)
    report = export_dataset(sqlite_labelled, tmp_path / "out", MASKS)
    reasons = {Path(uri).name: reason for uri, reason in report.details["problems"].items()}
    assert set(reasons) == {"ball_0100.png", "ball_0101.png"}
    assert "its file was gone at the last sync" in reasons["ball_0100.png"]
    assert reasons["ball_0101.png"] == "the image is set aside: file is empty"
    assert report.details["superseded"] == 1


def test_files_of_one_name_and_masks_of_one_stem_do_not_collide(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=0)
    pool = tmp_path / "pool"
    for number, name in enumerate(("a/1.png", "b/1.png", "a__1.png", "1.png", "1.bmp", "X.png", "x.png", "clip:9/é.png")):
        (pool / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (8, 6), (number, 0, 0)).save(pool / name)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Pillow.new("L", (8, 6), number % 3).save(tmp_path / "masks" / (Path(name).stem + ".png"))
    sync_pool(workspace)
    report = import_dataset(workspace, str(pool), tmp_path / "masks", None)
    assert report.written == 8
    export_dataset(workspace, tmp_path / "out", MASKS)
    names = [item["name"] for item in manifest_of(tmp_path / "out")["images"]]
    assert len({name.casefold().rsplit(".", 1)[0] for name in names}) == 8
    assert {"b__1.png", "clip_9__é.png"} <= set(names)
    assert len(list((tmp_path / "out/pool/images").iterdir())) == len(list((tmp_path / "out/pool/masks").iterdir())) == 8


def test_a_names_hash_does_not_hang_on_the_other_images(make_sqlite_workspace: Make) -> None:
    from activeseg.storage.export_names import export_names

    two = [("train", "/pool/a.png", "1" * 64), ("train", "/pool/a.jpg", "2" * 64)]
    more = [
        *two,
        ("val", "/pool/a.png", "3" * 64),
        ("train", "/other/b.png", "4" * 64),
        ("train", f"/pool/{'ü' * 200}.png", "5" * 64),
    ]
    assert export_names(more, "/pool/")[:2] == export_names(two, "/pool/")
    assert export_names(more, "/pool/")[2:4] == ["a.png", "b.png"]
    assert len(export_names(more, "/pool/")[4].encode()) < 255


@pytest.mark.slow
def test_a_training_is_exported_as_it_saw_it_whatever_came_since(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    workspace, request = sqlite_labelled, ExportRequest(training_run=1)
    with pytest.raises(NotReadyError, match="training run 1 does not exist; there is none yet"):
        export_dataset(workspace, tmp_path / "out", request)
    write_balls(tmp_path / "more", range(300, 301), masks=tmp_path / "more-masks")
    import_dataset(workspace, str(tmp_path / "more"), tmp_path / "more-masks", Split.TRAIN)
    with lease.holding(workspace.database):
        train_challenger(workspace, reason="test")
    export_dataset(workspace, tmp_path / "before", request)
    for folder in ("train-masks", "val-masks"):
        for file in (tmp_path / folder).glob("*.png"):
            Pillow.new("L", (64, 48), 1).save(file)
    import_dataset(workspace, str(tmp_path / "train-images"), tmp_path / "train-masks", Split.TRAIN)
    import_dataset(workspace, str(tmp_path / "val-images"), tmp_path / "val-masks", Split.VAL)
    write_balls(tmp_path / "later", range(400, 402), masks=tmp_path / "later-masks")
    import_dataset(workspace, str(tmp_path / "later"), tmp_path / "later-masks", Split.TRAIN)
    with workspace.database.write() as session:
        session.execute(
            sa.update(Annotation).where(Annotation.id == 1).values(status=AnnotationStatus.DELETED, deleted_at=now())
        )
    report = export_dataset(workspace, tmp_path / "after", request)
    assert tree(tmp_path / "after") == tree(tmp_path / "before")
    assert report.details["splits"] == {"train": 4, "val": 2}
    export_dataset(workspace, tmp_path / "today", MASKS)
    assert tree(tmp_path / "today") != tree(tmp_path / "before")


def test_a_training_that_did_not_record_its_validation_images_says_so(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    from activeseg.db.models import TrainingRunAnnotation, TrainingStatus

    with sqlite_labelled.database.write() as session:
        row = session.scalars(sa.select(LabelSetRow)).one()
        run = TrainingRun(
            status=TrainingStatus.DONE, reason="x", configuration={}, code_version="0", label_set_id=row.id, num_images=1
        )
        session.add(run)
        session.flush()
        session.add(TrainingRunAnnotation(training_run_id=run.id, annotation_id=1))
    report = export_dataset(sqlite_labelled, tmp_path / "out", ExportRequest(training_run=1))
    assert report.details["splits"] == {"train": 1}
    assert report.details["validation"] == "not recorded by this training"


def test_what_counted_at_a_time_is_exported(labelled: Workspace, tmp_path: Path) -> None:
    export_dataset(labelled, tmp_path / "then", MASKS)
    moment = now()
    Pillow.new("L", (64, 48), 2).save(tmp_path / "val-masks/ball_0200.png")
    import_dataset(labelled, str(tmp_path / "val-images"), tmp_path / "val-masks", Split.VAL)
    with labelled.database.write() as session:
        gone = session.get_one(Annotation, 1)
        gone.status, gone.deleted_at = AnnotationStatus.DELETED, now()
    export_dataset(labelled, tmp_path / "as-of", ExportRequest(as_of=moment))
    export_dataset(labelled, tmp_path / "as-of-now", ExportRequest(as_of=now()))
    export_dataset(labelled, tmp_path / "now", MASKS)
    shown = {name: manifest_of(tmp_path / name)["images"] for name in ("then", "as-of", "as-of-now", "now")}
    assert shown["as-of"] == shown["then"]
    assert shown["as-of-now"] == shown["now"]
    assert len(shown["now"]) == len(shown["then"]) - 1
    with pytest.raises(NotReadyError, match="nothing to export"):
        export_dataset(labelled, tmp_path / "never", ExportRequest(as_of=moment - timedelta(days=400)))


def test_a_time_without_a_zone_and_two_wishes_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2026-11-01T00:00:00 has no time zone: add one, as in 2026-11-01T00:00:00Z for UTC"):
        ExportRequest(as_of=datetime(2026, 11, 1))
    with pytest.raises(ConfigError, match="a training run and a time were named"):
        ExportRequest(as_of=now(), training_run=1)


def test_overlapping_classes_have_a_folder_each(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace = overlapping(make_sqlite_workspace, tmp_path)
    export_dataset(workspace, tmp_path / "out", MASKS)
    for name in CLASSES.names:
        for file in (tmp_path / "planes" / name).glob("*.png"):
            ours, known = tmp_path / "out/train/masks" / name / file.name, np.asarray(Pillow.open(file))
            assert np.array_equal(np.asarray(Pillow.open(ours)), known) if known.any() else not ours.exists() or name == "sky"


def overlapping(make: Make, tmp_path: Path) -> Workspace:
    write_balls(tmp_path / "images", range(3), masks=tmp_path / "masks")
    write_class_folders(tmp_path / "masks", tmp_path / "planes")
    for name in CLASSES.names:  # an image with none of the classes
        Pillow.new("1", (64, 48)).save(tmp_path / "planes" / name / "ball_0001.png")
    workspace = make(labels={"overlap": True})
    assert import_dataset(workspace, str(tmp_path / "images"), tmp_path / "planes", Split.TRAIN).written == 3
    return workspace


@pytest.mark.parametrize("overlap", [False, True])
def test_a_coco_export_is_read_by_the_coco_api(
    make_sqlite_workspace: Make, import_balls: ImportBalls, tmp_path: Path, overlap: bool
) -> None:
    workspace = overlapping(make_sqlite_workspace, tmp_path) if overlap else fill(make_sqlite_workspace(), import_balls)
    export_dataset(workspace, tmp_path / "out", COCO_FILES)
    file = COCO(str(tmp_path / "out/train/annotations.json"))
    with workspace.database.read() as session:
        known = {
            Path(item.image.uri).name: workspace.read_labeled(item)[1] for item in truth.current(session, split=Split.TRAIN)
        }
    assert sorted(image["file_name"] for image in file.imgs.values()) == sorted(known)
    assert {item["id"]: item["name"] for item in file.cats.values()} == {1: "sky", 2: "ground", 3: "ball", 4: "void"}
    for image in file.imgs.values():
        mask = known[image["file_name"]]
        annotations = {item["category_id"] - 1: item for item in file.imgToAnns[image["id"]]}
        for index in range(4):
            region = mask[index] if overlap else mask == index
            assert region.any() == (index in annotations)
            if index in annotations:
                assert np.array_equal(file.annToMask(annotations[index]).astype(bool), region)
                assert annotations[index]["bbox"] == api.toBbox(file.annToRLE(annotations[index])).tolist()
                assert (annotations[index]["area"], annotations[index]["iscrowd"]) == (region.sum(), 0)
    assert "date" not in json.dumps(file.dataset)


def test_masks_of_other_classes_are_not_mixed_and_keep_their_own_class_list(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    moment = now()
    renamed = LabelSet(("sky", "earth", "ball", "void"), CLASSES.colors, 3)
    (tmp_path / "classes.txt").write_text(renamed.to_text())
    workspace = Workspace(sqlite_labelled.settings, Database(sqlite_labelled.settings.database_url))
    export_dataset(workspace, tmp_path / "old", MASKS)
    assert parse_classes((tmp_path / "old/classes.txt").read_text()) == CLASSES
    write_balls(tmp_path / "new", range(500, 501), masks=tmp_path / "new-masks")
    import_dataset(workspace, str(tmp_path / "new"), tmp_path / "new-masks", Split.TRAIN)
    with pytest.raises(LabelSetMismatch, match="an export has one class list; export by --training-run, or by --as-of a time"):
        export_dataset(workspace, tmp_path / "mixed", MASKS)
    export_dataset(workspace, tmp_path / "older", ExportRequest(as_of=moment))
    workspace.database.close()


def test_a_folder_that_holds_anything_is_refused_and_left_alone(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_dataset(sqlite_labelled, out, MASKS)  # an empty one is taken
    before = tree(out)
    with pytest.raises(ConfigError, match=r"out is not empty \(it holds 'classes.txt'\): name another folder or remove it"):
        export_dataset(sqlite_labelled, out, MASKS)
    assert tree(out) == before
    with pytest.raises(ConfigError, match="is a file, or in one: name a new folder"):
        export_dataset(sqlite_labelled, out / "classes.txt", MASKS)
    with pytest.raises(ConfigError, match="is a file, or in one: name a new folder"):
        export_dataset(sqlite_labelled, out / "classes.txt/deep", MASKS)
    with pytest.raises(ConfigError, match=r"is in the pool .*, which would take its images for new ones"):
        export_dataset(sqlite_labelled, tmp_path / "pool/out", MASKS)
    with pytest.raises(ConfigError, match=r"is in the artifacts folder .*, which is not to hold other files"):
        export_dataset(sqlite_labelled, sqlite_labelled.artifacts.root / "out", MASKS)
    with pytest.raises(ConfigError, match="cannot be written: File name too long"):
        export_dataset(sqlite_labelled, tmp_path / ("n" * 250), MASKS)


def test_a_mount_point_is_refused_at_the_start(sqlite_labelled: Workspace) -> None:
    with pytest.raises(ConfigError, match="/ is a mount point: name a folder in it"):
        export_dataset(sqlite_labelled, Path("/"), MASKS)
    with pytest.raises(ConfigError, match="/proc is a mount point: name a folder in it"):
        export_dataset(sqlite_labelled, Path("/proc"), MASKS)


def test_a_link_to_a_folder_is_followed(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export_dataset(sqlite_labelled, tmp_path / "link", MASKS)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/manifest.json").exists()


def test_an_unfinished_folder_of_a_killed_export_is_removed_and_somebody_elses_is_not(
    sqlite_labelled: Workspace, tmp_path: Path
) -> None:
    partial = tmp_path / ".out.activeseg-partial"
    partial.mkdir()
    (partial / "mine").write_text("mine")
    with pytest.raises(ConfigError, match=r"activeseg-partial is in the way and was not left by an export: move it away"):
        export_dataset(sqlite_labelled, tmp_path / "out", MASKS)
    assert (partial / "mine").read_text() == "mine"
    (partial / folders.MARKER).touch()
    export_dataset(sqlite_labelled, tmp_path / "out", MASKS)
    assert not partial.exists()
    assert not (tmp_path / "out/mine").exists()


def test_of_two_exports_into_one_folder_the_second_is_refused(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    def second(done: int, planned: int) -> None:
        if done == 1:
            with pytest.raises(ConfigError, match=r"another export is writing .*activeseg-partial: wait for it"):
                export_dataset(sqlite_labelled, tmp_path / "out", MASKS)

    assert export_dataset(sqlite_labelled, tmp_path / "out", MASKS, on_progress=second).written == 5
    assert (tmp_path / "out/manifest.json").exists()


def test_what_came_into_the_folder_meanwhile_is_not_written_over(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    def somebody(done: int, planned: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/mine").write_text("mine")

    with pytest.raises(ConfigError, match=r"is not empty \(it holds 'mine'\)"):
        export_dataset(sqlite_labelled, tmp_path / "out", MASKS, on_progress=somebody)
    assert [path.name for path in tmp_path.glob("*out*")] == ["out"]
    assert tree(tmp_path / "out").keys() == {"mine"}


@pytest.mark.parametrize("call", ["flock", "mkdir"])
def test_a_disk_that_cannot_do_it_is_told_with_its_path(
    sqlite_labelled: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOLCK if call == "flock" else errno.ENOSPC, "no way", str(tmp_path / ".out.activeseg-partial"))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl if call == "flock" else Path, call, fail)
        with pytest.raises(ConfigError, match=r"\.out\.activeseg-partial.* cannot be (locked|written): no way"):
            export_dataset(sqlite_labelled, tmp_path / "out", MASKS)


def test_a_time_to_come_is_refused() -> None:
    with pytest.raises(ConfigError, match="is yet to come: what will count then cannot be exported"):
        ExportRequest(as_of=now() + timedelta(hours=1))


def test_each_row_that_is_left_out_counts_also_those_of_one_file(sqlite_labelled: Workspace, tmp_path: Path) -> None:
    with sqlite_labelled.database.write() as session:
        uri = session.get_one(Image, 1).uri
        session.execute(sa.update(Image).where(Image.id.in_([2, 3])).values(uri=uri))
    Path(uri).unlink()
    report = export_dataset(sqlite_labelled, tmp_path / "out", MASKS)
    assert (report.written, report.failed, len(report.details["problems"])) == (2, 3, 3)


def test_a_coco_file_that_no_import_would_read_is_refused(
    sqlite_labelled: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_dataset(sqlite_labelled, tmp_path / "known", COCO_FILES)
    sizes = {path.parent.name: path.stat().st_size for path in (tmp_path / "known").glob("*/annotations.json")}
    monkeypatch.setattr(manifest, "MAX_JSON_BYTES", sizes["train"])
    export_dataset(sqlite_labelled, tmp_path / "fits", COCO_FILES)
    monkeypatch.setattr(manifest, "MAX_JSON_BYTES", sizes["train"] - 1)
    with pytest.raises(
        ConfigError, match=r"the COCO file of 'train' has more than the \d+ bytes .*: export with --format masks"
    ):
        export_dataset(sqlite_labelled, tmp_path / "out", COCO_FILES)
    assert [path.name for path in tmp_path.glob("*out*")] == []


class Bucket:
    """An object store's answers, from a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list(self) -> Iterator[Entry]:
        return (Entry(path.name, path.stat().st_size) for path in self.folder.iterdir())

    def get(self, key: str, max_bytes: int) -> bytes:
        data = (self.folder / key).read_bytes()
        assert len(data) <= max_bytes
        return data


def test_images_of_an_object_store_are_copied(make_sqlite_workspace: Make, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=3, pool_section={"images": "s3://bucket/photos"})
    workspace.__dict__["pool_source"] = ObjectSource("s3://bucket/photos", Bucket(tmp_path / "pool"))
    sync_pool(workspace)
    with workspace.database.write() as session:
        for image in session.scalars(sa.select(Image)):
            stored = workspace.store_mask(np.zeros((48, 64), np.uint8))
            mask = imports.ImportedMask(stored.location, stored.sha256, stored.sha256)
            imports.record_mask(session, image, mask, CLASSES)
    (tmp_path / "pool/ball_0002.png").unlink()
    report = export_dataset(workspace, tmp_path / "out", MASKS)
    assert (report.written, report.failed, report.details["copied"]) == (2, 1, 2)
    assert (tmp_path / "out/pool/images/ball_0000.png").read_bytes() == (tmp_path / "pool/ball_0000.png").read_bytes()


def killed_at(step: int, workspace: Workspace, out: Path) -> bool:
    """Export in a child process that kills itself before its `step`-th change of the disk. Whether it came to that."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = iter(range(step - 1, -1, -1))

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(left, None) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    for name in ("link", "rename", "unlink", "mkdir", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    Path.write_bytes = dying(Path.write_bytes)  # type: ignore[method-assign]
    try:
        export_dataset(Workspace(workspace.settings, Database(workspace.settings.database_url)), out, MASKS)
    finally:
        os._exit(0)


@pytest.mark.slow
def test_killed_anywhere_it_leaves_nothing_under_the_name_or_all_and_the_next_one_ends_it(
    sqlite_labelled: Workspace, tmp_path: Path
) -> None:
    workspace, out = sqlite_labelled, tmp_path / "out"
    export_dataset(workspace, tmp_path / "new", MASKS)
    wanted, step, killed, seen = tree(tmp_path / "new"), 0, True, set()
    while killed:
        step += 1
        killed = killed_at(step, workspace, out)
        seen.add(out.exists())
        if out.exists():
            # Between the rename and the end its marker is still there.
            found = tree(out)
            found.pop(folders.MARKER, None)
            assert found == wanted, step
            if killed:
                shutil.rmtree(out)
    assert step > 20
    assert seen == {False, True}
    assert tree(out) == wanted
    assert not list(tmp_path.glob(".*activeseg*"))
