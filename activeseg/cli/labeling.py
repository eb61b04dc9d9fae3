"""activeseg push, pull: the Label Studio side."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from activeseg.cli.output import AsJson, client_of, listening, print_json, print_reports, print_table, workspace_of

if TYPE_CHECKING:
    from activeseg.preannotate import PreAnnotator
    from activeseg.workspace import Workspace


class PreAnnotation(StrEnum):
    """How the masks of a first round are drawn."""

    GRAPHCUT = "graphcut"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(push)
    app.command()(pull)


def push(
    context: typer.Context,
    size: Annotated[int | None, typer.Option("--size", "-k", min=1, help="Images of this round. [default: query_size]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be chosen; write and send nothing.")] = False,
    pre_annotate: Annotated[
        PreAnnotation | None, typer.Option("--pre-annotate", help="Without a champion: outline one object by a classifier.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option("--classifier", help="Torchvision's name of the classifier, e.g. resnet50.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="File of its weights. [default: download the published ones]")
    ] = None,
    categories: Annotated[
        Path | None, typer.Option("--categories", help="File of its categories, one a line. [default: ImageNet's]")
    ] = None,
    mapped: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="CATEGORY=CLASS", help="A category's class where names differ; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Finish begun rounds and open a new one now: choose, predict, send to Label Studio."""
    from activeseg.db import lease
    from activeseg.errors import ConfigError
    from activeseg.housekeeping import with_room
    from activeseg.loop import finish_round, preview_query, rounds_to_push, why_nothing_to_push

    if pre_annotate is None and any((classifier, weights, categories, mapped)):
        raise ConfigError("--classifier, --weights, --categories and --map belong to --pre-annotate graphcut")
    with workspace_of(context) as workspace:
        if dry_run:
            items = preview_query(workspace, size)
            if as_json:
                print_json([asdict(item) for item in items])
            else:
                rows = [(item.shown_order, item.image_id, item.rank, item.score, item.arm, item.reason) for item in items]
                print_table(("order", "image", "rank", "score", "arm", "reason"), rows)
            if not items:
                typer.echo(f"nothing to push: {why_nothing_to_push(workspace)}", err=True)
            return
        annotator = None
        if pre_annotate is not None:
            annotator = _pre_annotator(workspace, classifier, weights, categories, mapped or [])
        with client_of(workspace) as client, listening(quiet=as_json) as listener, lease.holding(workspace.database):
            if client is None:
                raise ConfigError("no Label Studio: set [labelstudio] url in activeseg.toml")
            with with_room(workspace):
                reports = [
                    report
                    for row in rounds_to_push(workspace, size)
                    for report in finish_round(workspace, row, client, listener, pre_annotator=annotator)
                ]
    print_reports(reports, as_json)


def _pre_annotator(
    workspace: Workspace, classifier: str | None, weights: Path | None, categories: Path | None, mapped: list[str]
) -> PreAnnotator:
    from activeseg.errors import ConfigError
    from activeseg.nn.classifier import load_classifier
    from activeseg.nn.device import pick_device
    from activeseg.preannotate import PreAnnotator, require_no_champion

    require_no_champion(workspace)
    if classifier is None:
        raise ConfigError("--pre-annotate graphcut needs --classifier, e.g. --classifier resnet50")
    pairs = [item.partition("=") for item in mapped]
    if bad := [item for item, (category, _, name) in zip(mapped, pairs, strict=True) if not (category and name)]:
        raise ConfigError(f"--map: expected CATEGORY=CLASS, got {bad[0]!r}")
    device = pick_device(workspace.settings.model.device)
    loaded = load_classifier(classifier, weights=weights, categories=categories, device=device)
    given = {category.strip(): name.strip() for category, _, name in pairs}
    return PreAnnotator.of(loaded, workspace.label_set, given, device)


def pull(
    context: typer.Context,
    full: Annotated[
        bool, typer.Option("--full", help="Compare everything, not only what changed since the last pull.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Collect annotations from Label Studio; repeating it writes nothing new."""
    from activeseg.db import lease
    from activeseg.errors import ConfigError
    from activeseg.housekeeping import with_room
    from activeseg.loop import collect
    from activeseg.records import StageReport

    reports: list[StageReport] = []
    with workspace_of(context) as workspace, client_of(workspace) as client, lease.holding(workspace.database):
        if client is None:
            raise ConfigError("no Label Studio: set [labelstudio] url in activeseg.toml")
        with with_room(workspace):
            collect(workspace, client, reports.append, full=full)
    print_reports(reports, as_json)
