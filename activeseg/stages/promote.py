"""checkpoints -> evaluations and promotions: a challenger serves only if it proves not to be worse."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

from activeseg.config import PromotionSection
from activeseg.core.bootstrap import paired_bootstrap
from activeseg.core.calibration import CalibrationFigures
from activeseg.core.labels import LabelSet
from activeseg.core.metrics import Metrics
from activeseg.core.temperature import ENOUGH_IMAGES, serving
from activeseg.db import checkpoints, drift, truth
from activeseg.db.models import Checkpoint, Decision, Split
from activeseg.errors import CheckpointError, DataError, LabelSetMismatch, NotReadyError
from activeseg.evaluations import BOOTSTRAP_SAMPLES, evaluate_checkpoint
from activeseg.nn.checkpoint import load_checkpoint
from activeseg.nn.evaluate import Evaluation
from activeseg.records import StageReport
from activeseg.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of a challenger, in a sentence and in figures. temperature: fitted on the way, to score with."""

    promoted: bool
    reason: str
    statistics: dict[str, Any]
    temperature: float | None = None


def promote_challengers(workspace: Workspace, *, decided_by: str = "gate") -> StageReport:
    """Decide about every checkpoint that was trained and not decided about, oldest first. One that cannot be judged, because
    it knows other classes than [labels] or its file is lost or damaged, is refused; what is wrong with anything else raises.
    Where the champion, too, knows other classes than [labels], that may be the mistake: then it waits.

    Where the validation split has ENOUGH_IMAGES of them, the temperature of its scores is fitted there and frozen: once, now,
    so that a validation split that grows later changes no score. Where [drift] blocks promotion, they wait undecided.
    """
    started = time.monotonic()
    with workspace.database.read() as session:
        waiting = checkpoints.undecided(session)
        held = drift.held(session, workspace.settings.drift, "promotion")
    if waiting and held is not None:
        waits = {"promoted": 0, "held": held, "model_version": waiting[-1].model_version}
        return StageReport("promote", seconds=time.monotonic() - started, details=waits)
    outcomes = [(challenger.model_version, _decide(workspace, challenger, decided_by)) for challenger in waiting]
    decisions = [(name, verdict) for name, verdict in outcomes if isinstance(verdict, Verdict)]
    details: dict[str, Any] = {"promoted": sum(verdict.promoted for _, verdict in decisions)}
    if decisions:
        name, last = decisions[-1]
        details |= {"model_version": name, "reason": last.reason, "statistics": last.statistics}
        if last.temperature is not None:
            details["temperature"] = round(last.temperature, 2)
    if left := [verdict for _, verdict in outcomes if isinstance(verdict, str)]:
        details["held"] = left[-1]
    return StageReport("promote", len(decisions), 0, time.monotonic() - started, details)


def _decide(workspace: Workspace, challenger: Checkpoint, decided_by: str) -> Verdict | str:
    """The verdict, written down; or why nothing can be decided yet."""
    with workspace.database.read() as session:
        champion = checkpoints.champion(session)
        validated = bool(truth.current(session, split=Split.VAL))
    try:
        verdict = _judge(workspace, champion, challenger, validated)
    except (LabelSetMismatch, CheckpointError, DataError) as error:
        if isinstance(error, LabelSetMismatch) and champion is not None and not _has_todays_classes(workspace, champion):
            return str(error)
        if (unusable := _unusable(workspace, challenger)) is None:
            raise  # the champion's, or an image or mask of the split
        verdict = Verdict(False, f"cannot be judged: {unusable}", {})
    with workspace.database.write() as session:
        decision = Decision.PROMOTED if verdict.promoted else Decision.REFUSED
        checkpoints.decide(
            session,
            challenger.id,
            decision,
            verdict.reason,
            decided_by=decided_by,
            statistics=verdict.statistics,
        )
    return verdict


def _has_todays_classes(workspace: Workspace, checkpoint: Checkpoint) -> bool:
    return LabelSet.from_dict(checkpoint.spec["label_set"]).same_classes(workspace.label_set)


def _unusable(workspace: Workspace, challenger: Checkpoint) -> str | None:
    """What is wrong with a challenger itself; None where nothing is, or where it is the disk that does not answer.

    A file that is not there says something about itself only where others are: else the artifacts' disk is not mounted.
    """
    try:
        checkpoints.require_labels(challenger, workspace.label_set)
        data = workspace.artifacts.read(challenger.location, sha256=challenger.sha256)
        load_checkpoint(data, model_version=challenger.model_version, device="cpu")
    except (LabelSetMismatch, DataError) as error:
        return str(error)
    except CheckpointError as error:
        failing = isinstance(error.__cause__, OSError) or not any(workspace.artifacts.files("checkpoint"))
        return None if failing else str(error)
    return None


def _judge(workspace: Workspace, champion: Checkpoint | None, challenger: Checkpoint, validated: bool) -> Verdict:
    if not validated:
        if champion is None:
            return Verdict(True, "first", {})
        return Verdict(False, "no validation split: nothing but the first checkpoint is promoted without one", {})
    new = evaluate_checkpoint(workspace, challenger, fit_temperature=True)
    if (temperature := _temperature(new)) is not None:
        with workspace.database.write() as session:
            checkpoints.freeze_temperature(session, challenger.id, temperature)
    if champion is None:
        return Verdict(True, "first", {"mean_iou": new.metrics.mean_iou}, temperature)
    try:
        old = evaluate_checkpoint(workspace, champion)
    except LabelSetMismatch:
        return Verdict(True, "first of these classes", {"mean_iou": new.metrics.mean_iou}, temperature)
    verdict = gate(
        old,
        _as_it_serves(workspace, challenger, new),
        workspace.settings.promotion,
        LabelSet.from_dict(challenger.spec["label_set"]),
    )
    return replace(verdict, temperature=temperature)


