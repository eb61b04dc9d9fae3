"""What several annotators of an image agreed on, by [labelstudio] consensus, and how far each agrees with the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from activeseg.core.consensus import agreement, majority
from activeseg.core.labels import UNLABELED, LabelSet, Mask
from activeseg.db import votes
from activeseg.db.models import LabelSetRow
from activeseg.db.votes import Ballot
from activeseg.errors import DataError
from activeseg.workspace import Workspace

_GROUP = 50


def find_outcomes(workspace: Workspace) -> tuple[Counter[str], dict[str, str]]:
    """Bring the outcomes of all images with several annotators up to date; what is up to date is left alone.

    Returns how many were found ("consensus") or ended without another ("consensus ended"), and the problems by image:
    there the newest mask counts until they are mended. Needs the lease.
    """
    counts, problems = Counter[str](), dict[str, str]()
    with workspace.database.read() as session:
        contested = votes.contested(session)
    for start in range(0, len(contested), _GROUP):
        with workspace.database.read() as session:
            ballots = votes.ballots(session, contested[start : start + _GROUP])
            drawn_for = {number: session.get_one(LabelSetRow, number).definition for number in _label_sets(ballots)}
        label_sets = {number: LabelSet.from_dict(definition) for number, definition in drawn_for.items()}
        for ballot in ballots:
            if not ballot.is_settled(workspace.settings.labelstudio.consensus):
                _settle(workspace, ballot, label_sets, counts, problems)
    return counts, problems


def _label_sets(ballots: Sequence[Ballot]) -> set[int]:
    return {vote.label_set_id for ballot in ballots for vote in ballot.votes}


def _settle(
    workspace: Workspace,
    ballot: Ballot,
    label_sets: Mapping[int, LabelSet],
    counts: Counter[str],
    problems: dict[str, str],
) -> None:
    wanted = ballot.wanted(workspace.settings.labelstudio.consensus)
    found: tuple[str, str] | None = None
    shares: dict[int, float] = {}
    try:
        if len(ballot.votes) > 1:
            label_set = label_sets[ballot.votes[0].label_set_id]
            files = [(str(vote.mask_location), vote.mask_sha256) for vote in ballot.votes]
            masks = [workspace.read_mask(*file, label_set=label_set) for file in files]
            compared = _labelled(masks) if ballot.in_part else masks
            shares = dict(zip([vote.id for vote in ballot.votes], agreement(compared), strict=True))
            found = _agreed(workspace, ballot, wanted, masks, label_set)
        elif wanted:
            found = _starred(ballot, wanted)
    except DataError as error:
        problems[f"annotators of image {ballot.image_id}"] = f"{error}; the newest mask counts"
        wanted, found = [], None
    with workspace.database.write() as session:
        votes.write_agreement(session, shares)
        if [outcome.consensus_of for outcome in ballot.outcomes] == ([wanted] if wanted else []):
            return
        if found is None:
            votes.end_outcomes(session, ballot)
            counts["consensus ended"] += len(ballot.outcomes)
        else:
            votes.write_outcome(session, ballot, wanted, *found)
            counts["consensus"] += 1


def _agreed(
    workspace: Workspace, ballot: Ballot, wanted: Sequence[int], masks: list[Mask], label_set: LabelSet
) -> tuple[str, str] | None:
    """Location and sha256 of the outcome; None where there is none."""
    if len(wanted) < 2:
        return _starred(ballot, wanted) if wanted else None
    agreed = majority(masks)
    label_set.require_labelled(agreed)
    stored = workspace.store_mask(agreed, label_set=label_set)
    return stored.location, stored.sha256


def _labelled(masks: list[Mask]) -> list[Mask]:
    """What anybody labelled: of an image that was asked about in part, all agree on the rest without having looked at it."""
    if masks[0].ndim == 3:
        return masks
    somewhere = np.any([mask != UNLABELED for mask in masks], axis=0)
    return [mask[somewhere] for mask in masks]


def _starred(ballot: Ballot, wanted: Sequence[int]) -> tuple[str, str]:
    (mask,) = (mask for mask in ballot.masks if mask.id in wanted)
    return str(mask.mask_location), str(mask.mask_sha256)
