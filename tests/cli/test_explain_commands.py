"""The explain commands write the files they name, from checkpoints and from classifiers, with and without a workspace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import mobilenet_v2

from activeseg.imaging.coloring import colorize, with_palette
from tests.cli.commands import CommandLine
from tests.factories import CLASSES

# Seconds, not milliseconds: left out by `make check`.
pytestmark = pytest.mark.slow


@pytest.fixture
def ball(trained_folder: Path) -> Path:
    return trained_folder / "val/images/ball_0200.png"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A classifier of three categories with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    torch.save(mobilenet_v2(num_classes=3).state_dict(), folder / "weights.pth")
    (folder / "categories.txt").write_text("cat\ndog\nball\n", encoding="utf-8")
    return folder / "weights.pth", folder / "categories.txt"


def names(data: dict[str, list[str]]) -> list[str]:
    return [Path(file).name for file in data["files"]]


def test_arrays_hold_what_the_pictures_show(trained: CommandLine, ball: Path, tmp_path: Path) -> None:
    data = trained("explain", "image", ball, "--out", tmp_path, "--npy", "--palette", "voc", "--json").data
    entropy, probabilities, mask = (
        np.load(tmp_path / f"ball_0200-{name}.npy") for name in ("entropy", "probabilities", "mask")
    )
    assert data["entropy_sum"] == pytest.approx(float(entropy.sum(dtype=np.float64)))
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_array_equal(mask, CLASSES.to_indices(probabilities.argmax(axis=0).astype(np.uint8)))
    np.testing.assert_allclose(entropy, -(probabilities * np.log(probabilities)).sum(axis=0), atol=1e-4)
    drawn = np.asarray(Image.open(tmp_path / "ball_0200-labels.png"))
    np.testing.assert_array_equal(drawn, np.asarray(colorize(mask, with_palette(CLASSES, "voc"))))


def test_normalised_entropy_is_in_parts_of_log_c(trained: CommandLine, ball: Path, tmp_path: Path) -> None:
    plain = trained("explain", "image", ball, "--out", tmp_path, "--json").data
    normal = trained("explain", "image", ball, "--out", tmp_path, "--normalised", "--scale", "image", "--json").data
    assert normal["entropy_sum"] * np.log(CLASSES.num_classes) == pytest.approx(plain["entropy_sum"], rel=1e-5)


def test_a_class_that_is_asked_for_is_drawn_however_rare(trained: CommandLine, ball: Path, tmp_path: Path) -> None:
    data = trained("explain", "image", ball, "--out", tmp_path, "--probability", "ball", "--json").data
    assert [name for name in names(data) if "class-" in name] == ["ball_0200-class-ball.png"]


def test_a_class_named_twice_counts_once(trained: CommandLine, ball: Path, tmp_path: Path) -> None:
    once = trained("explain", "image", ball, "--class", "ball", "--out", tmp_path, "--json").data
    twice = trained("explain", "image", ball, "--class", "ball", "--class", "ball", "--out", tmp_path, "--json").data
    assert twice == once
    assert "ball, ball" not in trained("explain", "image", ball, *["--class", "ball"] * 2, "--out", tmp_path).out
    assert names(trained("explain", "image", ball, *["--probability", "ball"] * 2, "--out", tmp_path, "--json").data)


def test_what_no_network_says_cannot_be_drawn(trained: CommandLine, ball: Path, tmp_path: Path) -> None:
    arguments = ("explain", "image", ball, "--out", tmp_path)
    assert "'void' is ignored" in trained(*arguments, "--probability", "void").error
    assert "'void' is ignored" in trained(*arguments, "--class", "void").error
    assert "unknown colour map" in trained(*arguments, "--colormap", "jett").error
    assert "expected fixed or image" in trained(*arguments, "--scale", "own").error
    assert "labels or voc" in trained(*arguments, "--palette", "cityscapes").error


def test_saliency_and_localisation_from_a_checkpoint(trained: CommandLine, ball: Path, tmp_path: Path) -> None:
    data = trained("explain", "saliency", ball, "--class", "ground", "--out", tmp_path, "--npy", "--json").data
    assert data["class"] == "ground"
    assert np.load(tmp_path / "ball_0200-saliency.npy").shape == (48, 64)
    top = trained("explain", "saliency", ball, "--out", tmp_path, "--predicted-only", "--json").data
    assert top["class"] in CLASSES.names
    cut = trained("explain", "localise", ball, "--class", "ground", "--out", tmp_path, "--json").data
    mask = np.asarray(Image.open(tmp_path / "ball_0200-mask.png"))
    assert mask.shape == (48, 64)
    assert cut["share"] == pytest.approx(float(mask.astype(bool).mean()))
    assert "knows no class 'void'" in trained("explain", "saliency", ball, "--class", "void", "--out", tmp_path).error


def test_a_classifier_needs_no_workspace(
    weights: tuple[Path, Path], ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--classifier", "mobilenet_v2", "--weights", weights[0], "--categories", weights[1], "--json")
    assert CommandLine()("explain", "saliency", ball, *options).data["class"] in ("cat", "dog", "ball")
    assert CommandLine()("explain", "localise", ball, "--class", "dog", *options).data["class"] == "dog"
    assert len(list((tmp_path / "explain").iterdir())) == 6


def test_a_network_is_named_once(trained: CommandLine, weights: tuple[Path, Path], ball: Path) -> None:
    assert "got both" in trained("explain", "saliency", ball, "--classifier", "mobilenet_v2", "--checkpoint", "x").error
    assert "name it with --classifier" in trained("explain", "saliency", ball, "--weights", weights[0]).error


def test_a_class_model_is_written_as_it_grows(trained: CommandLine, tmp_path: Path) -> None:
    options = ("--steps", "4", "--every", "2", "--size", "32", "--out", tmp_path, "--json")
    data = trained("explain", "class-model", "--class", "ball", *options).data
    assert len(data["scores"]) == 5
    assert names(data) == [f"ball-class-model{end}.png" for end in ("-0002", "-0004", "-scores", "")]
    assert (tmp_path / "ball-class-model-0004.png").read_bytes() == (tmp_path / "ball-class-model.png").read_bytes()
    assert Image.open(tmp_path / "ball-class-model.png").size == (32, 32)


def test_a_folder_that_cannot_be_made_is_noticed_before_the_work(
    trained: CommandLine, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("it began to climb")

    monkeypatch.setattr("activeseg.explain.ascent.class_model", refuse)
    assert "File exists" in trained("explain", "class-model", "--class", "ball", "--out", ball).error


def test_a_figure_lists_the_classes_of_the_truth_best_first(trained: CommandLine, ball: Path, tmp_path: Path) -> None:
    truth = ball.parents[1] / "masks"
    data = trained("explain", "figure", ball, "--truth", truth / ball.name, "--out", tmp_path, "--json").data
    [image] = data["images"]
    scores = [row["iou"] for row in image["classes"]]
    assert {row["name"] for row in image["classes"]} == {"sky", "ground", "ball"}
    assert scores == sorted(scores, reverse=True)
    both = trained("explain", "figure", ball, ball.with_name("ball_0201.png"), "--truth", truth, "--out", tmp_path)
    assert both.code == 0
    assert "ball_0201.png" in both.out
    assert "expected 2 masks" in trained("explain", "figure", ball, ball, "--truth", truth / ball.name).error
    assert "cannot be read" in trained("explain", "figure", ball, "--truth", tmp_path / "none.png").error


def test_a_sheet_keeps_no_image_larger_than_it_draws_it(
    trained: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        Image.new("RGB", (1500, 1200)).save(tmp_path / f"images/{number}.png")
        Image.new("L", (1500, 1200)).save(tmp_path / f"masks/{number}.PNG")
    handed: list[tuple[int, ...]] = []

    def watched(items: list[tuple[np.ndarray, np.ndarray, str]], *rest: object, **options: object) -> Image.Image:
        handed.extend(array.shape[:2] for image, mask, _ in items for array in (image, mask))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("activeseg.explain.truth.contact_sheet", watched)
    folders = ("--images", tmp_path / "images", "--masks", tmp_path / "masks")
    trained("explain", "sheet", *folders, "--out", tmp_path)
    assert handed == [(256, 320)] * 6


def test_a_contact_sheet_comes_from_the_database_or_from_folders(trained: CommandLine, ball: Path, tmp_path: Path) -> None:
    images, masks = ball.parent, ball.parents[1] / "masks"
    found = trained("explain", "sheet", "--split", "train", "--limit", "4", "--out", tmp_path, "--json").data
    assert found["images"][0] == "ball_0100.png"
    assert found["images"][-1] == "ball_0105.png"
    assert len(found["images"]) == 4
    named = trained("explain", "sheet", "--images", images, "--masks", masks, "--out", tmp_path, "--json").data
    assert named["images"] == ["ball_0200.png", "ball_0201.png", "ball_0202.png"]
    assert (tmp_path / "sheet.png").exists()
    assert "--images together with --masks" in trained("explain", "sheet", "--images", images).error
    assert "no annotations in split test" in trained("explain", "sheet", "--split", "test").error
    assert "expected train, val or test" in trained("explain", "sheet", "--split", "dev").error
