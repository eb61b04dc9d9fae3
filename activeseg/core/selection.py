"""Which images annotators see next, and which annotated ones validate the model.

All draws are seeded: the same arguments give the same result, whatever order the images come in.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, overload

from activeseg.core.ranking import Limits, Picker, Ranking, seeded_random, top
from activeseg.errors import ConfigError
from activeseg.records import QueryItem, RankedImage

Item = TypeVar("Item")

CHOSEN = "chosen"
CONTROL = "control"
LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class Selection(Sequence[QueryItem]):
    """A query's images in shown order; a sequence of them. filled: how many of them are there in spite of the limits."""

    items: list[QueryItem]
    filled: int = 0

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, at: int) -> QueryItem: ...

    @overload
    def __getitem__(self, at: slice) -> list[QueryItem]: ...

    def __getitem__(self, at: int | slice) -> QueryItem | list[QueryItem]:
        return self.items[at]


def select_query(
    ranking: Ranking | Iterable[RankedImage],
    size: int,
    *,
    control_share: float,
    seed: int,
    pick: Picker | None = None,
    limits: Limits | None = None,
) -> Selection:
    """The next query: what `pick` takes from the ranking (default: its top) and a random control arm.

    ranking: all images that may be asked for; in any order where they come one by one.
    size: images wanted, >= 1; with fewer in the ranking all of them are taken.
    control_share: 0..1. Of n images taken, control_share * n rounded half up are control; where the share is positive
    and n at least 2, then at least one, because an empty arm measures nothing.
    limits: which places are free; default: all. Where they and `pick` leave too few, the best of the rest come too.

    The control arm is drawn first, uniformly without replacement from the whole ranking and bound by no limit: an
    unbiased sample of the pool. An image at the top that was drawn stays control, as moving it would rob the control arm
    of its most uncertain images; its rank tells that it would have been chosen anyway.
    shown_order: the chosen arm in the order it was picked (from its most uncertain image on), so that the first one an
    annotator opens is the most useful; the control arm is interleaved in random order at random places (every set of
    places has the same chance), so that no place tells an image's arm.

    Raises ConfigError for bad arguments.
    """
    _check_size(size, at_least=1)
    if not 0 <= control_share <= 1:
        raise ConfigError(f"control_share: expected 0 to 1; got {control_share}")
    if not isinstance(ranking, Ranking):
        images = list(ranking)
        ranking = Ranking.of([one.image_id for one in images], [one.score for one in images])
    limits = limits or Limits(len(ranking))
    size = min(size, len(ranking))
    drawn = seeded_random("control arm", seed).sample(range(len(ranking)), _control_size(size, control_share))
    for place in drawn:
        limits.take(place)
    chosen = (pick or top(ranking))(size - len(drawn), drawn, limits) if size > len(drawn) else []
    filled = _by_rank(len(ranking), size - len(drawn) - len(chosen), {*drawn, *(place for place, _ in chosen)})
    whys = dict([*chosen, *((place, "by rank, gaps and caps left too few") for place in filled)])
    line = interleave(list(whys), drawn, seed=seed)
    return Selection([_query_item(ranking, place, whys.get(place), at) for at, place in enumerate(line)], len(filled))


def _by_rank(count: int, size: int, taken: Collection[int]) -> list[int]:
    """The best `size` places that are not taken."""
    return list(islice((place for place in range(count) if place not in taken), size))


def interleave(chosen: Sequence[Item], control: Sequence[Item], *, seed: int) -> list[Item]:
    """Both arms in one line: `chosen` in its order, `control` in random order at uniformly drawn places."""
    rng = seeded_random("shown order", seed)
    size = len(chosen) + len(control)
    places = set(rng.sample(range(size), len(control)))
    best, drawn = iter(chosen), iter(rng.sample(control, len(control)))
    return [next(drawn if place in places else best) for place in range(size)]


