"""From features to events: boundaries in seconds, and spans that partition the video.

`rtp` is UBoCo's recursive parsing at test time (specs/llmepet_and_pseudo_events.md §4.2, defined
to the letter by the golden file `event_recursion.json`): split a segment at its best score, go on
in both parts, stop where the best score does not stand out. A split changes only the scores of
the `s` clips on each side of it, and only those are computed again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.grid import Grid
from pipeline.events.scores import BoundaryScorer, Edges, Taper

__all__ = [
    "METHODS",
    "Events",
    "Method",
    "Node",
    "combine",
    "oneshot_clips",
    "parse",
    "recursive_nodes",
    "relative_threshold",
]

Method = Literal["rtp", "oneshot", "uniform"]

_UNIFORM_EVENTS = 10  # nine boundaries: the mean of Kinetics-GEBD annotations (specs §5)


@dataclass(frozen=True)
class Node:
    """One split: the segment `[lo, hi)` in clips, and where and how clearly it was split.

    Args:
        lo: first clip of the segment.
        hi: one past its last clip.
        clip: the split clip; neither part contains it.
        score: boundary score of that clip, the largest of the segment.
        mean: mean score of the segment.
        depth: 0 for the split of the whole video.
    """

    lo: int
    hi: int
    clip: int
    score: float
    mean: float
    depth: int


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
    taper: Taper = "box",
    edges: Edges = "normalized",
    min_len_s: float = 4.0,
    delta_rel: float = 0.4,
    max_events: int | None = None,
    max_depth: int | None = None,
) -> Events:
    """Cut a video into events. Deterministic: of equal scores the earliest clip wins.

    Args:
        features: one row per clip of the grid, shape (N, D).
        clip_len_s: seconds per clip.
        duration_s: length of the video.
        method: "rtp" recursive; "oneshot" every local maximum above the mean score (EaTR and
            LLMEPET's public code, for one unpadded video); "uniform" equal spans, a baseline.
        half_width_s: seconds compared on each side of a clip, at least one clip.
        taper: see `boundary_scores`.
        edges: see `boundary_scores`.
        min_len_s: `rtp` does not split segments shorter than this.
        delta_rel: `rtp` splits where best minus mean score of a segment is at least this part of
            the same difference in the whole video (scale-free form of UBoCo's threshold).
        max_events: at most so many events, those of the strongest boundaries; the number of
            spans of "uniform" (10 if None).
        max_depth: `rtp` splits at most this often on the way to an event.

    Raises:
        ValueError: features that do not fit the grid or are not finite, or a wrong option.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; allowed: {', '.join(METHODS)}")
    if max_events is not None and max_events < 1:
        raise ValueError(f"max_events must be at least 1, got {max_events}")
    n = Grid(duration_s, clip_len_s).n
    if len(features) != n:
        raise ValueError(
            f"{len(features)} rows of features for a grid of {n} clips "
            f"({duration_s} s in clips of {clip_len_s} s)"
        )
    scorer = BoundaryScorer(features, _clips(half_width_s, clip_len_s), taper, edges)
    scores = scorer.segment(0, n)
    min_len = _clips(min_len_s, clip_len_s)
    task = _Task(scorer, scores, clip_len_s, duration_s, min_len, delta_rel, max_events, max_depth)
    return _events(METHODS[method](task), duration_s, scores)


def combine(streams: Sequence[tuple[NDArray[Any], float]]) -> NDArray[np.float64]:
    """Features whose cosine is the weighted mean of the cosines of several streams.

    Args:
        streams: (features (L, D_i), weight > 0) each; rows of zeros stay zeros.

    Returns:
        shape (L, sum of D_i).
    """
    parts = []
    for features, weight in streams:
        rows = features.astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        parts.append(math.sqrt(weight) * rows / np.where(norms == 0, 1.0, norms))
    return np.concatenate(parts, axis=1)


# ---------------------------------------------------------------- recursive parsing


def recursive_nodes(
    scorer: BoundaryScorer,
    scores: NDArray[np.float64],
    min_len: int,
    threshold: float,
    max_splits: int | None = None,
    max_depth: int | None = None,
) -> list[Node]:
    """All splits of the recursion, in pre-order (a split before those of its two parts).

    The strongest open segment is split first, so that `max_splits` keeps the strongest splits
    that can be reached; without it the order of work does not change the result.

    Args:
        scorer: rescores the clips next to a new edge.
        scores: scores of the whole sequence, shape (L,); not changed.
        min_len: segments of fewer clips are left alone.
        threshold: a segment is split if its best score exceeds its mean by this much.
        max_splits: stop after so many; None is no limit.
        max_depth: splits on one path from the root; None is no limit.
    """
    scores = scores.copy()
    waiting: list[tuple[float, int, Node]] = []

    def consider(lo: int, hi: int, depth: int) -> None:
        node = _best_split(scores, lo, hi, depth)
        if (
            node is not None
            and hi - lo >= min_len
            and (max_depth is None or depth < max_depth)
            and node.score - node.mean > scorer.resolution
            and node.score - node.mean >= threshold
        ):
            heapq.heappush(waiting, (-node.score, node.lo, node))

    consider(0, len(scores), 0)
    nodes: list[Node] = []
    while waiting and (max_splits is None or len(nodes) < max_splits):
        node = heapq.heappop(waiting)[2]
        nodes.append(node)
        for lo, hi in ((node.lo, node.clip), (node.clip + 1, node.hi)):
            _rescore(scorer, scores, lo, hi, node)
            consider(lo, hi, node.depth + 1)
    return sorted(nodes, key=lambda node: (node.lo, -node.hi))


def relative_threshold(scores: NDArray[np.float64], delta_rel: float) -> float:
    """`delta_rel` times how much the best score of the whole sequence exceeds its mean."""
    return delta_rel * float(scores.max() - scores.mean())


def _best_split(scores: NDArray[np.float64], lo: int, hi: int, depth: int) -> Node | None:
    """Where the segment would be split; None if it has no clips."""
    if hi == lo:
        return None
    segment = scores[lo:hi]
    at = int(segment.argmax())
    return Node(lo, hi, lo + at, float(segment[at]), float(segment.mean()), depth)


def _rescore(
    scorer: BoundaryScorer, scores: NDArray[np.float64], lo: int, hi: int, split: Node
) -> None:
    """Scores of the part `[lo, hi)` next to the clip at which its parent was split."""
    if hi <= split.clip:
        first, last = max(lo, hi - scorer.half_width), hi
    else:
        first, last = lo, min(hi, lo + scorer.half_width)
    if last > first:
        scores[first:last] = scorer.part(first, last, lo, hi)


# ---------------------------------------------------------------- methods


@dataclass(frozen=True)
class _Task:
    """One video and the arguments of `parse`, lengths in clips."""

    scorer: BoundaryScorer
    scores: NDArray[np.float64]
    clip_len_s: float
    duration_s: float
    min_len: int
    delta_rel: float
    max_events: int | None
    max_depth: int | None

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
    nodes = recursive_nodes(
        task.scorer,
        task.scores,
        task.min_len,
        relative_threshold(task.scores, task.delta_rel),
        task.max_cuts,
        task.max_depth,
    )
    edges = {node.clip: _edge(task.scorer, node.clip) for node in nodes}
    cuts: dict[int, _Cut] = {}
    for node, parent in sorted(_with_parents(nodes), key=lambda pair: pair[0].depth):
        edge = edges[node.clip]
        if edge not in cuts:
            above = None if parent is None else edges[parent.clip] * task.clip_len_s
            cuts[edge] = _Cut(edge * task.clip_len_s, node.score, node.depth, above)
    return list(cuts.values())


def _with_parents(nodes: Sequence[Node]) -> Iterator[tuple[Node, Node | None]]:
    """Nodes in pre-order, each with the split that its segment came from."""
    path: list[Node] = []
    for node in nodes:
        del path[node.depth :]
        yield node, path[-1] if path else None
        path.append(node)


def _edge(scorer: BoundaryScorer, clip: int) -> int:
    """The clip edge to cut at, `clip` or `clip + 1`, always inside the video.

    A score leaves its own clip out, so a cut between two clips scores the same at both. The clip
    goes to the side that it is more similar to (a tie: it starts the new event).
    """
    features, s, n = scorer.features, scorer.half_width, len(scorer.features)
    if clip == 0:
        return 1
    own = features[clip].astype(np.float64)
    before = _mean_direction(features[max(clip - s, 0) : clip])
    after = _mean_direction(features[clip + 1 : clip + 1 + s])
    return clip + 1 if clip + 1 < n and float(own @ before) > float(own @ after) else clip


def _mean_direction(features: NDArray[Any]) -> NDArray[np.float64]:
    rows = features.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    total: NDArray[np.float64] = (rows / np.where(norms == 0, 1.0, norms)).sum(axis=0)
    return total / max(len(rows), 1)


def oneshot_clips(scores: NDArray[np.float64], resolution: float = 1e-9) -> NDArray[np.int64]:
    """Boundary clips of the one-shot detector of EaTR and LLMEPET (specs §4.1), ends left out.

    A clip counts if its score reaches the mean and both neighbours'; the ends are boundaries by
    decree, so their neighbours never are. Scores up to `resolution` are rounding, not boundaries.
    """
    if len(scores) < 3:
        return np.empty(0, np.int64)
    raised = scores.copy()
    raised[[0, -1]] = np.inf
    inner = raised[1:-1]
    peaks = (inner >= raised[:-2]) & (inner >= raised[2:]) & (inner >= scores.mean())
    return np.flatnonzero(peaks & (inner > resolution)) + 1


def _oneshot(task: _Task) -> list[_Cut]:
    clips = oneshot_clips(task.scores, task.scorer.resolution)
    if task.max_cuts is not None:
        clips = clips[np.argsort(-task.scores[clips], kind="stable")[: task.max_cuts]]
    cuts = {_edge(task.scorer, int(clip)): float(task.scores[clip]) for clip in np.sort(clips)}
    return [_Cut(edge * task.clip_len_s, strength) for edge, strength in cuts.items()]


def _uniform(task: _Task) -> list[_Cut]:
    events = task.max_events or _UNIFORM_EVENTS
    return [_Cut(task.duration_s * i / events) for i in range(1, events)]


METHODS: Mapping[str, Callable[[_Task], list[_Cut]]] = {
    "rtp": _rtp,
    "oneshot": _oneshot,
    "uniform": _uniform,
}
"""Ways to find boundaries, by the name that `parse` and the `events` stage know."""


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
