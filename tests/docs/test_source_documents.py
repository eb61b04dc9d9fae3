"""Every row of docs/source-documents.md: its commands run, and the files and values they make are what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from activeseg.config import TrainingSection, load_settings, toml_value
from activeseg.core.palette import voc_palette
from activeseg.db import checkpoints
from activeseg.db.models import TrainingRun
from activeseg.nn.checkpoint import load_checkpoint
from activeseg.workspace import open_workspace
from tests.cli.commands import Answer, CommandLine
from tests.docs.pages import ROOT, blocks
from tests.factories import MODEL, TRAINING, write_balls, write_class_folders

PAGE = ROOT / "docs" / "source-documents.md"
CLASSES = "sky #78b4f0\nroad #5a8c3c\ncar #dc3c28\nvoid #000000 ignore\n"
NAMES = ["sky", "road", "car", "void"]

# The source documents' rows, by section.
ROWS = [f"{section}.{row}" for section, count in ((1, 5), (2, 4), (3, 13), (4, 7), (5, 5)) for row in range(1, count + 1)]

# What makes a command quick enough for a test, and nothing else.
QUICKER = {
    "compare_strides.py": ("--steps", "2", "--seeds", "1"),
    "class-model": ("--steps", "4", "--size", "48"),
}

_ROW = re.compile(r"^\| (\d\.\d+) \|(.*)\|$", re.MULTILINE)
_COMMAND = re.compile(r"`((?:activeseg|python) [^`]+)`")


def rows_of_the_page() -> dict[str, list[str]]:
    """Commands by row: those of the third column."""
    found = _ROW.findall(PAGE.read_text(encoding="utf-8"))
    return {row: _COMMAND.findall(re.split(r"(?<!\\) \| ", rest)[1]) for row, rest in found}


COMMANDS = rows_of_the_page()


@dataclass(frozen=True)
class Folder:
    """The folder of the page, and what its commands printed there."""

    path: Path

    def run(self, command: str) -> Answer:
        words = shlex.split(command)
        words += [word for name, more in QUICKER.items() if any(one.endswith(name) for one in words) for word in more]
        if words[0] == "activeseg":
            return CommandLine()(*words[1:])
        words = [str(ROOT / word) if word.startswith("scripts/") else word for word in words]
        done = subprocess.run([sys.executable, *words[1:]], cwd=self.path, capture_output=True, text=True, check=False)
        return Answer(done.returncode, done.stdout, done.stderr)

    def array(self, name: str) -> Any:
        return np.load(self.path / name)

    def picture(self, name: str) -> Image.Image:
        return Image.open(self.path / name)


def write_workspace(folder: Path, images: Path, *, model: dict[str, Any], training: dict[str, Any], **labels: bool) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "classes.txt").write_text(CLASSES, encoding="utf-8")
    tables = {"pool": {"images": str(images)}, "labels": labels, "model": model, "training": training}
    text = "\n".join(
        f"[{name}]\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in table.items()) for name, table in tables.items()
    )
    (folder / "activeseg.toml").write_text(text, encoding="utf-8")


def documents_settings() -> dict[str, dict[str, Any]]:
    """The TOML block of the page."""
    import tomllib

    [body] = blocks(PAGE, "toml")
    return tomllib.loads(body)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page describes, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("page")
    write_balls(folder / "photos", range(6), masks=folder / "masks")
    write_balls(folder / "val/images", range(200, 203), masks=folder / "val/masks")
    write_balls(folder / "pool", range(300, 304))
    write_class_folders(folder / "masks", folder / "planes")
    for plane, name in (("ground", "road"), ("ball", "car")):
        (folder / "planes" / plane).rename(folder / "planes" / name)
    Image.open(folder / "val/images/ball_0200.png").save(folder / "street.png")
    Image.open(folder / "val/masks/ball_0200.png").save(folder / "street-mask.png")
    Image.open(folder / "street.png").resize((57, 41)).save(folder / "odd.png")
    weights = torchvision.models.mobilenet_v2(weights=None).state_dict()
    torch.save(weights, folder / "classifier.pth")

    theirs = documents_settings()
    quick = TRAINING | {"steps": 80, "ema_decay": 0.0, "validate_every": 0}
    write_workspace(folder, folder / "pool", model=MODEL, training=quick)
    write_workspace(folder / "overlap", folder / "pool", model=MODEL, training=TRAINING, overlap=True)
    write_workspace(
        folder / "documents",
        folder / "pool",
        model=theirs["model"] | {"width": 0.02, "device": "cpu"},
        training=theirs["training"] | {"epochs": 1, "min_train": 4},
        **theirs["labels"],
    )
    for name, masks in (("", "masks"), ("overlap", "planes"), ("documents", "masks")):
        command = CommandLine(folder / name / "activeseg.toml")
        steps: list[tuple[object, ...]] = [("db", "upgrade"), ("pool", "sync")]
        steps.append(("dataset", "import", "--images", folder / "photos", "--masks", folder / masks, "--split", "train"))
        steps.append(("train",))
        if not name:
            val = folder / "val"
            steps.append(("dataset", "import", "--images", val / "images", "--masks", val / "masks", "--split", "val"))
            steps += [("train", "--no-promote"), ("score",)]
        for step in steps:
            answer = command(*step)
            assert answer.code == 0, (step, answer.err)
    return folder


@pytest.fixture
def folder(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(prepared)
    monkeypatch.delenv("ACTIVESEG_CONFIG", raising=False)
    return Folder(prepared)


CHECKS: dict[str, Callable[[Folder, list[Answer]], None]] = {}


def shows(*rows: str) -> Callable[[Callable[[Folder, list[Answer]], None]], Callable[[Folder, list[Answer]], None]]:
    def add(check: Callable[[Folder, list[Answer]], None]) -> Callable[[Folder, list[Answer]], None]:
        CHECKS.update(dict.fromkeys(rows, check))
        return check

    return add


def plogp(probabilities: Any) -> Any:
    wide = probabilities.astype(np.float64)
    return -(wide * np.log(wide, where=wide > 0, out=np.zeros_like(wide)))


def layers(answer: Answer) -> dict[str, str]:
    return {layer["name"]: layer["kind"] for layer in answer.data["layers"]}


def transposed(answer: Answer) -> list[str]:
    return [kind for kind in layers(answer).values() if kind.startswith("ConvTranspose2d")]


@shows("1.1")
def entropy_of_each_pixel(folder: Folder, answers: list[Answer]) -> None:
    expected = plogp(folder.array("plain/street-probabilities.npy")).sum(axis=0)
    assert np.allclose(folder.array("plain/street-entropy.npy"), expected, atol=1e-4)
    assert np.allclose(folder.array("normalised/street-entropy.npy"), expected / np.log(3), atol=1e-4)


@shows("1.2")
def the_sum_ranks_images(folder: Folder, answers: list[Answer]) -> None:
    rows = answers[1].data["items"] if isinstance(answers[1].data, dict) else answers[1].data
    scores = [row["score"] for row in rows]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    for row in rows:
        folder.run(f"activeseg explain image {row['uri']} --npy --out ranked")
        entropy = folder.array(f"ranked/{Path(row['uri']).stem}-entropy.npy")
        assert row["score"] == pytest.approx(entropy.sum(dtype=np.float64), rel=1e-4)


@shows("1.3")
def entropy_of_a_class(folder: Folder, answers: list[Answer]) -> None:
    folder.run("activeseg explain image street.png --npy --out plain")
    expected = plogp(folder.array("plain/street-probabilities.npy"))[NAMES.index("road")]
    assert np.allclose(folder.array("only-road/street-entropy.npy"), expected, atol=1e-4)
    whole = {row["image_id"]: row["score"] for row in folder.run("activeseg rankings --json").data}
    assert all(0 < row["score"] < whole[row["image_id"]] for row in answers[1].data)


@shows("1.4")
def the_picture(folder: Folder, answers: list[Answer]) -> None:
    assert folder.picture("pictures/street-entropy.png").height > 48, "the map and its scale"
    figure = folder.picture("pictures/street-figure.png")
    assert figure.width > 3 * 64
    colors = {color for _, color in figure.convert("RGB").getcolors(1 << 24) or []}
    assert voc_palette(3)[1] in colors
    assert {(0, 0, 127), (127, 0, 0)} <= colors, "both ends of jet, in the scale"


@shows("1.5")
def deeplab_and_its_classes(folder: Folder, answers: list[Answer]) -> None:
    meta = torchvision.models.segmentation.DeepLabV3_ResNet101_Weights.DEFAULT.meta
    assert answers[0].data["parameters"] == meta["num_params"]
    lines = answers[1].out.splitlines()
    assert len(lines) == 21
    assert [re.split(r" #", line)[0] for line in lines][1:] == meta["categories"][1:]


@shows("2.1", "2.2")
def softmax_over_channels(folder: Folder, answers: list[Answer]) -> None:
    probabilities, mask = folder.array("plain/street-probabilities.npy"), folder.array("plain/street-mask.npy")
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(mask, probabilities.argmax(axis=0))


@shows("2.3")
def sigmoid_for_each_class(folder: Folder, answers: list[Answer]) -> None:
    yes, mask = folder.array("several/street-probabilities.npy"), folder.array("several/street-mask.npy")
    assert not np.allclose(yes.sum(axis=0), 1, atol=1e-2)
    assert mask.shape == (4, 48, 64)
    assert np.array_equal(mask[:3], yes > 0.5)
    expected = (plogp(yes) + plogp(1 - yes.astype(np.float64))).sum(axis=0)
    assert np.allclose(folder.array("several/street-entropy.npy"), expected, atol=1e-3)


@shows("2.4")
def networks_end_in_logits(folder: Folder, answers: list[Answer]) -> None:
    assert abs(float(answers[0].out) - 1) > 1e-3


@shows("3.1")
def the_vgg_encoder(folder: Folder, answers: list[Answer]) -> None:
    kinds = list(layers(answers[0]).values())
    channels = [int(match[1]) for kind in kinds if (match := re.match(r"Conv2d\(\d+, (\d+), kernel_size=\(3, 3\)", kind))]
    assert channels == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert any(kind.startswith("Conv2d(512, 4096, kernel_size=(7, 7)") for kind in kinds)
    assert any(kind.startswith("Conv2d(4096, 4096, kernel_size=(1, 1)") for kind in kinds)


@shows("3.2", "3.3", "3.4")
def parameters_of_the_three(folder: Folder, answers: list[Answer]) -> None:
    counts = {"fcn32s_vgg16": "184,592,192", "fcn16s_vgg16": "135,089,996", "fcn8s_vgg16": "135,067,736"}
    name = answers[0].out.splitlines()[-1].split()[0]
    assert counts[name] in answers[0].out


@shows("3.5")
def both_forms(folder: Folder, answers: list[Answer]) -> None:
    documents, paper = (transposed(answer) for answer in answers)
    assert sorted(re.findall(r"kernel_size=\((\d+)", " ".join(documents))) == ["4", "4", "8"]
    assert any(kind.startswith("ConvTranspose2d(4096, 12") for kind in documents)
    assert all("bias=False" in kind for kind in documents)
    assert sorted(re.findall(r"kernel_size=\((\d+)", " ".join(paper))) == ["16", "4", "4"]
    assert all(kind.startswith("ConvTranspose2d(12, 12") for kind in paper)


@shows("3.6")
def any_size(folder: Folder, answers: list[Answer]) -> None:
    assert folder.array("odd/odd-mask.npy").shape == (41, 57)
    assert folder.array("odd-fcn8s/odd-entropy.npy").shape == (41, 57)


@shows("3.7")
def folders_and_void(folder: Folder, answers: list[Answer]) -> None:
    assert answers[0].data[0]["details"]["unchanged"] == 6
    assert "'void' ignored" in answers[1].out
    assert "ignored" not in answers[2].out
    assert "4 classes" in answers[2].out


def checkpoint_rows(answer: Answer) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = answer.data
    return rows


@shows("3.8")
def input_scaling(folder: Folder, answers: list[Answer]) -> None:
    spec = checkpoint_rows(answers[0])[0]["spec"]
    assert spec["input_policy"]["mean"] == spec["input_policy"]["std"] == [0.5, 0.5, 0.5]
    assert spec["architecture"] == "fcn8s_vgg16"


@shows("3.9")
def the_documents_training(folder: Folder, answers: list[Answer]) -> None:
    version = answers[0].data[0]["details"]["model_version"]
    with open_workspace(load_settings(folder.path / "documents/activeseg.toml")) as workspace:
        with workspace.database.read() as session:
            run = session.get_one(TrainingRun, int(version.rpartition("-")[2]))
        assert workspace.label_set.num_classes == 4, "void is a class"
    recipe = run.configuration["training"]
    assert TrainingSection.model_validate(documents_settings()["training"]).epochs == 70
    wanted = {"learning_rate": 0.01, "momentum": 0.9, "batch_size": 64, "crop": [224, 224], "augment": "none"}
    wanted |= {"weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0, "ema_decay": 0.0}
    assert {key: recipe[key] for key in wanted} == wanted


@shows("3.10", "4.3")
def figures_of_an_evaluation(folder: Folder, answers: list[Answer]) -> None:
    """Against numpy, from the arrays `explain image` writes."""
    hits = truths = predicted = np.zeros(3)
    losses, smoothed, s = [], [], 1e-5
    for file in sorted((folder.path / "val/images").iterdir()):
        folder.run(f"activeseg explain image {file} --npy --out val-maps")
        probabilities = folder.array(f"val-maps/{file.stem}-probabilities.npy").astype(np.float64)
        mask = folder.array(f"val-maps/{file.stem}-mask.npy")
        truth = np.asarray(Image.open(folder.path / "val/masks" / file.name))
        counted = truth != 3
        one = np.array(
            [
                [((truth == c) & (mask == c) & counted).sum(), (truth == c).sum(), ((mask == c) & counted).sum()]
                for c in range(3)
            ]
        )
        hits, truths, predicted = hits + one[:, 0], truths + one[:, 1], predicted + one[:, 2]
        rows, columns = np.nonzero(counted)
        losses += np.log(probabilities[truth[counted], rows, columns]).tolist()
        smoothed.append((one[:, 0] + s) / (one[:, 1] + one[:, 2] - one[:, 0] + s))
    data = answers[0].data
    assert data["mean_iou"] == pytest.approx((hits / (truths + predicted - hits)).mean(), abs=1e-3)
    assert [row["dice"] for row in data["classes"]] == pytest.approx((2 * hits / (truths + predicted)).tolist(), abs=1e-3)
    assert data["nll"] == pytest.approx(-np.mean(losses), rel=1e-3)
    assert data["smoothed_iou"] == pytest.approx(np.mean(smoothed), abs=1e-3)


@shows("3.11")
def tables_side_by_side(folder: Folder, answers: list[Answer]) -> None:
    for word in ("fcn_mobilenet_v2-0001", "fcn_mobilenet_v2-0002", "IoU", "Dice", "sky", "road", "car"):
        assert word in answers[0].out


@shows("3.12")
def grid_and_panels(folder: Folder, answers: list[Answer]) -> None:
    assert folder.picture("pictures/sheet.png").width > 4 * 64
    assert folder.picture("pictures/street-truth.png").width > 3 * 64


@shows("3.13")
def the_comparison(folder: Folder, answers: list[Answer]) -> None:
    table = (folder.path / "strides/table.md").read_text(encoding="utf-8")
    for word in ("IoU", "Dice", "stride 32", "stride 16", "stride 8", "sky", "pedestrian"):
        assert word in table
    assert folder.picture("strides/side-by-side.png").width > 5 * 160


@shows("4.1")
def torchvisions_fcn(folder: Folder, answers: list[Answer]) -> None:
    weights = torchvision.models.segmentation
    for answer, published in zip(answers, (weights.FCN_ResNet50_Weights, weights.FCN_ResNet101_Weights), strict=True):
        assert answer.data["parameters"] == published.DEFAULT.meta["num_params"]
        assert layers(answer)["classifier.0"].startswith("Conv2d(2048, 512, kernel_size=(3, 3)")


@shows("4.2")
def out_and_aux(folder: Folder, answers: list[Answer]) -> None:
    assert answers[0].out.splitlines() == ["out aux", "out"]


@shows("4.4")
def both_ways_up(folder: Folder, answers: list[Answer]) -> None:
    assert transposed(answers[0]) == []
    assert len(transposed(answers[1])) == 2


@shows("4.5")
def skip_connections(folder: Folder, answers: list[Answer]) -> None:
    kinds = list(layers(answers[0]).values())
    assert any(kind.startswith("Conv2d(512, 21, kernel_size=(1, 1)") for kind in kinds)
    assert any(kind.startswith("Conv2d(256, 21, kernel_size=(1, 1)") for kind in kinds)


@shows("4.6")
def class_confidences(folder: Folder, answers: list[Answer]) -> None:
    probabilities, mask = folder.array("plain/street-probabilities.npy"), folder.array("plain/street-mask.npy")
    assert answers[0].data["classes"]
    for row in answers[0].data["classes"]:
        channel = NAMES.index(row["name"])
        assert row["confidence"] == pytest.approx(probabilities[channel][mask == channel].mean(), abs=1e-4)


@shows("4.7")
def three_pictures(folder: Folder, answers: list[Answer]) -> None:
    folder.run("activeseg explain image street.png --npy --probability road --out pictures")
    labels, mask = np.asarray(folder.picture("pictures/street-labels.png")), folder.array("pictures/street-mask.npy")
    colors = np.array([[120, 180, 240], [90, 140, 60], [220, 60, 40]])
    assert np.array_equal(labels, colors[mask])
    image = np.asarray(folder.picture("street.png").convert("RGB")).astype(float)
    assert np.abs(np.asarray(folder.picture("pictures/street-overlay.png")) - (image + labels) / 2).max() <= 1
    assert folder.picture("pictures/street-class-road.png").height > 48, "the map and its scale"


@shows("5.1")
def the_score_rises(folder: Folder, answers: list[Answer]) -> None:
    scores = answers[0].data["scores"]
    assert scores[-1] > scores[0]
    assert folder.picture(answers[0].data["files"][-1]).size == (48, 48)


@shows("5.2")
def saliency_of_both(folder: Folder, answers: list[Answer]) -> None:
    """Against a gradient through another way to the input: by autograd, from the checkpoint's own network."""
    with open_workspace(load_settings(folder.path / "activeseg.toml")) as workspace:
        with workspace.database.read() as session:
            champion = checkpoints.require_champion(session)
        data = workspace.artifacts.read(champion.location)
    module = load_checkpoint(data, model_version="champion", device="cpu").module
    pixels = torch.tensor(np.asarray(folder.picture("street.png").convert("RGB")), dtype=torch.float32, requires_grad=True)
    module(((pixels / 127.5 - 1).permute(2, 0, 1))[None])["out"][0, NAMES.index("road")].sum().backward()
    expected = pixels.grad.abs().amax(dim=2).numpy()
    assert np.allclose(folder.array("saliency/street-saliency.npy"), expected, rtol=1e-3, atol=1e-4 * expected.max())
    other = folder.array("saliency-of-classifier/street-saliency.npy")
    assert other.shape == (48, 64)
    assert other.min() >= 0 < other.max()


