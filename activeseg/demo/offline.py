"""The simulated annotator without Label Studio: writes corrected index masks into a folder, as a person with any other
tool would. A process of its own and, like `activeseg.demo.annotator`, the only kind that may read the known masks.

    python -m activeseg.demo.offline --truth DIR --out DIR --images scene_1,scene_2 [--seed S]
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path


def annotate(truth: Path, out: Path, names: list[str], *, seed: int) -> list[str]:
    """Copy the known mask of each image but one, which is skipped; returns the names that were annotated."""
    out.mkdir(parents=True, exist_ok=True)
    skipped = random.Random(seed).choice(names) if len(names) > 1 else None
    done = [name for name in names if name != skipped]
    for name in done:
        shutil.copyfile(truth / f"{name}.png", out / f"{name}.png")
    return done


def main() -> None:
    """The command line of the annotator's process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", required=True, help="comma-separated names without suffix")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    annotate(arguments.truth, arguments.out, arguments.images.split(","), seed=arguments.seed)


if __name__ == "__main__":
    main()
