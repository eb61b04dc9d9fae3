"""Weights trained elsewhere become a checkpoint like any other, once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import sqlalchemy as sa
import torch
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, lraspp_mobilenet_v3_large

from activeseg.core.labels import LabelSet
from activeseg.db import checkpoints, lease
from activeseg.db.models import Checkpoint, Split
from activeseg.errors import CheckpointError, ConfigError, LabelSetMismatch
from activeseg.nn.checkpoint import NetworkSpec, checkpoint_bytes, load_checkpoint, new_segmenter
from activeseg.nn.zoo import published_label_set
from activeseg.stages import adopt
from activeseg.stages.adopt import adopt_weights
from activeseg.stages.promote import promote_challengers
from activeseg.stages.train import train_challenger
from activeseg.workspace import Workspace
from tests.factories import CLASSES

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow

LIGHT = "lraspp_mobilenet_v3_large"
HEAVY = "deeplabv3_mobilenet_v3_large"


def torchvisions(architecture: str, *, aux: bool = False) -> torch.nn.Module:
    torch.manual_seed(4)
    if architecture == LIGHT:
        return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21).eval()
    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21, aux_loss=aux).eval()


def voc_workspace(make_workspace: Callable[..., Workspace], architecture: str) -> Workspace:
    workspace = make_workspace(pool=1, model={"architecture": architecture, "width": 1.0})
    workspace.settings.path(workspace.settings.labels.file).write_text(published_label_set(LIGHT).to_text(), encoding="utf-8")
    return workspace


def champion(workspace: Workspace) -> Checkpoint:
    with workspace.database.read() as session:
        return checkpoints.require_champion(session)


@pytest.mark.parametrize(
    ("architecture", "aux", "suffix"),
    [(LIGHT, False, ".pth"), (LIGHT, False, ".safetensors"), (HEAVY, True, ".pth"), (HEAVY, False, ".safetensors")],
)
def test_an_adopted_network_serves_and_says_what_torchvisions_says(
    make_sqlite_workspace, tmp_path: Path, architecture: str, aux: bool, suffix: str
) -> None:
    workspace = voc_workspace(make_sqlite_workspace, architecture)
    network = torchvisions(architecture, aux=aux)
    file = tmp_path / f"weights{suffix}"
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    save(network.state_dict(), file)
    with lease.holding(workspace.database):
        report = adopt_weights(workspace, file)
        assert promote_challengers(workspace).details["reason"] == "first"
    row = champion(workspace)
    assert report.written == 1
    assert row.model_version == report.details["model_version"] == f"{architecture}-adopted-{row.sha256[:8]}"
    segmenter = load_checkpoint(workspace.artifacts.read(row.location), model_version=row.model_version, device="cpu")
    assert segmenter.spec.aux is (aux or architecture == LIGHT)
    image = torch.rand(1, 3, 65, 50)
    with torch.inference_mode():
        assert torch.allclose(segmenter.module(image)["out"], network(image)["out"], atol=1e-5)


def test_adopting_twice_writes_nothing_new(make_workspace, tmp_path: Path) -> None:
    workspace = voc_workspace(make_workspace, LIGHT)
    torch.save(torchvisions(LIGHT).state_dict(), tmp_path / "weights.pth")
    with lease.holding(workspace.database):
        reports = [adopt_weights(workspace, tmp_path / "weights.pth") for _ in range(2)]
    assert [report.written for report in reports] == [1, 0]
    assert reports[0].details == reports[1].details
    with workspace.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Checkpoint)) == 1


def test_a_checkpoint_of_another_database_is_adopted(make_sqlite_workspace, train_champion, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace()
    train_champion(workspace)
    first = champion(workspace)
    (tmp_path / "taken.safetensors").write_bytes(workspace.artifacts.read(first.location))
    with lease.holding(workspace.database):
        report = adopt_weights(workspace, tmp_path / "taken.safetensors")
    assert report.written == 0  # the very same network is here already
    assert report.details["model_version"] == first.model_version


def test_the_gate_judges_an_adopted_network_like_a_trained_one(make_sqlite_workspace, import_balls, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(model={"architecture": LIGHT, "width": 1.0})
    import_balls(workspace, range(200, 202), Split.VAL)
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=workspace.label_set.num_classes)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    with lease.holding(workspace.database):
        adopt_weights(workspace, tmp_path / "weights.pth")
        report = promote_challengers(workspace)
    assert report.details["promoted"] == 1
    assert "mean_iou" in report.details["statistics"]


def test_what_is_no_whole_network_for_these_classes_is_refused(make_sqlite_workspace, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=1, model={"architecture": LIGHT, "width": 1.0})
    weights = torchvisions(LIGHT).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    backbone = {name.replace("backbone.", "features."): v for name, v in weights.items() if name.startswith("backbone.")}
    torch.save(backbone, tmp_path / "backbone.pth")
    with lease.holding(workspace.database):
        with pytest.raises(LabelSetMismatch, match=r"low_classifier .* than the 3 of \[labels\] .* weights classes"):
            adopt_weights(workspace, tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match=r"no trained lraspp.*cbr\.0 is not in the file.*\[model\] weights"):
            adopt_weights(workspace, tmp_path / "backbone.pth")
    with workspace.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Checkpoint)) == 0


def write_checkpoint(workspace: Workspace, file: Path, **changes: object) -> Path:
    """A checkpoint of [model] and [labels], but for some fields of its description."""
    model = workspace.settings.model
    spec = NetworkSpec(model.architecture, model.width, model.decoder_stride, workspace.label_set, workspace.input_policy)
    file.write_bytes(checkpoint_bytes(new_segmenter(replace(spec, **changes), model_version="m")))
    return file


def adopted(workspace: Workspace, file: Path | None) -> int:
    with lease.holding(workspace.database):
        return adopt_weights(workspace, file).written


ORDER = LabelSet(("ground", "sky", "ball", "void"), CLASSES.colors, ignore_index=3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"label_set": ORDER}, "ground, sky, ball, void (void ignored); [labels] has sky, ground"),
        ({"label_set": replace(CLASSES, ignore_index=2)}, "(ball ignored); [labels] has"),
        ({"label_set": replace(CLASSES, overlap=True)}, "may overlap); [labels] has .*: set [labels] overlap as it was"),
    ],
    ids=["another order", "another ignored class", "overlap"],
)
def test_a_checkpoint_for_other_classes_of_the_same_number_is_refused(
    make_sqlite_workspace, tmp_path: Path, changes: dict[str, LabelSet], named: str
) -> None:
    workspace = make_sqlite_workspace(pool=1)
    file = write_checkpoint(workspace, tmp_path / "foreign.safetensors", **changes)
    pattern = re.escape(named).replace(r"\.\*", ".*")
    with pytest.raises(LabelSetMismatch, match=rf"^checkpoint .*foreign\.safetensors knows the classes .*{pattern}"):
        adopted(workspace, file)


def test_a_checkpoint_with_another_input_or_network_is_refused_with_the_difference(
    make_sqlite_workspace, tmp_path: Path
) -> None:
    workspace = make_sqlite_workspace(pool=1)
    policy = replace(workspace.input_policy, short_side=64, mean=(0.1, 0.1, 0.1))
    file = write_checkpoint(workspace, tmp_path / "w.safetensors", input_policy=policy)
    with pytest.raises(CheckpointError, match=r"with short_side 64 \(here None\), mean \[0\.1.*\(here \[0\.5.*: set \[model\]"):
        adopted(workspace, file)
    other = write_checkpoint(workspace, tmp_path / "w.safetensors", architecture="fcn8s_vgg16")
    with pytest.raises(CheckpointError, match=r"with architecture fcn8s_vgg16 \(here fcn_mobilenet_v2\): set \[model\]"):
        adopted(workspace, other)


def test_colours_make_no_other_network(make_sqlite_workspace, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=1)
    painted = replace(CLASSES, colors=tuple(reversed(CLASSES.colors)))
    assert adopted(workspace, write_checkpoint(workspace, tmp_path / "w.safetensors", label_set=painted)) == 1


def test_of_a_bare_state_dict_the_number_of_classes_is_all_that_is_known(make_sqlite_workspace, tmp_path: Path) -> None:
    workspace = make_sqlite_workspace(pool=1)
    file = write_checkpoint(workspace, tmp_path / "w.safetensors", label_set=ORDER)
    safetensors.torch.save_file(safetensors.torch.load(file.read_bytes()), tmp_path / "bare.safetensors")
    assert adopted(workspace, tmp_path / "bare.safetensors") == 1


def test_torchvisions_weights_are_for_its_own_classes_only(make_sqlite_workspace, monkeypatch) -> None:
    monkeypatch.setattr(adopt, "published_weights", lambda architecture: torchvisions(architecture).state_dict())
    workspace = voc_workspace(make_sqlite_workspace, LIGHT)
    classes = workspace.settings.path(workspace.settings.labels.file)
    published = classes.read_text(encoding="utf-8")
    for text in ("\n".join(f"street{number}" for number in range(21)), published.replace("cat ", "lynx ")):
        classes.write_text(text, encoding="utf-8")
        with pytest.raises(
            LabelSetMismatch, match=r"lraspp_mobilenet_v3_large knows the classes __background__, .*weights classes"
        ):
            adopted(Workspace(workspace.settings, workspace.database), None)
    classes.write_text(f"{published}void ignore\n", encoding="utf-8")  # has no channel
    assert adopted(Workspace(workspace.settings, workspace.database), None) == 1


def test_torchvisions_classes_do_not_overlap(make_sqlite_workspace, monkeypatch) -> None:
    monkeypatch.setattr(adopt, "published_weights", lambda architecture: torchvisions(architecture).state_dict())
    model = {"architecture": LIGHT, "width": 1.0}
    workspace = make_sqlite_workspace(pool=1, model=model, labels={"overlap": True})
    workspace.settings.path(workspace.settings.labels.file).write_text(published_label_set(LIGHT).to_text(), encoding="utf-8")
    with pytest.raises(LabelSetMismatch, match="may overlap"):
        adopted(workspace, None)


def test_without_a_file_torchvision_must_publish_one(make_sqlite_workspace, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(ConfigError, match="publishes no fcn_mobilenet_v2"):
        adopt_weights(make_sqlite_workspace(pool=1), None)
    with pytest.raises(CheckpointError, match="could not download"):
        adopt_weights(voc_workspace(make_sqlite_workspace, LIGHT), None)


def test_a_network_without_auxiliary_head_can_be_trained_on(make_sqlite_workspace, import_balls, tmp_path: Path) -> None:
    model = {"architecture": HEAVY, "width": 1.0}
    workspace = make_sqlite_workspace(pool=1, model=model, training={"start": "champion", "steps": 1, "batch_size": 2})
    import_balls(workspace, range(100, 104), Split.TRAIN)
    classes = workspace.label_set.num_classes
    network = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    with lease.holding(workspace.database):
        adopt_weights(workspace, tmp_path / "weights.pth")
        promote_challengers(workspace)
        report = train_challenger(workspace, reason="test")
    with workspace.database.read() as session:
        trained = checkpoints.by_version(session, report.details["model_version"])
    data = workspace.artifacts.read(trained.location)
    segmenter = load_checkpoint(data, model_version="m", device="cpu")
    assert segmenter.spec.aux is False
    assert checkpoint_bytes(segmenter) == data
