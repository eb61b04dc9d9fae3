"""activeseg backtest: the loop replayed on labelled images, once for each strategy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from activeseg.cli.output import AsJson, listening, print_json, print_table, settings_of

if TYPE_CHECKING:
    from activeseg.backtest.dataset import ReplayData
    from activeseg.backtest.protocol import Protocol
    from activeseg.backtest.run import Outcome
    from activeseg.backtest.units import Unit
    from activeseg.config import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(backtest)


def backtest(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; the same one again goes on.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Labelled images: {train,val}/{images,masks} and classes.txt.")
    ] = None,
    strategies: Annotated[
        str, typer.Option("--strategies", help="Names as in [selection] acquisition, with commas between.")
    ] = "random,entropy_sum",
    initial: Annotated[str, typer.Option("--initial", help="Images labelled at first: a share or a number.")] = "10%",
    step: Annotated[str, typer.Option("--step", help="Images each round adds.")] = "5%",
    until: Annotated[str, typer.Option("--until", help="No round labels more than this.")] = "40%",
    budgets: Annotated[
        str | None, typer.Option("--budgets", help="Instead of these three: images labelled after each round, as 2%,5%,10%.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Replays of each strategy.")] = 3,
    first_seed: Annotated[int, typer.Option("--first-seed", min=0, help="The first of these seeds.")] = 0,
    hold_out: Annotated[
        str | None,
        typer.Option("--hold-out", help="Regular expression: measure on the train images whose path it matches, not on val."),
    ] = None,
    with_val: Annotated[
        bool, typer.Option("--with-val", help="With --hold-out: measure on val, too; the report also tells both apart.")
    ] = False,
    full_steps: Annotated[
        int | None,
        typer.Option("--full-steps", min=0, help="Steps of the training on all images; 0 = none. [default: 3 x steps]"),
    ] = None,
    on_history: Annotated[
        bool, typer.Option("--on-history", help="Instead of --data: replay this workspace's own annotated images.")
    ] = False,
    rare: Annotated[
        str | None, typer.Option("--rare", help="Rare classes, with commas between. [default: those under 1.5 % of the pixels]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes. [default: one for each core; on a GPU 1]")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Recipe: [model], [training], [labels]. [default: as for all commands]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay the loop on images whose masks are known, once for each strategy and seed, and say what choosing bought.

    Every finished training is a file in OUT/units and is never done again: add seeds and strategies later. A backtest that
    was killed goes on where it was.
    """
    from activeseg.backtest.protocol import Protocol, labels_of_budgets, labels_of_steps, parse_strategies
    from activeseg.backtest.run import alone
    from activeseg.backtest.summary import rare_channels

    names = parse_strategies(strategies)
    settings = _settings(context, config)
    with alone(out):
        prepared = _prepare(data, out, settings, hold_out, with_val=with_val, on_history=on_history, quiet=as_json)
        pool = len(prepared.pool)
        labels = labels_of_budgets(budgets, pool) if budgets else labels_of_steps(initial, step, until, pool)
        channels = rare_channels(prepared, [name.strip() for name in rare.split(",")] if rare else ())
        steps = 3 * (settings or _defaults()).training.steps if full_steps is None else full_steps
        protocol = Protocol(names, labels, tuple(range(first_seed, first_seed + seeds)), steps)
        try:
            outcome = _run(out, protocol, prepared, settings or _defaults(), workers, quiet=as_json)
        except KeyboardInterrupt:
            typer.echo(f"interrupted: finished trainings are kept in {out / 'units'}, the same command goes on", err=True)
            raise
        _tell(out, outcome, protocol, prepared, channels, settings, as_json)
    if outcome.errors:
        raise outcome.errors[0]


def _settings(context: typer.Context, config: Path | None) -> Settings | None:
    """Of the configured workspace; None where there is none."""
    import os

    from activeseg.config import CONFIG_FILE, load_settings

    if config is None and context.obj is None and "ACTIVESEG_CONFIG" not in os.environ and not Path(CONFIG_FILE).exists():
        return None
    return load_settings(config) if config else settings_of(context)


def _defaults() -> Settings:
    from activeseg.config import Settings

    return Settings()


