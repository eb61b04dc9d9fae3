"""Images per second of `activeseg score`, JPEG files to committed rows, against the network alone; and whether it grows.

    python scripts/bench_scoring.py [--data DIR] [--architecture NAME ...] [--json FILE]

`end to end`: the real command (`score_pool` on SQLite) and, in turn with it in one process, the same network's bare forward on
tensors in memory (same batch and precision, its own upsampling included): eager, and compiled with constants frozen. The faster
of these two is the anchor; the last of them once more with freed memory kept, as the command does it (`nn.heap`), stands beside
it. Compiling is done before, and counted apart. `documents`: what the source documents do with the same
files and network, one image at a time: Resize 640, float32, softmax, p log(p + 1e-6), sum, argmax. Before the turns it is
measured how soon after the network is loaded its first batch goes in.

`growth`: a very narrow network on 64x64 JPEGs, pools of --pools images, each in a process of its own: peak memory, time per
image, and the seconds that a pool takes of which nothing changed. The small pool is done several times, before the large one
and after it, and stands with its medians: a thousand images take two seconds, of which two runs differ by a tenth.

DIR holds JPEGs of one size (searched through its folders); without it, street scenes of 480x360 are drawn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import sqlalchemy as sa
import torch
from PIL import Image as Pillow
from torch import Tensor
from torchvision.transforms import v2

from activeseg.config import Settings
from activeseg.config.budget import Budget
from activeseg.core.labels import LabelSet
from activeseg.core.palette import voc_palette
from activeseg.core.reduction import can_compile
from activeseg.db import checkpoints, images, migrate
from activeseg.db.database import Database
from activeseg.db.models import Checkpoint, Decision, Image, ImageStatus, ScoringRun, Split
from activeseg.demo.scenes import write_scenes
from activeseg.nn.batches import MAX_BATCH_PIXELS
from activeseg.nn.checkpoint import NetworkSpec, Segmenter, checkpoint_bytes, load_checkpoint, new_segmenter
from activeseg.nn.compiling import Takeover, compile_module, machine_name
from activeseg.nn.device import autocast, describe_device, pick_device, pick_precision
from activeseg.nn.heap import kept_heap
from activeseg.nn.scoring import Scorer
from activeseg.stages import score
from activeseg.workspace import Workspace, open_workspace

CLASSES = 21
REACH = {"fcn_resnet50": 0.95, "lraspp_mobilenet_v3_large": 0.90}
IMAGES, LIGHT = {"fcn_resnet50": 8}, 96
ON_GPU = 0.97
DOCUMENTS_REACH = {"cpu": 5.5, "cuda": 30.0}
FLAT = 1.05
AT_ONCE = 2.0
"""Seconds from the loaded network until its first batch goes in."""
DRAWN = 24
BEFORE, AFTER = 3, 4
KEPT = ", heap kept"


@dataclass(frozen=True)
class Spent:
    """Wall and processor seconds of so many images."""

    wall: float
    processor: float
    images: int

    def each(self, clock: str) -> float:
        """Seconds an image."""
        seconds: float = getattr(self, clock)
        return seconds / self.images


@dataclass(frozen=True)
class Measure:
    """A figure beside what it is held against. better: 'more' or 'less'."""

    name: str
    value: float
    anchor: float
    reach: float | None
    unit: str
    better: str = "more"
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        ratio = self.value / self.anchor if self.anchor else None
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "anchor": round(self.anchor, 4),
            "ratio": ratio and round(ratio, 3),
            "reach": self.reach,
            "unit": self.unit,
            "better": self.better,
            "note": self.note,
        }


class BareForward:
    """The network's own forward on a batch that lies on the device as it takes it."""

    def __init__(self, segmenter: Segmenter, size: tuple[int, int], batch: int, device: torch.device, precision: str) -> None:
        self.module, self.device, self.precision = segmenter.module.to(device).eval(), device, precision
        pixels = torch.rand(batch, 3, *size).contiguous(memory_format=torch.channels_last)
        self.batch = pixels.to(device)
        self.networks: dict[str, Callable[[Tensor], Any]] = {"eager": self.module}

    def compile(self, cache: Path) -> float:
        """Seconds it took."""
        compiled = compile_module(self.module, cache)
        self.networks["compiled"] = compiled
        return self.run("compiled", 1).wall

    def run(self, kind: str, count: int, *, kept: bool = False) -> Spent:
        """At least `count` images. kept: with the heap as the command keeps it."""
        network, batches = self.networks[kind], -(-count // len(self.batch))

        def work() -> None:
            for _ in range(batches):
                network(self.batch)

        with kept_heap() if kept else nullcontext(), torch.inference_mode(), autocast(self.device, self.precision):
            return measured(work, batches * len(self.batch), self.device)


class DocumentsWay:
    """One image at a time, all of the probabilities."""

    def __init__(self, segmenter: Segmenter, files: Sequence[Path], short_side: int, device: torch.device) -> None:
        self.module, self.device, self.files, self.at = segmenter.module.to(device).eval(), device, list(files), 0
        policy = segmenter.spec.input_policy
        to_float = [v2.ToImage(), v2.Resize(short_side), v2.ToDtype(torch.float32, scale=True)]
        self.prepare = v2.Compose([*to_float, v2.Normalize(list(policy.mean), list(policy.std))])

    def run(self, count: int) -> Spent:
        """`count` images."""
        return measured(lambda: [self._one() for _ in range(count)], count, self.device)

    def _one(self) -> tuple[float, Tensor]:
        file = self.files[self.at % len(self.files)]
        self.at += 1
        with Pillow.open(file) as image, torch.no_grad():
            pixels = self.prepare(image.convert("RGB"))[None].to(self.device)
            p = torch.softmax(self.module(pixels)["out"], dim=1)
            entropy = -(p * torch.log(p + 1e-6)).sum(dim=1)
            return float(entropy.sum()), p.argmax(dim=1).cpu()


def measured(work: Callable[[], Any], count: int, device: torch.device) -> Spent:
    """What `work` on so many images takes."""
    began = clocks(device)
    work()
    ended = clocks(device)
    return Spent(ended[0] - began[0], ended[1] - began[1], count)


def clocks(device: torch.device) -> tuple[float, float]:
    """Wall and processor seconds, when the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()


def main() -> None:
    options = parse_options()
    device = pick_device(options.device)
    precision = pick_precision(device, options.precision)
    say(f"{describe_device(device)}, {machine_name(device)}, {precision}, batch {options.batch}")
    if device.type == "cpu" and precision == "float32":
        say("no bf16 units here: the reach of `documents` is for processors that have them")
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory(prefix="bench-scoring-") as folder:
        files = source_files(options, Path(folder))
        for architecture in options.architecture:
            measures += end_to_end(architecture, files, Path(folder) / architecture, options, device)
        if any(options.pools):
            measures += growth(options, Path(folder))
    print_table(measures)
    if options.json:
        about = {"device": describe_device(device), "machine": machine_name(device), "precision": precision}
        written = about | {"measures": [one.as_dict() for one in measures]}
        options.json.write_text(json.dumps(written, indent=1), encoding="utf-8")


def end_to_end(
    architecture: str, files: Sequence[Path], folder: Path, options: argparse.Namespace, device: torch.device
) -> list[Measure]:
    """The command, the bare forward and the documents' way, in turns."""
    count, precision = options.images or IMAGES.get(architecture, LIGHT), pick_precision(device, options.precision)
    model = {"architecture": architecture, "short_side": options.short_side, "device": options.device}
    model |= {"precision": options.precision}
    kinds = ["eager"] if options.compile == "never" or can_compile() else ["eager", "compiled"]
    size = network_size(files[0], options.short_side)
    batch = max(1, min(options.batch, MAX_BATCH_PIXELS // (size[0] * size[1])))
    with workspace_in(folder, files, 2 * batch + count * options.turns, model) as workspace:
        began = Measure(
            f"{architecture}: network loaded until its first batch goes in",
            until_first_batch(workspace, batch),
            AT_ONCE,
            1.0,
            "s",
            "less",
        )
        segmenter = champion(workspace)
        bare = BareForward(segmenter, size, batch, device, precision)
        if "compiled" in kinds:
            say(f"  {architecture}: bare forward compiled in {bare.compile(folder / 'bare'):.0f} s")
        documents = DocumentsWay(champion(workspace), files, options.short_side, device)
        kept = kinds[-1] if device.type == "cpu" else None
        turns: dict[str, Callable[[int], Spent]] = {"command": partial(command, workspace, batch, kinds[-1])}
        turns |= {f"bare {kind}": partial(bare.run, kind) for kind in kinds}
        turns |= {f"bare {kept}{KEPT}": partial(bare.run, kept, kept=True)} if kept else {}
        turns["documents"] = lambda images: documents.run(min(images, options.documents))
        for run in turns.values():  # warms up
            run(batch)
        spent: dict[str, list[Spent]] = {name: [] for name in turns}
        for turn in range(options.turns):
            for name, run in turns.items():
                spent[name].append(found := run(count))
                each = found.each("processor")
                say(f"  {architecture} turn {turn + 1}: {name} {found.images / found.wall:.3f}/s ({each:.3f} CPU s)")
        say(f"  {architecture}: {last_run(workspace)}")
    return [began, *compared(architecture, spent, kinds, device)]


def compared(architecture: str, spent: dict[str, list[Spent]], kinds: list[str], device: torch.device) -> Iterator[Measure]:
    """Rates by both clocks; on a processor that others use too, processor seconds are the fairer ones."""
    for clock in ("wall",) if device.type == "cuda" else ("wall", "processor"):
        rates = {name: statistics.median(1 / one.each(clock) for one in found) for name, found in spent.items()}
        fastest = max((f"bare {kind}" for kind in kinds), key=lambda name: rates[name])
        reach = ON_GPU if device.type == "cuda" else REACH.get(architecture)
        unit = f"images/s, {clock} seconds"
        yield Measure(f"{architecture}: score / {fastest}", rates["command"], rates[fastest], reach, unit)
        for name in (name for name in rates if name.endswith(KEPT)):
            yield Measure(f"{architecture}: score / {name}", rates["command"], rates[name], reach, unit)
        reach = DOCUMENTS_REACH[device.type]
        yield Measure(f"{architecture}: score / documents", rates["command"], rates["documents"], reach, unit)


def command(workspace: Workspace, batch: int, kind: str, count: int) -> Spent:
    """`activeseg score` on the next `count` images, without loading the network and without compiling it."""
    scoring = workspace.settings.scoring.model_copy(
        update={"compile": "always" if kind == "compiled" else "never", "batch_size": batch}
    )
    workspace = Workspace(workspace.settings.model_copy(update={"scoring": scoring}), workspace.database)
    device = pick_device(workspace.settings.model.device)
    with apart(score, score._open, device) as loading, apart(Takeover, Takeover._compile, device) as compiling:
        spent = measured(lambda: score.score_pool(workspace, budget=Budget(str(count), images=count)), count, device)
    wall, processor = (loading[at] + compiling[at] for at in (0, 1))
    return Spent(spent.wall - wall, spent.processor - processor, count)


def until_first_batch(workspace: Workspace, batch: int) -> float:
    """Seconds from the network being loaded until its first batch goes in, by `activeseg score` as it is installed."""
    loaded, submitted = list[float](), list[float]()

    def load(*arguments: Any) -> Any:
        found = opening(*arguments)
        loaded.append(time.perf_counter())
        return found

    def submit(*arguments: Any) -> Any:
        submitted.append(time.perf_counter())
        return submitting(*arguments)

    opening, submitting = score._open, Scorer.submit
    with patch.object(score, opening.__name__, load), patch.object(Scorer, submitting.__name__, submit):
        score.score_pool(workspace, budget=Budget(str(batch), images=batch))
    return submitted[0] - loaded[0]


@contextmanager
def apart(owner: Any, function: Callable[..., Any], device: torch.device) -> Iterator[list[float]]:
    """Wall and processor seconds that calls of the owner's function took in the block."""
    spent, name = [0.0, 0.0], function.__name__

    def timed(*arguments: Any) -> Any:
        began = clocks(device)
        found = function(*arguments)
        spent[:] = [sofar + end - begin for sofar, end, begin in zip(spent, clocks(device), began, strict=True)]
        return found

    setattr(owner, name, timed)
    try:
        yield spent
    finally:
        setattr(owner, name, function)


def last_run(workspace: Workspace) -> str:
    """Where the time of the last command went."""
    with workspace.database.read() as session:
        run = session.scalars(sa.select(ScoringRun).order_by(ScoringRun.id.desc())).first()
        assert run is not None
        shares = {"decode": run.waiting_decode, "device": run.waiting_device, "database": run.waiting_database}
        waited = ", ".join(f"{what} {share or 0:.1%}" for what, share in shares.items())
        compiling = f"{run.compiled_images} of {run.images_done} images compiled ({run.compile_seconds or 0:.0f} s)"
        return f"waiting for {waited}; {compiling}"


def growth(options: argparse.Namespace, folder: Path) -> Iterator[Measure]:
    """Peak memory and time per image of a small and a large pool."""
    few, many = options.pools
    every = [alone(grow, folder / f"small-{number}", few) for number in range(BEFORE)]
    large = alone(grow, folder / "large", many)
    every += [alone(grow, folder / f"small-{BEFORE + number}", few) for number in range(AFTER)]
    small = {name: statistics.median(one[name] for one in every) for name in large}
    say(f"  pools of {few}: {[round(one['each'], 3) for one in every]} ms an image; of {many}: {large}")
    yield Measure(f"peak memory, {many} images against {few}", large["peak"], small["peak"], FLAT, "MB", "less")
    yield Measure(f"time per image, {many} against {few}", large["each"], small["each"], FLAT, "ms", "less")
    yield Measure(f"unchanged pool of {many} again", large["again"], large["all"], None, "seconds", "less")


def grow(folder: Path, size: int) -> dict[str, float]:
    """Score a pool of 64x64 JPEGs; figures of this process."""
    torch.set_num_threads(1)  # several are slower on images this small
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    folder.mkdir(parents=True)
    drawn = []
    for number in range(DRAWN):
        drawn.append(folder / f"drawn-{number}.jpg")
        Pillow.fromarray(np.roll(picture, number, axis=1)).save(drawn[-1])
    model = {"architecture": "fcn_mobilenet_v2", "width": 0.1, "device": "cpu"}
    with workspace_in(folder, drawn, size, model) as workspace:
        warm = min(size // 2, 100)
        score.score_pool(workspace, budget=Budget(str(warm), images=warm))
        began = time.process_time()
        score.score_pool(workspace)
        spent = time.process_time() - began
        again = time.perf_counter()
        score.score_pool(workspace)
        again = time.perf_counter() - again
    return {"peak": peak_memory(), "each": 1000 * spent / (size - warm), "again": again, "all": spent}


def peak_memory() -> float:
    """MB this process ever held. (`ru_maxrss` would begin with the parent's.)"""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def alone(function: Callable[[Path, int], dict[str, float]], folder: Path, size: int) -> dict[str, float]:
    """A function's answer from a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (folder, size))


def source_files(options: argparse.Namespace, folder: Path) -> list[Path]:
    """JPEGs of one size."""
    if options.data is not None:
        found = sorted(file for file in options.data.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
        return found or sys.exit(f"no JPEGs below {options.data}")
    data = folder / "scenes"
    write_scenes(data, train=1, val=1, pool=DRAWN, seed=0, width=480, height=360)
    files = []
    for file in sorted((data / "pool").rglob("*.png")):
        Pillow.open(file).convert("RGB").save(file.with_suffix(".jpg"), quality=92)
        files.append(file.with_suffix(".jpg"))
    return files


def network_size(file: Path, short_side: int) -> tuple[int, int]:
    """(height, width) the network sees."""
    with Pillow.open(file) as image:
        width, height = image.size
    scale = short_side / min(width, height)
    return round(height * scale), round(width * scale)


@contextmanager
def workspace_in(folder: Path, files: Sequence[Path], count: int, model: dict[str, Any]) -> Iterator[Workspace]:
    """A pool of `count` copies of the files, and a champion with random weights."""
    pool = folder / "pool"
    pool.mkdir(parents=True)
    labels = LabelSet(tuple(f"class{number}" for number in range(CLASSES)), voc_palette(CLASSES))
    (folder / "classes.txt").write_text(labels.to_text(), encoding="utf-8")
    settings = Settings(root=folder, labels={"file": "classes.txt"}, pool={"images": "pool"}, model=model)
    database = Database(settings.database_url)
    migrate.upgrade(database)
    database.close()
    with open_workspace(settings) as workspace:
        fill(workspace, pool, [file.read_bytes() for file in files], count)
        crown(workspace)
        yield workspace


def fill(workspace: Workspace, pool: Path, contents: Sequence[bytes], count: int) -> None:
    """Write the files and their rows, as a sync would find them."""
    shas = [hashlib.sha256(data).hexdigest() for data in contents]
    rows: list[dict[str, Any]] = []
    for number in range(count):
        file = pool / f"{number:07d}.jpg"
        file.write_bytes(contents[number % len(contents)])
        at = number % len(contents)
        row = {"uri": str(file), "sha256": shas[at], "size_bytes": len(contents[at])}
        rows.append(row | {"split": Split.POOL, "status": ImageStatus.ACTIVE})
    with workspace.database.write() as session:
        for first in range(0, count, 5000):
            session.execute(sa.insert(Image), rows[first : first + 5000])


def crown(workspace: Workspace) -> None:
    """A champion with random weights, the same every time."""
    model = workspace.settings.model
    spec = NetworkSpec(
        model.architecture, model.width, model.decoder_stride, workspace.label_set, workspace.input_policy, aux=False
    )
    weights = checkpoint_bytes(new_segmenter(spec, model_version="bench"))
    artifact = workspace.artifacts.put(weights, "checkpoint", ".safetensors")
    with workspace.database.write() as session:
        row = Checkpoint(
            model_version="bench",
            location=artifact.location,
            sha256=artifact.sha256,
            architecture=model.architecture,
            spec=spec.as_dict(),
            label_set_id=images.label_set_row(session, workspace.label_set).id,
        )
        session.add(row)
        session.flush()
        checkpoints.decide(session, row.id, Decision.PROMOTED, "first", decided_by="bench")


def champion(workspace: Workspace) -> Segmenter:
    """The checkpoint in memory."""
    with workspace.database.read() as session:
        row = checkpoints.require_champion(session)
    return load_checkpoint(workspace.artifacts.read(row.location), model_version=row.model_version, device="cpu")


def print_table(measures: Sequence[Measure]) -> None:
    """Markdown, for docs/benchmarks.md."""
    print("| measure | value | anchor | ratio | reach |\n|---|---|---|---|---|")
    for one in map(Measure.as_dict, measures):
        print(f"| {one['name']} ({one['unit']}) | {one['value']} | {one['anchor']} | {one['ratio']} | {one['reach'] or ''} |")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with JPEGs of one size")
    parser.add_argument("--architecture", nargs="*", default=list(REACH))
    parser.add_argument("--images", type=int, help="images of a turn (default: 8 of fcn_resnet50, 96 of lighter networks)")
    parser.add_argument("--turns", type=int, default=1, help="each with all kinds, after a batch of each that warms up")
    parser.add_argument("--documents", type=int, default=2, help="images of a turn by the documents' way")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--short-side", type=int, default=640)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", choices=["auto", "never"], default="auto", help="never: compare eager with eager")
    parser.add_argument("--pools", type=int, nargs=2, default=[400, 4000], help="1000 100000 for the figures; 0 0 for none")
    parser.add_argument("--json", type=Path, help="file for the measures")
    options = parser.parse_args()
    options.pools = options.pools if all(options.pools) else []
    return options


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
