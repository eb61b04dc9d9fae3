"""Seconds an annotator waits in the browser: open a task, draw a stroke, submit, with masks of both kinds.

    PYTHONPATH=. python scripts/bench_seat.py [--runs 3] [--sizes 480x360 1280x960]

Starts a Label Studio of its own and a headless Chromium (software rendering). Each run opens a task with the mask of a drawn
street scene (12 classes at most), selects a region, draws a stroke of 50 mouse events across the picture and submits. "open"
lasts until all regions are listed and the page has time for other things; "stroke" from pressing the mouse to that; "submit"
until the server has answered. Medians.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from activeseg.core.masks import despeckle
from activeseg.demo.scenes import SCENE_CLASSES, draw_scene
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.labeling import MaskKind
from activeseg.labelstudio.regions import mask_to_result
from activeseg.labelstudio.server import start_server
from activeseg.labelstudio.tasks import task_payload
from tests.labelstudio.seat import PICTURE, Seat, signed_in

QUIET = 0.25
# Five timers in a row that are not late: the page has time. The regions are in the list by then, which
# shows no more of them than fit.
IDLE = """
async regions => {
    const listed = () => document.querySelectorAll('.lsf-tree-node-content-wrapper').length >= Math.min(regions, 5);
    for (let quiet = 0; quiet < 5;) {
        const begun = performance.now();
        await new Promise(done => setTimeout(done, 50));
        quiet = performance.now() - begun < 150 && listed() ? quiet + 1 : 0;
    }
}
"""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", default=["480x360", "1280x960"], metavar="WxH")
    options = parser.parse_args()
    print("| masks | size | regions | open | stroke | submit |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder) / "data", log=Path(folder) / "server.log")
        sign_in = signed_in(server.url, server.email, server.password)
        with server, LabelStudioClient(server.url, server.token()) as client, sign_in as page:
            for size in options.sizes:
                width, height = map(int, size.split("x"))
                for kind in get_args(MaskKind):
                    print(measure(client, Seat(page, client.url), kind, width, height, options.runs), flush=True)


def measure(client: LabelStudioClient, seat: Seat, kind: MaskKind, width: int, height: int, runs: int) -> str:
    """A row of the table."""
    project = client.ensure_project(f"{kind} {width}x{height}", SCENE_CLASSES, kind).id
    payloads = [payload(client, project, seed, kind, width, height) for seed in range(runs + 1)]
    numbers = client.import_tasks(project, payloads)
    regions = [len(one["predictions"][0]["result"]) for one in payloads]
    times = [work(seat, project, *one, width) for one in zip(numbers, regions, strict=True)][1:]  # the first loads the page
    opened, drawn, sent = (statistics.median(column) for column in zip(*times, strict=True))
    row = [kind, f"{width}x{height}", f"{statistics.mean(regions):.0f}", *(f"{t:.1f} s" for t in (opened, drawn, sent))]
    return f"| {' | '.join(row)} |"


def payload(client: LabelStudioClient, project: int, seed: int, kind: MaskKind, width: int, height: int) -> dict[str, Any]:
    """A task with a drawn scene and its mask as the prediction."""
    drawn = draw_scene(seed, width=width, height=height)
    files = [(f"{name}.png", png(drawn.image)) for name in ("scene", "entropy")]
    result = mask_to_result(despeckle(drawn.mask, 4), SCENE_CLASSES, kind=kind)
    urls = client.upload_files(project, files)
    return task_payload(f"{kind}-{seed}", *urls, order=seed, sha256="-", result=result, score=0.5, model_version="bench")


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def work(seat: Seat, project: int, task: int, regions: int, width: int) -> tuple[float, float, float]:
    """Seconds to open, to draw and to submit."""
    begun = time.monotonic()
    seat.open(project, task)
    seat.page.evaluate(IDLE, regions)
    opened = time.monotonic() - begun - QUIET
    seat.page.locator(".lsf-tree-node-content-wrapper").first.click()
    seat.page.evaluate(IDLE, regions)
    box = seat.page.locator(PICTURE).first.bounding_box()
    x, y, step = box["x"] + box["width"] / 5, box["y"] + box["height"] / 2, box["width"] / 100
    seat.page.mouse.move(x, y)
    begun = time.monotonic()
    seat.page.mouse.down()
    seat.page.mouse.move(x + 60 * step, y, steps=50)
    seat.page.mouse.up()
    seat.page.evaluate(IDLE, regions)
    drawn = time.monotonic() - begun - QUIET
    begun = time.monotonic()
    seat.submit()
    return opened, drawn, time.monotonic() - begun


if __name__ == "__main__":
    main()
