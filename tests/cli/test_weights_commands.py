"""`activeseg weights`: classes, import and adopt, as the installed program runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from activeseg.core.labels import parse_classes
from activeseg.core.palette import voc_palette
from tests.cli.commands import CommandLine

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow

LIGHT = "lraspp_mobilenet_v3_large"


@pytest.fixture
def voc(empty: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """An empty workspace for torchvision's LR-ASPP, with its classes."""
    monkeypatch.setenv("ACTIVESEG_MODEL__ARCHITECTURE", LIGHT)
    monkeypatch.setenv("ACTIVESEG_MODEL__WIDTH", "1.0")
    assert empty.config is not None
    empty.config.with_name("classes.txt").write_text(empty("weights", "classes").out, encoding="utf-8")
    return empty


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file as torchvision publishes it."""
    torch.save(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21).state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_the_class_list_of_published_weights_is_printed_without_a_workspace(tmp_path: Path) -> None:
    answer = CommandLine(tmp_path / "nothing.toml")("weights", "classes", "--architecture", "fcn_resnet101")
    label_set = parse_classes(answer.out)
    assert label_set.names[0] == "__background__"
    assert label_set.names[20] == "tvmonitor"
    assert label_set.colors == voc_palette(21)
    assert label_set.num_classes == 21


def test_networks_without_published_weights_have_no_class_list(empty: CommandLine) -> None:
    assert "torchvision publishes no fcn_mobilenet_v2" in empty("weights", "classes").error


def test_an_adopted_network_becomes_the_champion_and_scores(voc: CommandLine, weights: Path) -> None:
    adopted, promoted = voc("weights", "adopt", weights, "--json").data
    assert (adopted["stage"], adopted["written"], promoted["details"]["promoted"]) == ("adopt", 1, 1)
    [row] = voc("checkpoints", "--json").data
    assert row["champion"]
    assert row["model_version"] == adopted["details"]["model_version"]
    assert "adopt: 0 written" in voc("weights", "adopt", weights).out


def test_without_promotion_an_adopted_network_waits(voc: CommandLine, weights: Path) -> None:
    assert [report["stage"] for report in voc("weights", "adopt", weights, "--no-promote", "--json").data] == ["adopt"]
    assert not voc("checkpoints", "--json").data[0]["champion"]


def test_import_says_which_layers_start_at_random(voc: CommandLine, weights: Path) -> None:
    assert voc("weights", "import", weights, "--json").data["random"] == {}
    assert voc.config is not None
    voc.config.with_name("classes.txt").write_text("sky\nroad\n", encoding="utf-8")
    told = voc("weights", "import", weights).out
    assert "start at random: classifier.low_classifier (shape (21, 40, 1, 1) in the file, (2, 40, 1, 1) here)" in told
    assert 'set weights = "' in told
    assert "is for other classes than the 2 of [labels]" in voc("weights", "adopt", weights).error
    assert f"under [model] in {voc.config}" in told
