"""Broken and hostile files through everything that takes files: none may end the program, and each must have a reason.

    python scripts/bench_hostile.py [--files N] [--seed N] [--json]

Images go through a pool sync and are decoded as scoring does, masks through an import, regions through the decoder of
annotations, weights through the import of weights, class lists and settings through the readers of both. A file counts as
`usable` where nothing is wrong with what is left of it (a flipped bit in a pixel), as `refused` with its reason, as
`without a reason` where it is in no row and no report, and as a crash where it raises anything but an error of activeseg's
own, or ends the process. Exit status 1 on any crash, any file without a reason, or any sign that code in a file ran.

Everything runs in a process of its own, so that the end of that is a figure, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hostile_data
import hostile_images
import sqlalchemy as sa

from activeseg.config import Settings, load_settings
from activeseg.core.labels import LabelSet
from activeseg.db.database import Database
from activeseg.db.migrate import upgrade
from activeseg.db.models import Image, ImageStatus, Split
from activeseg.errors import ActivesegError
from activeseg.imaging import sandbox
from activeseg.labelstudio.regions import result_to_mask
from activeseg.nn.checkpoint import import_weights, read_spec
from activeseg.records import ImageRef
from activeseg.stages.dataset import import_dataset
from activeseg.stages.pool import sync_pool
from activeseg.storage.local import path_to_uri
from activeseg.workspace import Workspace

SHARES = {"images": 0.6, "masks": 0.12, "regions": 0.12, "weights": 0.08, "class lists": 0.04, "settings": 0.04}
SUFFIXES = (".png", ".jpg", ".tif", ".webp", ".bmp", ".JPEG")
CLASSES = LabelSet(("sky", "ground", "ball", "void"), ((1, 2, 3), (4, 5, 6), (7, 8, 9), (0, 0, 0)), ignore_index=3)


class Tally:
    """What became of the files."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = {}
        self.reasons: dict[str, Counter[str]] = {}
        self.crashes: list[str] = []
        self.silent: list[str] = []

    def usable(self, what: str) -> None:
        """Nothing was wrong with it."""
        self.outcomes.setdefault(what, Counter())["usable"] += 1

    def refused(self, what: str, reason: str | None, name: str) -> None:
        """It was turned away."""
        if not reason or not reason.strip():
            self.lost(what, name)
            return
        self.outcomes.setdefault(what, Counter())["refused"] += 1
        self.reasons.setdefault(what, Counter())[shape(reason)] += 1

    def lost(self, what: str, name: str) -> None:
        """It is nowhere."""
        self.outcomes.setdefault(what, Counter())["without a reason"] += 1
        self.silent.append(f"{what}: {name}")

    def crashed(self, what: str, name: str, error: BaseException) -> None:
        """It raised what nobody catches."""
        self.outcomes.setdefault(what, Counter())["crash"] += 1
        self.crashes.append(f"{what}: {name}: {type(error).__name__}: {str(error)[:200]}")

    def attempt(self, what: str, name: str, act: Callable[[], object]) -> None:
        """Try a file that an ActivesegError may refuse."""
        try:
            act()
        except ActivesegError as error:
            self.refused(what, str(error), name)
        except (Exception, RecursionError) as error:
            self.crashed(what, name, error)
        else:
            self.usable(what)


