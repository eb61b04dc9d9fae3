"""What a scoring pass costs where a strategy needs more than the usual statistics: processor seconds an image, one thread.

    python scripts/bench_needs.py --architecture fcn_mobilenet_v2 --size 480x360

Images are noise; the network starts at random. Turns of all kinds alternate, and the lowest of each counts: what else runs
on the machine only ever adds.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import numpy.typing as npt
import torch

from activeseg.core.labels import LabelSet
from activeseg.nn.checkpoint import NetworkSpec, Segmenter, new_segmenter
from activeseg.nn.infer import score_images
from activeseg.nn.scoring import NEEDS
from activeseg.nn.zoo import ARCHITECTURES
from activeseg.records import ImageRef, InputPolicy


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    width, height = map(int, options.size.split("x"))
    labels = LabelSet(tuple(f"class {number}" for number in range(options.classes)), ((0, 0, 0),) * options.classes)
    segmenter = new_segmenter(NetworkSpec(options.architecture, 1.0, 8, labels, InputPolicy()), model_version="bench")
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    kinds: list[tuple[str, ...]] = [(), *((name,) for name in NEEDS)]
    lowest = dict.fromkeys(kinds, float("inf"))
    for turn in range(options.turns + 1):  # the first one warms up
        for needs in kinds:
            spent = seconds(segmenter, pixels, options.images, needs)
            lowest[needs] = min(lowest[needs], spent) if turn else float("inf")
    print(f"{options.architecture}, {options.size}, {options.classes} classes, float32, one thread")
    for needs, spent in lowest.items():
        print(f"{', '.join(needs) or 'usual statistics':>18}: {spent:.3f} s an image, {spent / lowest[()]:.2f} times")


def seconds(segmenter: Segmenter, pixels: npt.NDArray[np.uint8], count: int, needs: tuple[str, ...]) -> float:
    """Processor seconds an image, those of the reading threads included."""
    images = [ImageRef(number, "", str(number)) for number in range(count)]
    began = time.process_time()
    device = torch.device("cpu")
    found = score_images(segmenter, images, lambda image: pixels, device=device, precision="float32", readers=1, needs=needs)
    assert len(list(found)) == count
    return (time.process_time() - began) / count


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="fcn_mobilenet_v2")
    parser.add_argument("--size", default="480x360")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    return parser.parse_args()


if __name__ == "__main__":
    main()
