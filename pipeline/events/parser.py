"""From features to events: boundaries in seconds, and spans that partition the video."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.grid import Grid
from pipeline.events.banded import PairSimilarity, unit_rows
from pipeline.events.kts import kts_edges
from pipeline.events.oneshot import EATR_HALF_WIDTH, eatr_clips, oneshot_clips
from pipeline.events.options import check_given
from pipeline.events.recursion import recursive_nodes, relative_threshold, with_parents
from pipeline.events.scatter import Scatter
from pipeline.events.scorers import Pool, Similarity, make_scorer
from pipeline.events.scores import Edges, Scorer, Taper
from pipeline.events.settle import settled, split_order

__all__ = ["METHODS", "Events", "Method", "combine", "parse"]

Method = Literal["rtp", "oneshot", "eatr-compat", "kts", "uniform"]

_UNIFORM_EVENTS = 10  # nine boundaries: the mean of Kinetics-GEBD annotations (specs §5)


@dataclass(frozen=True)
class Events:
    """What was found in one video. K boundaries cut it into E = K + 1 events.

    Args:
        boundaries_s: strictly ascending, inside `(0, D)`, shape (K,) float64.
        strength: boundary score at each, shape (K,) float64; 0 for `uniform`.
        boundary_depth: depth in the tree, 0 is the first split, shape (K,) int32.
        boundary_parent: index of the boundary that it is a child of, -1 for none, shape (K,) int32.
        spans_s: `[start, end)` of each event; they partition `[0, D]`, shape (E, 2) float64.
        depth: splits that led to each event, 0 where there is no boundary, shape (E,) int32.
        scores: boundary score of every clip of the whole video, shape (N,) float64.
    """

    boundaries_s: NDArray[np.float64]
    strength: NDArray[np.float64]
    boundary_depth: NDArray[np.int32]
    boundary_parent: NDArray[np.int32]
    spans_s: NDArray[np.float64]
    depth: NDArray[np.int32]
    scores: NDArray[np.float64]


def parse(
    features: NDArray[Any],
    clip_len_s: float,
    duration_s: float,
    *,
    method: Method = "rtp",
    half_width_s: float = 4.0,
    scales: Sequence[float] | None = None,
    pool: Pool = "max",
    similarity: Similarity | PairSimilarity | NDArray[Any] = "cosine",
    taper: Taper = "box",
    edges: Edges = "normalized",
    min_len_s: float = 4.0,
    delta_rel: float = 0.4,
    settle: float | None = None,
    max_events: int | None = None,
    max_depth: int | None = None,
    penalty: float = 1.0,
    padded_len: int | None = None,
) -> Events:
    """Cut a video into events. Deterministic: of equal scores the earliest clip wins.

    Args:
        features: one row per clip of the grid, shape (N, D).
        clip_len_s: seconds per clip.
        duration_s: length of the video.
        method: "rtp" recursive; "oneshot" every local maximum above the mean score; "eatr-compat"
            the same as EaTR's and LLMEPET's public code has it: two clips on each side, box, zero
            edges, cuts at the start of the boundary clip; "kts" kernel temporal segmentation;
            "uniform" equal spans, a baseline. With "kts" and "uniform" the scores are reported,
            but do not decide.
        half_width_s: seconds compared on each side of a clip, at least one clip.
        scales: several half widths in seconds instead of `half_width_s`.
        pool: how the scores of `scales` become one: see `make_scorer`.
        similarity: how two clips are compared, a name, a function of row pairs or the matrix (N, N)
            itself: see `make_scorer`.
        taper: see `boundary_scores`.
        edges: see `boundary_scores`.
        min_len_s: `rtp` does not split segments shorter than this, `kts` makes none.
        delta_rel: `rtp` splits where best minus mean score of a segment is at least this part of
            the same difference in the whole video (scale-free form of UBoCo's threshold).
        settle: `rtp`: after the recursion the cuts are set right together, each being worth at
            least this price (see `pipeline.events.settle`); None leaves them as UBoCo has them.
        max_events: at most so many events: those of the strongest boundaries ("kts": the best
            segmentation into so many); the number of spans of "uniform" (10 if None).
        max_depth: `rtp` splits at most this often on the way to an event.
        penalty: what `kts` pays for boundaries, 1 in the paper; more gives fewer events.
        padded_len: `eatr-compat`: clips of the padded batch that the video was in.

    Raises:
        ValueError: features that do not fit the grid or are not finite, a wrong option, or an
            option other than its default that has no effect (`pipeline.events.options.READS`).
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; allowed: {', '.join(METHODS)}")
    finder = METHODS[method]
    given = {
        "half_width_s": half_width_s,
        "scales": scales,
        "pool": pool,
        "similarity": similarity,
        "taper": taper,
        "edges": edges,
        "min_len_s": min_len_s,
        "delta_rel": delta_rel,
        "settle": settle,
        "max_events": max_events,
        "max_depth": max_depth,
        "penalty": penalty,
        "padded_len": padded_len,
    }
    check_given(method, given, _defaults())
    n = Grid(duration_s, clip_len_s).n
    if len(features) != n:
        raise ValueError(
            f"{len(features)} rows of features for a grid of {n} clips "
            f"({duration_s} s in clips of {clip_len_s} s)"
        )
    how: dict[str, Any] = {
        "half_widths": _half_widths([half_width_s] if scales is None else scales, clip_len_s),
        "pool": pool,
        "similarity": similarity,
        "taper": taper,
        "edges": edges,
    }
    scorer = make_scorer(features, **{**how, **finder.scorer})
    task = _Task(
        features=features,
        scorer=scorer,
        scores=scorer.segment(0, n),
        clip_len_s=clip_len_s,
        duration_s=duration_s,
        min_len=_clips(min_len_s, clip_len_s),
        delta_rel=delta_rel,
        settle=settle,
        max_events=max_events,
        max_depth=max_depth,
        penalty=penalty,
        padded_len=padded_len,
    )
    return _events(finder.cuts(task), duration_s, task.scores)


@cache
def _defaults() -> Mapping[str, Any]:
    """The options of `parse` with their defaults."""
    parameters = inspect.signature(parse).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def combine(streams: Sequence[tuple[NDArray[Any], float]]) -> NDArray[np.float64]:
    """Features whose cosine is the weighted mean of the cosines of several streams.

    Args:
        streams: (features (L, D_i), weight > 0) each; rows of zeros stay zeros.

    Returns:
        shape (L, sum of D_i).
    """
    parts = [math.sqrt(weight) * unit_rows(features) for features, weight in streams]
    return np.concatenate(parts, axis=1)


# ---------------------------------------------------------------- methods


@dataclass(frozen=True)
class _Task:
    """One video and the arguments of `parse`, lengths in clips."""

    features: NDArray[Any]
    scorer: Scorer
    scores: NDArray[np.float64]
    clip_len_s: float
    duration_s: float
    min_len: int
    delta_rel: float
    settle: float | None
    max_events: int | None
    max_depth: int | None
    penalty: float
    padded_len: int | None

    @property
    def max_cuts(self) -> int | None:
        return None if self.max_events is None else self.max_events - 1


@dataclass(frozen=True)
class _Cut:
    """A boundary in seconds and its place in the tree; `parent` is the time of another cut."""

    time_s: float
    strength: float = 0.0
    depth: int = 0
    parent_s: float | None = None


def _rtp(task: _Task) -> list[_Cut]:
    threshold = relative_threshold(task.scores, task.delta_rel)
    recursion = partial(recursive_nodes, task.scorer, task.scores, task.min_len, threshold)
    if task.settle is not None:
        begun = sorted({task.scorer.edge(node.clip) for node in recursion()})
        return _settled(task, np.array(begun, np.int64), task.settle)
    nodes = recursion(task.max_cuts, task.max_depth)
    edges = {node.clip: task.scorer.edge(node.clip) for node in nodes}
    cuts: dict[int, _Cut] = {}
    for node, parent in sorted(with_parents(nodes), key=lambda pair: pair[0].depth):
        edge = edges[node.clip]
        if edge not in cuts:
            above = None if parent is None else edges[parent.clip] * task.clip_len_s
            cuts[edge] = _Cut(edge * task.clip_len_s, node.score, node.depth, above)
    return list(cuts.values())


def _settled(task: _Task, edges: NDArray[np.int64], price: float) -> list[_Cut]:
    scatter = Scatter(task.features)
    inside = edges[(edges > 0) & (edges < scatter.n)]
    edges = settled(scatter, inside, task.min_len, price)
    return [
        _Cut(
            split.edge * task.clip_len_s,
            split.saved,
            split.depth,
            None if split.parent is None else split.parent * task.clip_len_s,
        )
        for split in split_order(scatter, edges, task.max_cuts, task.max_depth)
    ]


def _oneshot(task: _Task) -> list[_Cut]:
    cuts: dict[int, _Cut] = {}
    for clip in _by_strength(task, oneshot_clips(task.scores, task.scorer.resolution)):
        edge = task.scorer.edge(clip)  # of a plateau's two clips often one
        cuts.setdefault(edge, _Cut(edge * task.clip_len_s, float(task.scores[clip])))
    return list(cuts.values())[: task.max_cuts]


def _eatr(task: _Task) -> list[_Cut]:
    clips = _by_strength(task, eatr_clips(task.features, task.padded_len))[: task.max_cuts]
    return [_Cut(clip * task.clip_len_s, float(task.scores[clip])) for clip in clips]


def _by_strength(task: _Task, clips: NDArray[np.int64]) -> list[int]:
    """Clips from the best score to the worst; of equals the earlier first."""
    strongest: list[int] = clips[np.argsort(-task.scores[clips], kind="stable")].tolist()
    return strongest


def _kts(task: _Task) -> list[_Cut]:
    found = kts_edges(task.features, task.min_len, task.penalty, task.max_cuts)
    return [_Cut(edge * task.clip_len_s, gain) for edge, gain in found]


def _uniform(task: _Task) -> list[_Cut]:
    events = task.max_events or _UNIFORM_EVENTS
    return [_Cut(task.duration_s * i / events) for i in range(1, events)]


@dataclass(frozen=True)
class _Finder:
    """A way to find boundaries.

    Args:
        cuts: does it.
        scorer: arguments of `make_scorer` that it insists on.
    """

    cuts: Callable[[_Task], list[_Cut]]
    scorer: Mapping[str, Any] = field(default_factory=dict)


METHODS: Mapping[str, _Finder] = {
    "rtp": _Finder(_rtp),
    "oneshot": _Finder(_oneshot),
    "eatr-compat": _Finder(
        _eatr, {"half_widths": [EATR_HALF_WIDTH], "taper": "box", "edges": "zero"}
    ),
    "kts": _Finder(_kts),
    "uniform": _Finder(_uniform),
}
"""Ways to find boundaries, by the name that `parse` and the `events` stage know."""


def _half_widths(seconds: Sequence[float], clip_len_s: float) -> list[int]:
    """Half widths in clips, ascending; scales that are one on this grid count once."""
    return sorted({_clips(each, clip_len_s) for each in seconds})


def _clips(seconds: float, clip_len_s: float) -> int:
    """Whole clips nearest to `seconds`, at least one."""
    return max(1, math.floor(seconds / clip_len_s + 0.5))


def _events(cuts: Sequence[_Cut], duration_s: float, scores: NDArray[np.float64]) -> Events:
    inside = sorted(
        {cut.time_s: cut for cut in cuts if 0 < cut.time_s < duration_s}.values(),
        key=lambda cut: cut.time_s,
    )
    at = {cut.time_s: index for index, cut in enumerate(inside)}
    times = np.array([cut.time_s for cut in inside], dtype=np.float64)
    ends = np.concatenate([[0.0], times, [duration_s]])
    depth = [cut.depth for cut in inside]
    parents = [-1 if cut.parent_s is None else at[cut.parent_s] for cut in inside]
    around = np.array([-1, *depth, -1], dtype=np.int32)
    return Events(
        boundaries_s=times,
        strength=np.array([cut.strength for cut in inside], dtype=np.float64),
        boundary_depth=np.array(depth, dtype=np.int32),
        boundary_parent=np.array(parents, dtype=np.int32),
        spans_s=np.stack([ends[:-1], ends[1:]], axis=1),
        depth=np.maximum(around[:-1], around[1:]) + 1,
        scores=scores,
    )
