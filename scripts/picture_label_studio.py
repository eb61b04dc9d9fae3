"""The README's picture of a task: what an annotator of the demo sees, taken with a headless Chromium.

    PYTHONPATH=. python scripts/picture_label_studio.py [--state activeseg-demo] [--out docs/images/label-studio.png]

Runs the demo in `--state`, or goes on with the one that lies there, pushes one round more and opens a task of it: the scene
that shows most classes. Needs Label Studio (installed on first use) and Chromium.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from activeseg.config import load_settings
from activeseg.db import lease
from activeseg.demo.story import DemoOptions, run_demo
from activeseg.labelstudio.client import LabelStudioClient
from activeseg.labelstudio.registration import open_client, open_project
from activeseg.labelstudio.server import RunningServer
from activeseg.loop import Listener, finish_round, rounds_to_push
from activeseg.workspace import open_workspace
from tests.labelstudio.seat import Seat, signed_in

WINDOW = {"width": 1560, "height": 900}
EDGE = 8
# Left, top, right, bottom in pixels of the page. The tab carousel stands above the pictures.
SCREEN = """
() => {
    const parts = [...document.querySelectorAll('.activeseg-pair, .lsf-labels, .lsf-label')];
    const side = (name, pick) => pick(...parts.map(part => part.getBoundingClientRect()[name]));
    return [side('left', Math.min), side('top', Math.min) - 58, side('right', Math.max), side('bottom', Math.max)];
}
"""


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("activeseg-demo"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/label-studio.png"))
    options = parser.parse_args()
    demo = DemoOptions(options.state, None, rounds=3, query_size=12, offline=False)
    server = run_demo(demo, Console(), Listener()).server
    if server is None:
        raise SystemExit("the demo ran without Label Studio")
    with server:
        take(server, options.state.absolute(), options.out)
    print(f"wrote {options.out}")


def take(server: RunningServer, state: Path, out: Path) -> None:
    """Push a round of the demo and photograph one of its tasks."""
    settings = load_settings(state / "activeseg.toml")
    with open_workspace(settings) as workspace, open_client(settings) as client:
        with lease.holding(workspace.database):
            for row in rounds_to_push(workspace, None):
                list(finish_round(workspace, row, client, Listener()))
        project = open_project(workspace, client).external_project_id
        task = richest(client, project)
    with signed_in(server.url, server.email, server.password) as page:
        page.set_viewport_size(WINDOW)
        seat = Seat(page, server.url)
        seat.open(project, task)
        seat.rest(5000)
        page.screenshot(path=out, clip=screen(page))


def richest(client: LabelStudioClient, project: int) -> int:
    """The untouched task whose prediction has most classes; of several the first."""
    tasks = sorted(client.untouched_tasks(project))
    return max(
        tasks, key=lambda task: len(classes(client.http.get(f"/api/tasks/{task}/", {"project": project})["predictions"]))
    )


def classes(predictions: Sequence[Any]) -> set[str]:
    """The classes that predictions draw."""
    regions = [region for prediction in predictions for region in prediction["result"]]
    return {name for region in regions for name in region["value"].get(region["type"], ())}


def screen(page: Any) -> dict[str, float]:
    """The part of the page that belongs to the task: from its tabs to the last label."""
    left, top, right, bottom = page.evaluate(SCREEN)
    return {"x": left - EDGE, "y": top, "width": right - left + 2 * EDGE, "height": bottom - top + 2 * EDGE}


if __name__ == "__main__":
    main()
