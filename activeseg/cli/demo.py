"""activeseg demo: the whole loop on a small set, with a simulated annotator."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from activeseg.cli.output import AsJson, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Labelled images: {train,val}/{images,masks} and classes.txt. [default: synthetic]"),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds in all.")] = 3,
    query_size: Annotated[int, typer.Option("--query-size", min=1, help="Images per round.")] = 12,
    leave: Annotated[bool, typer.Option("--exit", help="End at once instead of leaving Label Studio running.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Without Label Studio: a first look in about a minute.")] = False,
    state: Annotated[Path, typer.Option("--state", help="Folder for everything the demo makes.")] = Path("activeseg-demo"),
    as_json: AsJson = False,
) -> None:
    """Run the loop end to end: train, score, ask, label (simulated), retrain, promote; three times."""
    from rich.console import Console

    from activeseg.cli.output import listening
    from activeseg.demo.story import DemoOptions, run_demo

    # With --json the story goes to standard error and the result alone to standard output.
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 120)
    options = DemoOptions(state, data, rounds, query_size, offline, stays=not leave)
    with listening() as listener:
        result = run_demo(options, console, listener)
    server = result.server
    if as_json:
        where = {"url": server.url, "email": server.email} if server and not leave else None
        print_json({"state": str(state.absolute()), "curve": result.curve, "seconds": result.seconds, "label_studio": where})
    if server is None:
        return
    if leave:
        server.stop()
        return
    console.print("\nLabel Studio keeps running; Ctrl-C stops it.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("stopping Label Studio")
    finally:
        server.stop()
