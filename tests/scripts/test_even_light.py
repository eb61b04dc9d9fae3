"""scripts/even_light.py: the copies a study is made on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "even_light.py"


def test_copies_have_one_mean_and_deviation_and_the_masks_stay(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in ("images", "masks"):
        (data / "train" / folder).mkdir(parents=True)
    (data / "classes.txt").write_text("sky 0 0 255\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    for name, mean in (("dusk.jpg", 60), ("noon.png", 170)):
        pixels = np.clip(rng.normal(mean, 15, (40, 60, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(data / "train/images" / name, quality=95)
        Image.fromarray(pixels[..., 0]).save(data / "train/masks" / f"{Path(name).stem}.png")

    done = run(data, tmp_path / "even")

    assert done.returncode == 0, done.stderr
    for name in ("dusk", "noon"):
        with Image.open(tmp_path / f"even/train/images/{name}.png") as image:
            values = np.asarray(image).astype(float)
        # The tails of a normal distribution that are cut off at 0 and 255 move both by a little.
        assert abs(values.mean() - 118) < 2
        assert abs(values.std() - 64) < 4
        mask = f"train/masks/{name}.png"
        assert (tmp_path / "even" / mask).read_bytes() == (data / mask).read_bytes()
    assert (tmp_path / "even/classes.txt").read_text(encoding="utf-8") == "sky 0 0 255\n"
    assert "0 images" in run(data, tmp_path / "even").stdout


def test_an_image_of_one_colour_stays_flat(tmp_path: Path) -> None:
    (tmp_path / "data/train/images").mkdir(parents=True)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "data/train/images/flat.png")
    assert run(tmp_path / "data", tmp_path / "even").returncode == 0
    with Image.open(tmp_path / "even/train/images/flat.png") as image:
        assert image.getextrema() == ((118, 118),) * 3


def test_copies_do_not_go_into_what_is_copied(tmp_path: Path) -> None:
    done = run(tmp_path, tmp_path / "even")
    assert done.returncode == 2
    assert "outside" in done.stderr


def run(data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--data", str(data), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
