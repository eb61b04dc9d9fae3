"""activeseg report: what choosing buys, measured on the control arm."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from activeseg.cli.output import AsJson, print_json, print_table, workspace_of
from activeseg.wording import counted

if TYPE_CHECKING:
    from activeseg.core.control import Interval
    from activeseg.core.findings import Arm, Finding, Findings

_QUESTIONS = (
    ("ranking", "does a higher score mean more to correct?", "rank correlation"),
    ("worth", "what is a chosen image worth?", "random images"),
    ("calibration", "does the model know where it is wrong?", "corrected / expected"),
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    context: typer.Context,
    rounds: Annotated[
        str | None, typer.Option("--rounds", metavar="A-B", help="Only these rounds, both included; or one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell from the control arm whether choosing pays: corrections of chosen and random images, with intervals."""
    from activeseg.db import arms

    first, last = _range(rounds)
    with workspace_of(context) as workspace, workspace.database.read() as session:
        found = arms.findings(session, first=first, last=last)
    if as_json:
        print_json(asdict(found))
        return
    _print(found)


def _range(text: str | None) -> tuple[int | None, int | None]:
    from activeseg.errors import ConfigError

    if text is None:
        return None, None
    match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last:
        raise ConfigError(f"--rounds: expected A-B, such as 3-7, or one number; got {text!r}")
    return first, last


def _print(found: Findings) -> None:
    columns = ("arm", "asked", "annotated", "skipped", "open", "annotated, %", "counted", "pixels corrected, %")
    rows = [
        _arm_row("chosen", found.chosen, found.corrected_chosen.estimate),
        _arm_row("control", found.control, found.corrected_control.estimate),
    ]
    print_table(columns, rows, title=f"{counted(found.rounds, 'round')}, intervals of 95 %")
    if found.left_out:
        typer.echo("not counted: " + ", ".join(f"{count} {why}" for why, count in found.left_out.items()))
    typer.echo(f"completion: {found.completion.sentence}")
    for name, question, figure in _QUESTIONS:
        one: Finding = getattr(found, name)
        estimate = "" if one.estimate is None else f"\n  {figure} {_spelled(one.estimate)}"
        typer.echo(f"\n{question}\n  {one.sentence}{estimate}")


def _arm_row(name: str, arm: Arm, corrected: Interval | None) -> tuple[Any, ...]:
    completion, changed = _percent(arm.completion), _percent(corrected)
    return (name, arm.asked, arm.annotated, arm.skipped, arm.open, completion, arm.answers, changed)


def _percent(interval: Interval | None) -> str | None:
    """'88.3 (82.3 .. 92.5)'."""
    if interval is None:
        return None
    high = 1.0 if interval.high is None else interval.high
    return f"{100 * interval.value:.1f} ({100 * interval.low:.1f} .. {100 * high:.1f})"


def _spelled(interval: Interval) -> str:
    """'1.80 (1.20 .. 2.60)'."""
    high = "no limit" if interval.high is None else f"{interval.high:.2f}"
    return f"{interval.value:.2f} ({interval.low:.2f} .. {high})"
