"""The scorer of a video for every similarity and one or several half widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.events.banded import (
    BandedScorer,
    PairSimilarity,
    band_of_cosines,
    band_of_distances,
    band_of_matrix,
    band_of_pairs,
    working_type,
)
from pipeline.events.kernel import (
    Counts,
    Edges,
    Floats,
    Scorer,
    Taper,
    check_options,
    score_parts,
    weights_of,
)
from pipeline.events.scores import RESOLUTION, SquaredDistanceScorer, cosine_scorer

__all__ = ["SIMILARITIES", "Pool", "ScaleScorer", "Similarity", "make_scorer"]

Pool = Literal["max", "mean"]
Similarity = Literal["cosine", "l2", "sqeuclidean"]

SIMILARITIES: Mapping[str, Callable[[NDArray[Any], int], Floats]] = {
    "cosine": band_of_cosines,
    "l2": band_of_distances,
    "sqeuclidean": lambda features, reach: band_of_distances(features, reach, squared=True),
}
"""Bands of similarities by name: cosine, `-‖x - y‖` (UBoCo and the LOVEU winners, whose instance
normalisation shifts and scales all scores alike), `-‖x - y‖²`."""


def make_scorer(
    features: NDArray[Any],
    half_widths: Sequence[int],
    *,
    pool: Pool = "max",
    similarity: Similarity | PairSimilarity | NDArray[Any] = "cosine",
    taper: Taper = "box",
    edges: Edges = "normalized",
) -> Scorer:
    """The scorer of one video.

    Cosine and, where the edges allow, the squared distance go by the closed form; every other
    similarity by a band of its matrix, which all half widths share.

    Args:
        features: shape (L, D), any float type.
        half_widths: clips on each side, one per scale; scales that fall together count once.
        pool: how the scores of several scales become one: see `ScaleScorer`.
        similarity: a name of `SIMILARITIES`, a function of row pairs, or the matrix (L, L) itself.
        taper: see `boundary_scores`.
        edges: see `boundary_scores`.

    Raises:
        ValueError: wrong shapes, an unknown option, or a value that is not finite.
    """
    if features.ndim != 2 or not features.size:
        raise ValueError(f"features must be (L, D) with L, D >= 1, got {features.shape}")
    if pool not in get_args(Pool):
        raise ValueError(f"unknown pool {pool!r}; allowed: {', '.join(get_args(Pool))}")
    widths = sorted(set(half_widths))
    if not widths:
        raise ValueError("scales must name at least one half width")
    for width in widths:
        check_options(width, taper, edges)
    one = _one_scale(features, widths[-1], similarity, edges)
    if len(widths) == 1:
        return one(widths[0], taper, edges)
    totals = [float(weights_of(taper, width).sum()) for width in widths]
    # Normalised scores compare means already; the others grow with the kernel.
    units = [1.0 if edges == "normalized" else total**2 for total in totals]
    return ScaleScorer([one(width, taper, edges) for width in widths], units, pool)


def _one_scale(
    features: NDArray[Any],
    widest: int,
    similarity: Similarity | PairSimilarity | NDArray[Any],
    edges: Edges,
) -> Callable[[int, Taper, Edges], Scorer]:
    """What makes the scorer of one half width; a band is computed once for all."""
    if isinstance(similarity, str):
        if similarity not in SIMILARITIES:
            allowed = ", ".join(SIMILARITIES)
            raise ValueError(f"unknown similarity {similarity!r}; allowed: {allowed}")
        if similarity == "cosine":
            return lambda width, taper, edges: cosine_scorer(features, width, taper, edges)
        if similarity == "sqeuclidean" and edges != "zero":
            return lambda width, taper, edges: SquaredDistanceScorer(features, width, taper, edges)
        band = SIMILARITIES[similarity](features, 2 * widest)
    elif isinstance(similarity, np.ndarray):
        if similarity.shape != (len(features),) * 2:
            raise ValueError(
                f"a self-similarity matrix of {len(features)} clips must be "
                f"({len(features)}, {len(features)}), got {similarity.shape}"
            )
        band = band_of_matrix(similarity, 2 * widest)
    else:
        band = band_of_pairs(features, 2 * widest, similarity)
    given = similarity if isinstance(similarity, np.ndarray) else features
    resolution = RESOLUTION[working_type(given)]
    return lambda width, taper, edges: BandedScorer(band, width, taper, edges, resolution)


class ScaleScorer:
    """A `Scorer` of several half widths: the largest or the mean of their scores.

    A short kernel sees short events, a long one gradual changes. With edges "zero" and "margin"
    the scores of a scale are divided by the square of its total weight, so that they compare.

    Args:
        scorers: one per scale, of the same video.
        units: what the scores of each are divided by.
        pool: "max" or "mean".
    """

    def __init__(self, scorers: Sequence[Scorer], units: Sequence[float], pool: Pool) -> None:
        self._scales = list(zip(scorers, units, strict=True))
        self._pool = pool
        self.n = scorers[0].n
        self.half_width = max(scorer.half_width for scorer in scorers)
        self.resolution = max(scorer.resolution / unit for scorer, unit in self._scales)

    def segment(self, lo: int, hi: int) -> Floats:
        """Scores of all clips of the segment `[lo, hi)`, shape (hi - lo,)."""
        return self.part(lo, hi, lo, hi)

    def part(self, first: int, last: int, lo: int, hi: int) -> Floats:
        """Scores of the clips `[first, last)` of the segment `[lo, hi)`."""
        return self._pooled([scorer.part(first, last, lo, hi) for scorer, _ in self._scales])

    def parts(self, first: Counts, last: Counts, lo: Counts, hi: Counts) -> Floats:
        """As `score_parts`."""
        return self._pooled([score_parts(s, first, last, lo, hi) for s, _ in self._scales])

    def edge(self, clip: int) -> int:
        """As the scale decides that sees the boundary most clearly, the shortest of equals."""
        clearest = int(self._each(clip, clip + 1, 0, self.n)[:, 0].argmax())
        return self._scales[clearest][0].edge(clip)

    def _pooled(self, scores: Sequence[Floats]) -> Floats:
        """One score per clip from those of every scale."""
        each = np.stack(
            [score / unit for score, (_, unit) in zip(scores, self._scales, strict=True)]
        )
        pooled: Floats = each.max(axis=0) if self._pool == "max" else each.mean(axis=0)
        return pooled

    def _each(self, first: int, last: int, lo: int, hi: int) -> Floats:
        return np.stack([s.part(first, last, lo, hi) / unit for s, unit in self._scales])