def select_bootstrap(
    image_ids: Iterable[int], size: int, *, seed: int, groups: Mapping[int, str | None] | None = None
) -> list[QueryItem]:
    """The first query, when there is no model to rank by: random images, all in the control arm, in shown order.

    size: images wanted, >= 1; with fewer all of them are taken.
    groups: the clip or site of an image. The draw is then spread over the groups in proportion to their size
    (systematic sampling along the images sorted by group); every image keeps the same chance. A missing or None group
    is the image alone.
    Raises ConfigError for bad arguments or repeated images.
    """
    _check_size(size, at_least=1)
    pool = sorted(image_ids)
    if len(set(pool)) != len(pool):
        raise ConfigError("image_ids: each image may be given once; some are repeated")
    rng = seeded_random("bootstrap", seed)
    members = _shuffled_groups({image_id: (groups or {}).get(image_id) for image_id in pool}, rng)
    line = [image_id for group in members for image_id in group]
    size = min(size, len(line))
    start = rng.random()
    drawn = [line[min(int((start + step) * len(line) / size), len(line) - 1)] for step in range(size)]
    rng.shuffle(drawn)
    return [
        QueryItem(image_id, None, None, CONTROL, shown_order, "random draw, no model yet")
        for shown_order, image_id in enumerate(drawn)
    ]


def freeze_validation(annotated: Mapping[int, str | None], size: int, *, seed: int, keep_for_training: int) -> set[int]:
    """Image ids to freeze into the validation split: whole groups, drawn at random.

    annotated: image_id -> its clip or site; None is the image alone. Give only images that were drawn at random, or the
    split measures the model on what it found hard.
    size: never more images than this, with one exception: where every group is larger, the smallest one is taken whole.
    Meant for an empty split; a caller that tops one up passes what is missing and must expect that exception.
    keep_for_training: this many annotated images always stay outside; where no whole group leaves them, nothing is
    frozen.
    Groups come in random order and one that no longer fits is passed over. Returns a possibly empty set.
    Raises ConfigError for negative numbers.
    """
    _check_size(size, at_least=0)
    if keep_for_training < 0:
        raise ConfigError(f"keep_for_training: expected 0 or more; got {keep_for_training}")
    available = len(annotated) - keep_for_training
    if size == 0 or available <= 0:
        return set()
    members = _shuffled_groups(annotated, seeded_random("validation", seed))
    frozen: set[int] = set()
    for group in members:
        if len(frozen) + len(group) <= min(size, available):
            frozen.update(group)
    smallest = min(members, key=len)
    return set(smallest) if not frozen and len(smallest) <= available else frozen


def _control_size(size: int, share: float) -> int:
    rounded = math.floor(size * share + 0.5)
    return max(rounded, 1) if share > 0 and size >= 2 else rounded


def _query_item(ranking: Ranking, place: int, why: str | None, shown_order: int) -> QueryItem:
    """why: beside the rank; None in the control arm."""
    arm = CONTROL if why is None else CHOSEN
    reason = ", ".join(filter(None, ("random control draw" if why is None else why, ranking.describe(place))))
    image_id, score = int(ranking.image_ids[place]), float(ranking.scores[place])
    return QueryItem(image_id, place + 1, score, arm, shown_order, reason[:LONGEST_REASON])


def _shuffled_groups(group_of: Mapping[int, str | None], rng: random.Random) -> list[list[int]]:
    """Members of each group, groups and members in random order; images without a group are groups of one."""
    members: defaultdict[tuple[str, str | int], list[int]] = defaultdict(list)
    for image_id in sorted(group_of):
        group = group_of[image_id]
        members[("alone", image_id) if group is None else ("group", group)].append(image_id)
    shuffled = list(members.values())
    rng.shuffle(shuffled)
    for group_members in shuffled:
        rng.shuffle(group_members)
    return shuffled


def _check_size(size: int, *, at_least: int) -> None:
    if size < at_least:
        raise ConfigError(f"size: expected {at_least} or more; got {size}")