def shape(reason: str) -> str:
    """A reason without what differs from file to file."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"", "…", reason)
    plain = re.sub(r"/\S+", "…", plain)
    return re.sub(r"(0x)?[0-9a-f]*\d[0-9a-f.]*", "…", plain)[:70]


def workspace_in(folder: Path) -> Workspace:
    """On SQLite, with limits that a bomb passes and a small machine bears."""
    (folder / "classes.txt").write_text(CLASSES.to_text(), encoding="utf-8")
    database = Database(f"sqlite:///{folder / 'activeseg.db'}")
    upgrade(database)
    settings = Settings(
        root=folder,
        database={"url": f"sqlite:///{folder / 'activeseg.db'}"},
        pool={"images": "pool", "max_pixels": 4_000_000, "max_bytes": 10_000_000},
        model={"short_side": 64},
    )
    return Workspace(settings, database)


def try_images(workspace: Workspace, folder: Path, count: int, seed: int, tally: Tally) -> None:
    """Sync a pool of them, then decode as scoring does whatever it took."""
    pool = folder / "pool"
    pool.mkdir()
    kinds: dict[str, str] = {}
    names = hostile_images.odd_names(seed)
    for number, (kind, data) in enumerate(hostile_images.images(count - 1, seed)):
        stem = next(names, b"file") + b"%d" % number
        file = pool / os.fsdecode(stem[-240:] + SUFFIXES[number % len(SUFFIXES)].encode())
        file.write_bytes(data)
        kinds[path_to_uri(str(file))] = kind
    large = pool / "sparse.png"
    with large.open("wb") as stream:
        stream.truncate(2**40)
    kinds[str(large)] = "bomb"
    # What is no file is not listed, and must not be waited for.
    os.mkfifo(pool / "pipe.png")
    (pool / "folder.png").mkdir()
    (pool / "nowhere.png").symlink_to("/nowhere/at/all.png")
    (pool / "outside.png").symlink_to("/etc/passwd")
    (pool / "endless.png").symlink_to("/dev/zero")
    try:
        sync_pool(workspace)
    except Exception as error:
        tally.crashed("images", "pool sync", error)
    with workspace.database.read() as session:
        rows = {row.uri: row for row in session.scalars(sa.select(Image))}
        session.expunge_all()
    for uri, kind in kinds.items():
        row = rows.get(uri)
        if row is None:
            tally.lost("images", f"{kind} {uri!r}")
        elif row.status == ImageStatus.ACTIVE:
            ref = ImageRef(row.id, row.uri, row.sha256)
            tally.attempt("images", f"{kind} {uri!r}", lambda ref=ref: workspace.read_input(ref, workspace.input_policy))  # type: ignore[misc]
        else:
            tally.refused("images", row.reason, f"{kind} {uri!r}")
    for uri in rows.keys() - kinds.keys():
        tally.crashed("images", uri, AssertionError("a row of what is no file"))


def try_masks(workspace: Workspace, folder: Path, count: int, seed: int, tally: Tally) -> None:
    """Import them beside good images."""
    images, masks = folder / "images", folder / "masks"
    images.mkdir()
    masks.mkdir()
    good = hostile_images.whole_files(seed)["png"]
    for number, data in enumerate(hostile_data.masks(count, seed)):
        (images / f"{number}.png").write_bytes(good + b"%d" % number)
        (masks / f"{number}.png").write_bytes(data)
    try:
        report = import_dataset(workspace, str(images), masks, Split.TRAIN)
    except Exception as error:
        tally.crashed("masks", "dataset import", error)
        return
    problems: dict[str, str] = report.details["problems"]
    for number in range(count):
        if (uri := str(images / f"{number}.png")) in problems:
            tally.refused("masks", problems[uri], uri)
        else:
            tally.usable("masks")
    if report.written + len(problems) + int(report.details["unchanged"]) != count:
        tally.lost("masks", f"{count} files, the report tells of {report.written + len(problems)}")


def try_others(folder: Path, counts: dict[str, int], seed: int, tally: Tally) -> None:
    """Regions, weights, class lists and settings."""
    width, height = hostile_images.SIDE
    for number, result in enumerate(hostile_data.results(counts["regions"], seed)):
        act = lambda result=result: result_to_mask(result, CLASSES, width=width, height=height)  # noqa: E731
        tally.attempt("regions", str(number), act)
    file = folder / "weights"
    for number, (ending, data) in enumerate(hostile_data.weights(counts["weights"], seed, folder / "trace")):
        path = file.with_suffix(ending)
        path.write_bytes(data)
        tally.attempt("weights", f"{number}{ending}", lambda path=path: read_spec(import_weights(path), str(path)))  # type: ignore[misc]
        if ending == ".safetensors":
            tally.attempt("descriptions", f"{number}{ending}", lambda data=data: read_spec(data, "weights"))  # type: ignore[misc]
    for number, data in enumerate(hostile_data.class_lists(counts["class lists"], seed)):
        (folder / "classes.txt").write_bytes(data)
        tally.attempt("class lists", str(number), lambda: workspace_classes(folder))
    for number, data in enumerate(hostile_data.settings_files(counts["settings"], seed)):
        (folder / "activeseg.toml").write_bytes(data)
        tally.attempt("settings", str(number), lambda: load_settings(folder / "activeseg.toml"))


def workspace_classes(folder: Path) -> LabelSet:
    """The classes as every command reads them."""
    return Workspace(Settings(root=folder), Database("sqlite://")).label_set


def work(folder: Path, files: int, seed: int) -> dict[str, Any]:
    """All of it, in this process."""
    warnings.simplefilter("ignore")
    counts = {name: round(files * share) for name, share in SHARES.items()}
    counts["images"] += files - sum(counts.values())
    tally, seconds = Tally(), {}
    workspace = workspace_in(folder)
    before = peak()
    parts: Iterable[tuple[str, Callable[[], None]]] = (
        ("images", lambda: try_images(workspace, folder, counts["images"], seed, tally)),
        ("masks", lambda: try_masks(workspace, folder, counts["masks"], seed, tally)),
        ("others", lambda: try_others(folder, counts, seed, tally)),
    )
    for name, act in parts:
        started = time.monotonic()
        act()
        seconds[name] = round(time.monotonic() - started, 1)
    decoders = max((high_water(pid) for pid in sandbox.processes()), default=0)
    sandbox.close()
    workspace.database.close()
    return {
        "files": sum(counts.values()),
        "seed": seed,
        "outcomes": {name: dict(found) for name, found in tally.outcomes.items()},
        "crashes": len(tally.crashes),
        "without_a_reason": len(tally.silent),
        "code_ran": (folder / "trace").exists(),
        "told": tally.crashes[:20] + tally.silent[:20],
        "reasons": {name: dict(found.most_common()) for name, found in tally.reasons.items()},
        "seconds": seconds,
        "peak_mb": {"at_the_start": before, "process": peak(), "decoder": decoders},
    }


def high_water(pid: int) -> int:
    """Largest resident memory of another process so far, in megabytes; 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def peak() -> int:
    """Largest resident memory of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 2**20)


def main() -> None:
    """Start the work in a process of its own and judge it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options.work, options.files, options.seed)))
        return
    with tempfile.TemporaryDirectory(prefix="activeseg-hostile-") as folder:
        words = [__file__, "--work", folder, "--files", str(options.files), "--seed", str(options.seed)]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stderr[-4_000:], file=sys.stderr)
        figures: dict[str, Any] = {"files": options.files, "crashes": 1, "without_a_reason": 0, "ended_with": done.returncode}
    else:
        figures = json.loads(done.stdout.splitlines()[-1])
    figures["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    if figures["crashes"] or figures["without_a_reason"] or figures.get("code_ran"):
        sys.exit(1)


if __name__ == "__main__":
    main()
