"""Queries that spread: k-center on what the network sees in the images, k-means++ on what they would teach it.

Places are those of a ranking (`core.ranking`). Embeddings are asked for by image id; an image without one cannot be told
near or far, so it is only taken, by its rank, where those with one do not fill the query.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from activeseg.core.acquisition import Values
from activeseg.core.kcenter import Cover
from activeseg.core.ranking import Limits, Pick, Picker, Ranking, pick_in_order, seeded_random
from activeseg.errors import NonFiniteScoreError

Vectors = npt.NDArray[np.float32]
Load = Callable[[Sequence[int]], tuple[list[int], Vectors]]
"""image ids -> those that have an embedding, in any order, and their (M, D) embeddings."""

BEST = 5_000
"""Candidates of `entropy_kcenter`: the top of its ranking."""


def k_center(ranking: Ranking, load: Load, asked: Sequence[int], *, weighted: bool) -> Picker:
    """Greedily the image farthest from those labelled, asked about or taken already.

    Sener & Savarese (2018), algorithm 1: argmax_i min_j |e_i - e_j|. weighted: the best `BEST` of the ranking alone, and
    argmax_i s_i / max s * min_j |e_i - e_j| ('uncertain and far'). Ties go by rank. With nothing to be far from, the
    first is the top of the ranking.
    asked: ids of images that are labelled or asked about. The control arm of this query counts as taken.
    """

    def pick(size: int, control: Sequence[int], limits: Limits) -> list[Pick]:
        places, features = _embedded(ranking, load, BEST if weighted else len(ranking))
        known = [*asked, *(int(ranking.image_ids[place]) for place in control)]
        scores = ranking.scores[places]
        weights = scores / scores.max() if weighted and len(scores) and scores.max() > 0 else np.ones(len(places))
        found = _farthest(places, features, weights, load(known)[1], size, limits)
        return _rest(ranking, [(place, _why(far, "first, far from nothing")) for place, far in found], places, size, limits)

    return pick


def k_means_plus_plus(ranking: Ranking, load: Load, *, seed: int) -> Picker:
    """Seeds of k-means++ among gradient embeddings: an image's chance grows with D^2, D its distance to the nearest taken.

    Ash et al., Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds (BADGE, 2020). The first is the one
    with the longest gradient, unless there is a control arm, which counts as taken.
    """

    def pick(size: int, control: Sequence[int], limits: Limits) -> list[Pick]:
        places, gradients = _embedded(ranking, load, len(ranking))
        known = [int(ranking.image_ids[place]) for place in control]
        found = _sampled(places, gradients, load(known)[1], size, limits, seed)
        return _rest(ranking, [(place, _why(far, "longest gradient")) for place, far in found], places, size, limits)

    return pick


def _embedded(ranking: Ranking, load: Load, among: int) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Those of the first places that have an embedding, by rank, and their embeddings."""
    ids = ranking.image_ids[:among]
    found, vectors = load(ids.tolist())
    place_of = {image_id: place for place, image_id in enumerate(ids.tolist())}
    rows = np.array([place_of[image_id] for image_id in found], dtype=np.int64)
    order = np.argsort(rows)
    return rows[order], vectors[order]


def _farthest(
    places: npt.NDArray[np.int64], features: Vectors, weights: Values, centers: Vectors, size: int, limits: Limits
) -> Iterator[tuple[int, float]]:
    """(place, distance to the nearest center) of those taken; ends where none is free and apart."""
    cover = _cover(features, centers)
    for _ in range(size if len(places) else 0):
        distances = cover.distances.sqrt().double().numpy()
        # Before there is a center all are infinitely far, which says nothing: then weights decide.
        worth = weights * (distances if np.isfinite(distances[0]) else 1.0)
        worth[~limits.free[places]] = 0.0
        row = int(worth.argmax())
        if not worth[row] > 0:
            return
        yield _take(cover, row, places, limits)


def _sampled(
    places: npt.NDArray[np.int64], gradients: Vectors, centers: Vectors, size: int, limits: Limits, seed: int
) -> Iterator[tuple[int, float]]:
    """The same, drawn."""
    cover, rng = _cover(gradients, centers), seeded_random("badge", seed)
    for _ in range(size if len(places) else 0):
        first = not math.isfinite(float(cover.distances[0]))
        squares = (cover.squares if first else cover.distances).double().numpy().copy()
        squares[~limits.free[places]] = 0.0
        if not squares.max() > 0:
            return
        row = int(squares.argmax()) if first else draw_in_proportion(squares, rng.random())
        yield _take(cover, row, places, limits)


def draw_in_proportion(weights: Values, uniform: float) -> int:
    """The index in which uniform * sum(weights) falls, for 0 <= uniform < 1: never one whose weight is 0."""
    sums = np.cumsum(weights)
    # Where rounding makes uniform * sum the whole sum, the last index with a weight is meant.
    return int(min(np.searchsorted(sums, uniform * sums[-1], side="right"), np.flatnonzero(weights)[-1]))


def _take(cover: Cover, row: int, places: npt.NDArray[np.int64], limits: Limits) -> tuple[int, float]:
    far = math.sqrt(float(cover.distances[row]))
    center = cover.features[row]
    cover.add(center, cover.rough_distances(center[None])[0])
    limits.take(int(places[row]))
    return int(places[row]), far


def _cover(vectors: Vectors, centers: Vectors) -> Cover:
    if not (np.isfinite(vectors).all() and np.isfinite(centers).all()):
        raise NonFiniteScoreError("embeddings: expected finite numbers; score the pool again")
    cover = Cover(torch.from_numpy(vectors))
    cover.add_all(torch.tensor(centers))
    return cover


def _why(far: float, first: str) -> str:
    return f"distance {far:.3g} to the nearest taken" if math.isfinite(far) else first


def _rest(ranking: Ranking, picked: list[Pick], embedded: npt.NDArray[np.int64], size: int, limits: Limits) -> list[Pick]:
    """Fill up by rank where embeddings did not."""
    if len(picked) == size:
        return picked
    known = frozenset(embedded.tolist())
    more = pick_in_order(range(len(ranking)), size - len(picked), limits)
    return picked + [
        (place, "by rank, none apart is left" if place in known else "by rank, no embedding compared") for place, _ in more
    ]