def _prepare(
    data: Path | None,
    out: Path,
    settings: Settings | None,
    hold_out: str | None,
    *,
    with_val: bool,
    on_history: bool,
    quiet: bool,
) -> ReplayData:
    from activeseg.backtest.dataset import matching, prepare
    from activeseg.backtest.history import export_history
    from activeseg.errors import ConfigError
    from activeseg.workspace import open_workspace

    work = out.absolute() / "work"
    held = matching(hold_out) if hold_out else None
    if on_history == (data is not None):
        raise ConfigError("expected either --data with a folder of labelled images, or --on-history")
    if with_val and (on_history or not hold_out):
        raise ConfigError(
            "--with-val measures on val beside what --hold-out names: give --data and --hold-out, or leave it out"
        )
    if on_history:
        if settings is None:
            raise ConfigError("--on-history replays a workspace: go to its folder, or name its configuration with --config")
        data = work / "history"
        with open_workspace(settings) as workspace:
            drawn = export_history(workspace, data)
        held = held or drawn
    with listening(quiet=quiet) as listener:
        progress = listener.of("look through the images")
        prepared = prepare(
            Path(str(data)).absolute(),
            work / "data",
            settings or _defaults(),
            hold_out=held,
            with_val=with_val,
            on_progress=progress,
        )
    for name, problem in prepared.left_out.items():
        typer.echo(f"left out: {name}: {problem}", err=True)
    return prepared


def _run(out: Path, protocol: Protocol, data: ReplayData, settings: Settings, workers: int | None, *, quiet: bool) -> Outcome:
    from activeseg.backtest.run import Heard, run_backtest
    from activeseg.backtest.workers import default_workers

    processes = workers or default_workers(settings.model.device)
    typer.echo(
        f"{len(data.pool)} images to choose from, {len(data.held)} to measure on; labelled: "
        f"{', '.join(map(str, protocol.labels))}; processes: {processes}",
        err=True,
    )
    with listening(quiet=quiet) as listener:
        clock = _Clock(listener.of("training steps"))
        heard = Heard(unit=clock.tell, problem=lambda text: typer.echo(text, err=True), progress=clock.progress)
        return run_backtest(out, protocol, data, settings, workers=processes, heard=heard)


class _Clock:
    """Tells of each unit that ends and, from the optimiser steps done so far, when about the last one will."""

    def __init__(self, show: Callable[[int, int], None]) -> None:
        self.show, self.started = show, time.monotonic()
        self.done = self.planned = 0

    def progress(self, done: int, planned: int) -> None:
        self.done, self.planned = done, planned
        self.show(done, planned)

    def tell(self, unit: Unit, new: bool) -> None:
        if new:
            typer.echo(sentence(unit) + self._left(), err=True)

    def _left(self) -> str:
        if not self.done or self.done >= self.planned:
            return ""
        minutes = (time.monotonic() - self.started) / self.done * (self.planned - self.done) / 60
        return f"; about {minutes:.0f} min left" if minutes >= 1 else ""


def sentence(unit: Unit) -> str:
    """A unit in a line."""
    figure = "-" if unit.mean_iou is None else f"{unit.mean_iou:.4f}"
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in unit.seconds.items())
    return f"{unit.name}: {len(unit.labelled)} images, mIoU {figure} ({spent})"


def _tell(
    out: Path,
    outcome: Outcome,
    protocol: Protocol,
    data: ReplayData,
    rare: Sequence[int],
    settings: Settings | None,
    as_json: bool,
) -> None:
    """Write the report and the rows, and print the table."""
    from activeseg.backtest.report import measured_on, sentences, table, write_report
    from activeseg.backtest.results import store_results
    from activeseg.backtest.summary import summarise

    summary = summarise(outcome.units, protocol, data, rare)
    # First the files: a database that is away must not cost the report.
    write_report(out, summary, outcome.units, data, max_pixels=(settings or _defaults()).pool.max_pixels)
    database = store_results(out, settings, outcome.fingerprint, protocol, outcome.units)
    if as_json:
        print_json(summary)
        return
    head, rows = table(summary)
    print_table(head, rows)
    for text in sentences(summary):
        typer.echo(text)
    for name, part in summary["parts"].items():
        typer.echo(f"\n{measured_on(name, part)}")
        print_table(*table(part))
    typer.echo(f"report: {out / 'report.html'}, {out / 'report.json'}; rows: {database}")