def _as_it_serves(workspace: Workspace, challenger: Checkpoint, measured: Evaluation) -> Evaluation:
    """The challenger with the calibration of the temperature it would score with: known only once all images were seen."""
    with workspace.database.read() as session:
        row = session.get_one(Checkpoint, challenger.id)
    temperature = serving(row.temperature, workspace.settings.scoring.temperature)
    return measured if temperature == measured.temperature else evaluate_checkpoint(workspace, row)


def _temperature(measured: Evaluation) -> float | None:
    few = len(measured.image_ids) < ENOUGH_IMAGES
    return None if few or measured.fitted is None else measured.fitted.temperature


def gate(champion: Evaluation, challenger: Evaluation, rules: PromotionSection, label_set: LabelSet) -> Verdict:
    """Whether a challenger may replace the champion, both measured on the same images.

    It must be shown not to be worse: the lower end of the paired bootstrap interval of the mIoU difference lies above
    -tolerance; no class with enough validation pixels may lose more than class_floor IoU; and the expected calibration error,
    each with the temperature it scores with, may not rise by more than max_ece_rise.
    """
    interval = paired_bootstrap(
        champion.counts, challenger.counts, samples=BOOTSTRAP_SAMPLES, confidence=rules.confidence, seed=0
    ).mean_iou
    statistics: dict[str, Any] = {
        "champion_mean_iou": champion.metrics.mean_iou,
        "mean_iou": challenger.metrics.mean_iou,
        "difference": interval.difference,
        "low": interval.low,
        "high": interval.high,
        "confidence": rules.confidence,
    }
    old_ece, new_ece = (_served(one).ece for one in (champion, challenger))
    # Where nothing was counted it is no number, and JSON has no word for that.
    statistics |= {name: value for name, value in (("champion_ece", old_ece), ("ece", new_ece)) if math.isfinite(value)}
    change = f"mIoU {champion.metrics.mean_iou:.3f} -> {challenger.metrics.mean_iou:.3f}"
    margin = f"{rules.confidence:.0%} interval of the difference {interval.low:+.3f}..{interval.high:+.3f}"
    fallen = _fallen_classes(champion.metrics, challenger.metrics, rules, label_set)
    if interval.low <= -rules.tolerance:
        return Verdict(False, f"{change}: may lose more than {rules.tolerance} ({margin})", statistics)
    if fallen:
        return Verdict(False, f"{change}, but {', '.join(fallen)} lost more than {rules.class_floor} IoU", statistics)
    if rules.max_ece_rise < 1 and new_ece - old_ece > rules.max_ece_rise:
        rise = f"calibration error {old_ece:.3f} -> {new_ece:.3f}"
        return Verdict(False, f"{change}, but {rise} rises by more than {rules.max_ece_rise}", statistics)
    allowed = f"; [promotion] tolerance {rules.tolerance} allows it" if interval.difference < 0 else ""
    return Verdict(True, f"{change} ({margin}{allowed})", statistics)


def _served(measured: Evaluation) -> CalibrationFigures:
    return measured.scaled or measured.calibration


def _fallen_classes(old: Metrics, new: Metrics, rules: PromotionSection, label_set: LabelSet) -> list[str]:
    pairs = zip(old.by_class(label_set), new.by_class(label_set), strict=True)
    return [
        before.name
        for before, after in pairs
        if before.iou is not None
        and after.iou is not None
        and before.truth_pixels >= rules.floor_min_pixels
        and before.iou - after.iou > rules.class_floor
    ]


def promote_by_hand(workspace: Workspace, model_version: str, *, decided_by: str, reason: str) -> StageReport:
    """Move the champion pointer to a checkpoint a person names; its classes must be the configured ones."""
    started = time.monotonic()
    with workspace.database.read() as session:
        checkpoint = checkpoints.by_version(session, model_version)
    checkpoints.require_labels(checkpoint, workspace.label_set)
    workspace.artifacts.require(checkpoint.location)
    with workspace.database.write() as session:
        checkpoints.decide(session, checkpoint.id, Decision.PROMOTED, reason, decided_by=decided_by)
    return StageReport("promote", 1, 0, time.monotonic() - started, {"model_version": model_version, "reason": reason})


def rollback(workspace: Workspace, model_version: str | None, *, decided_by: str, reason: str) -> StageReport:
    """Move the champion pointer back, to a named checkpoint or to the champion before this one."""
    started = time.monotonic()
    with workspace.database.write() as session:
        if model_version is not None:
            target = checkpoints.by_version(session, model_version)
        else:
            previous = checkpoints.previous_champion(session)
            if previous is None:
                raise NotReadyError("there is no champion before this one to go back to")
            target = previous
        checkpoints.require_labels(target, workspace.label_set)
        workspace.artifacts.require(target.location)
        checkpoints.decide(session, target.id, Decision.ROLLED_BACK, reason, decided_by=decided_by)
    details = {"model_version": target.model_version, "reason": reason}
    return StageReport("rollback", 1, 0, time.monotonic() - started, details)
