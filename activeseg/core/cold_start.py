"""The first query, spread over what a pretrained encoder sees, when there is no model to rank by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from activeseg.core.kcenter import greedy_k_center
from activeseg.core.ranking import seeded_random
from activeseg.core.selection import CHOSEN, CONTROL, interleave
from activeseg.errors import ConfigError
from activeseg.records import QueryItem


def select_spread(
    groups: Mapping[int, str | None],
    embedded: Sequence[int],
    features: npt.NDArray[np.float32],
    size: int,
    *,
    validation: int,
    seed: int,
) -> list[QueryItem]:
    """A random control arm for the validation split, and by greedy k-center those farthest from it and from each other.

    groups: the clip or site of every image that may be asked about; None is the image alone. embedded: those of them with an
    embedding; features: (M, D), theirs. size: images wanted, >= 1; with fewer all of them are taken. validation: images
    drawn at random, for only random ones may validate a model.

    A clip or site that has validation images is not trained on. So the control arm comes from as few groups as it can, drawn
    with a chance that grows with their size, and nothing else is chosen from these; a group is passed over where too few
    images would be left outside. With a single group there is no control arm, and nothing to validate on.
    Raises ConfigError for bad sizes.
    """
    if size < 1 or validation < 0:
        raise ConfigError(f"expected size 1 or more and validation 0 or more; got {size} and {validation}")
    drawn, apart = _draw(groups, min(validation, size), size, seed)
    control = [QueryItem(image_id, None, None, CONTROL, 0, "random draw, to validate with") for image_id in drawn]
    allowed = [image_id for image_id in sorted(groups) if image_id not in apart]
    chosen = _spread(allowed, dict(zip(embedded, features, strict=True)), drawn, size - len(drawn), seed)
    line = interleave(chosen, control, seed=seed)
    return [QueryItem(item.image_id, None, None, item.arm, place, item.reason) for place, item in enumerate(line)]


def _draw(groups: Mapping[int, str | None], wanted: int, size: int, seed: int) -> tuple[list[int], set[int]]:
    """Images of the control arm, and all images of their groups."""
    members: dict[tuple[str, str | int], list[int]] = {}
    line = sorted(groups)
    seeded_random("spread control arm", seed).shuffle(line)
    for image_id in line:  # a group stands where its first image does: the larger, the sooner
        name = groups[image_id]
        members.setdefault(("alone", image_id) if name is None else ("group", name), []).append(image_id)
    drawn: list[int] = []
    apart: set[int] = set()
    for group in members.values():
        taken = group[: wanted - len(drawn)]
        outside = len(line) - len(apart) - len(group)
        if taken and outside >= min(size - len(drawn) - len(taken), len(line) // 2):
            drawn += taken
            apart.update(group)
    return drawn, apart


def _spread(
    allowed: Sequence[int], vectors: Mapping[int, npt.NDArray[np.float32]], drawn: Sequence[int], size: int, seed: int
) -> list[QueryItem]:
    known = [image_id for image_id in allowed if image_id in vectors]
    rng = seeded_random("spread start", seed)
    places: list[int] = []
    if known and size > 0:
        features = torch.from_numpy(np.stack([vectors[image_id] for image_id in known]))
        centers = [vectors[image_id] for image_id in drawn if image_id in vectors]
        labeled = torch.from_numpy(np.stack(centers)) if centers else None
        places = greedy_k_center(features, size, labeled=labeled, start=rng.randrange(len(known)))
    items = [
        QueryItem(known[place], None, None, CHOSEN, 0, f"{number} of {size}: farthest from those before it (k-center)")
        for number, place in enumerate(places, start=1)
    ]
    taken = {item.image_id for item in items}
    rest = [image_id for image_id in allowed if image_id not in taken]
    filling = rng.sample(rest, min(size - len(items), len(rest)))
    return items + [QueryItem(image_id, None, None, CHOSEN, 0, "random draw, no image apart is left") for image_id in filling]
