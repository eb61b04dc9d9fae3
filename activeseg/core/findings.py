"""What can be said of the control arm, in figures and in sentences; what cannot be told yet says what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from activeseg.core.control import (
    ENOUGH,
    Answer,
    Interval,
    comparable,
    compare_arms,
    corrected_to_expected,
    rank_correlation,
    share_difference,
    wilson,
)
from activeseg.wording import counted

PROXY = "corrected pixels are a proxy for what a label is worth, they are not mIoU: only `activeseg backtest` measures that"


@dataclass(frozen=True, slots=True)
class Arm:
    """What became of the images of an arm.

    asked: sent and not taken back. open: waiting. completion: annotated / asked. answers: annotations the report counts.
    """

    asked: int
    annotated: int
    skipped: int
    open: int
    completion: Interval | None
    answers: int


@dataclass(frozen=True, slots=True)
class Finding:
    """An estimate and what it says. estimate: None where it cannot be told; then the sentence says what is missing."""

    estimate: Interval | None
    answers: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Findings:
    """The report on the control arm.

    rounds: their number, those asked for with a model. chosen, control: the arms. left_out: why, and how many annotations
    do not count. completion: the chosen arm's rate minus the control arm's. ranking: Spearman's correlation of score and
    correction, on control images. corrected_chosen, corrected_control: mean share of pixels corrected, over rounds with
    answers of both. worth: the first over the second. calibration: pixels corrected for each expected to be wrong, on
    control images.
    """

    rounds: int
    chosen: Arm
    control: Arm
    left_out: Mapping[str, int]
    completion: Finding
    ranking: Finding
    corrected_chosen: Finding
    corrected_control: Finding
    worth: Finding
    calibration: Finding


@dataclass(frozen=True, slots=True)
class Counts:
    """Queries of an arm by what became of them."""

    annotated: int = 0
    skipped: int = 0
    open: int = 0

    @property
    def asked(self) -> int:
        """All of them."""
        return self.annotated + self.skipped + self.open


def find(
    answers: Sequence[Answer], chosen: Counts, control: Counts, left_out: Mapping[str, int], *, rounds: int, overlap: bool
) -> Findings:
    """Everything that can be told. overlap: whether classes overlap, where the model expects no share of wrong pixels."""
    drawn = [one for one in answers if not one.chosen]
    shares = _shares(answers)
    return Findings(
        rounds=rounds,
        chosen=_arm(chosen, len(answers) - len(drawn)),
        control=_arm(control, len(drawn)),
        left_out=dict(left_out),
        completion=_completion(chosen, control),
        ranking=_ranking(drawn),
        corrected_chosen=shares[0],
        corrected_control=shares[1],
        worth=shares[2],
        calibration=_calibration(drawn, overlap=overlap),
    )


def _arm(counts: Counts, answers: int) -> Arm:
    completion = wilson(counts.annotated, counts.asked)
    return Arm(counts.asked, counts.annotated, counts.skipped, counts.open, completion, answers)


def _completion(chosen: Counts, control: Counts) -> Finding:
    asked = chosen.asked + control.asked
    difference = share_difference((chosen.annotated, chosen.asked), (control.annotated, control.asked))
    if difference is None:
        return Finding(None, asked, "one arm was asked for nothing: completion cannot be compared")
    if difference.holds(0.0):
        return Finding(difference, asked, "both arms are answered alike, as far as can be told")
    arm = "chosen" if difference.value > 0 else "control"
    bias = "what annotators leave out is not random, so the figures below are about images that they answer"
    return Finding(difference, asked, f"{arm} images are answered more often: {bias}")


def _ranking(drawn: Sequence[Answer]) -> Finding:
    ranked = [one for one in drawn if one.percentile is not None]
    found = rank_correlation(ranked)
    if found is None:
        return Finding(None, len(ranked), _missing(len(ranked), "answered control images"))
    said = f"on {counted(len(ranked), 'control image')}"
    if found.low > 0:
        return Finding(found, len(ranked), f"yes, {said} a higher score means more to correct")
    if found.is_below(0.0):
        return Finding(found, len(ranked), f"no, {said} a higher score means less to correct: choose by something else")
    return Finding(found, len(ranked), f"cannot be told {said}: the interval holds 0")


def _shares(answers: Sequence[Answer]) -> tuple[Finding, Finding, Finding]:
    """Chosen, control and their ratio."""
    both = comparable(answers)
    chosen = sum(one.chosen for one in both)
    control = len(both) - chosen
    found = compare_arms(answers)
    if found is None:
        asked = "answered {} images, in rounds with both arms"
        first, second = (_missing(n, asked.format(arm)) for n, arm in ((chosen, "chosen"), (control, "control")))
        return (
            Finding(None, chosen, first),
            Finding(None, control, second),
            Finding(None, len(both), first if chosen < ENOUGH <= control else second),
        )
    where = f"over {counted(found.rounds, 'round')} with both arms"
    worth = "one arm needed no corrections at all: there is no ratio" if found.ratio is None else _worth(found.ratio)
    return (
        Finding(found.chosen, chosen, where),
        Finding(found.control, control, where),
        Finding(found.ratio, len(both), worth),
    )


def _worth(ratio: Interval) -> str:
    if ratio.low > 1:
        return f"a chosen image brings more corrected pixels than a random one; {PROXY}"
    if ratio.is_below(1.0):
        return f"a chosen image brings fewer corrected pixels than a random one; {PROXY}"
    return f"cannot be told: the interval holds 1, a random image may bring as many corrected pixels; {PROXY}"


def _calibration(drawn: Sequence[Answer], *, overlap: bool) -> Finding:
    if overlap:
        return Finding(None, 0, "where classes overlap the model expects errors of classes, not of pixels: no comparison")
    expecting = [one for one in drawn if one.expected is not None]
    found = corrected_to_expected(expecting)
    if found is None:
        return Finding(None, len(expecting), _missing(len(expecting), "answered control images of whole images"))
    if found.low > 1:
        return Finding(found, len(expecting), "more pixels were corrected than the model expected to be wrong: it is too sure")
    if found.is_below(1.0):
        return Finding(
            found, len(expecting), "fewer pixels were corrected than the model expected to be wrong: it is too unsure"
        )
    return Finding(
        found, len(expecting), "as many pixels were corrected as the model expected to be wrong, as far as can be told"
    )


def _missing(count: int, what: str) -> str:
    if count < ENOUGH:
        return f"too early: {count} of at least {ENOUGH} {what}, {ENOUGH - count} more are needed"
    return f"{count} {what}, but their corrections do not vary enough to tell"