@shows("5.3")
def a_mask_in_one_piece(folder: Folder, answers: list[Answer]) -> None:
    from scipy import ndimage

    mask = np.asarray(folder.picture("localise/street-mask.png").convert("L")) > 0
    assert ndimage.label(mask)[1] == 1


@shows("5.4")
def the_recipe_is_the_default(folder: Folder, answers: list[Answer]) -> None:
    usage = CommandLine()("explain", "class-model", "--help").out
    assert re.search(r"--steps.*?default: 150", usage, re.DOTALL)
    assert re.search(r"--learning-rate.*?default:\s+20\.0", usage, re.DOTALL)
    assert re.search(r"default:\s+quantise", usage)


@shows("5.5")
def a_picture_every_second_step(folder: Folder, answers: list[Answer]) -> None:
    steps = [file.name for file in sorted((folder.path / "progress").glob("road-class-model-0*.png"))]
    assert steps == ["road-class-model-0002.png", "road-class-model-0004.png"]


def test_every_row_of_the_source_documents_has_a_command_and_a_check() -> None:
    assert list(COMMANDS) == ROWS
    assert all(COMMANDS.values())
    assert sorted(CHECKS) == sorted(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_row_shows_what_it_says(row: str, folder: Folder) -> None:
    answers = [folder.run(command) for command in COMMANDS[row]]
    for command, answer in zip(COMMANDS[row], answers, strict=True):
        assert answer.code == 0, f"{command}\n{answer.out}\n{answer.err}"
    CHECKS[row](folder, answers)
