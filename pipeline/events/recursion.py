"""UBoCo's recursive parsing at test time (specs/llmepet_and_pseudo_events.md §4.2).

Defined to the letter by the golden file `event_recursion.json`: split a segment at its best
score, go on in both parts, stop where the best score does not stand out. A split changes only the
scores of the clips within one half width of it: only those are computed again, and no segment is
read again as a whole where that would cost: time grows with the number of clips and of splits, not
with their product.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.events.kernel import Scorer, each_of, score_parts
from pipeline.events.ranges import Ranges

__all__ = ["Node", "recursive_nodes", "relative_threshold", "with_parents"]

_SUM_ERROR = 1e-9
"""Part of a threshold by which a rise may miss it: the same mean, summed in another order."""

_READ_PER_SEGMENT = 256
"""Values that can be read in bulk in less time than one segment takes by itself."""


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


def recursive_nodes(
    scorer: Scorer,
    scores: NDArray[np.float64],
    min_len: int,
    threshold: float,
    max_splits: int | None = None,
    max_depth: int | None = None,
) -> list[Node]:
    """All splits of the recursion, in pre-order (a split before those of its two parts).

    All segments of a depth are looked at together; the order of work does not change the result.

    Args:
        scorer: rescores the clips next to a new edge.
        scores: scores of the whole sequence, shape (L,); not changed.
        min_len: segments of fewer clips are left alone.
        threshold: a segment is split if its best score exceeds its mean by this much.
        max_splits: keep so many, in the order of their scores, a split never before the one that
            made its segment; None is no limit.
        max_depth: splits on one path from the root; None is no limit.
    """
    rise = max(threshold * (1 - _SUM_ERROR), np.nextafter(scorer.resolution, 1))
    ranges, nodes = Ranges(scores), list[Node]()
    segments, depth = [(0, len(scores))], 0
    while segments and (max_depth is None or depth < max_depth):
        segments = [each for each in segments if each[1] - each[0] >= max(min_len, 1)]
        # Many are cheaper together, though that reads all of them.
        together = len(segments) >= max(len(scores) / _READ_PER_SEGMENT, 8)
        split = _split_together if together else _split_each
        found = split(scorer, ranges, segments, depth, rise)
        nodes += found
        parts = (((node.lo, node.clip), (node.clip + 1, node.hi)) for node in found)
        segments = [part for pair in parts for part in pair]
        depth += 1
    if max_splits is not None:
        nodes = _strongest(nodes, max_splits)
    return sorted(nodes, key=lambda node: (node.lo, -node.hi))


def relative_threshold(scores: NDArray[np.float64], delta_rel: float) -> float:
    """`delta_rel` times how much the best score of the whole sequence exceeds its mean."""
    return delta_rel * float(scores.max() - scores.mean())


def with_parents(nodes: Sequence[Node]) -> Iterator[tuple[Node, Node | None]]:
    """Nodes in pre-order, each with the split that its segment came from."""
    path: list[Node] = []
    for node in nodes:
        del path[node.depth :]
        yield node, path[-1] if path else None
        path.append(node)


def _split_each(
    scorer: Scorer, ranges: Ranges, segments: Sequence[tuple[int, int]], depth: int, rise: float
) -> list[Node]:
    """Splits of the segments that are to be split; the scores next to the new edges are renewed."""
    nodes: list[Node] = []
    s = scorer.half_width
    for lo, hi in segments:
        clip, mean = ranges.peak(lo, hi), ranges.mean(lo, hi)
        score = float(ranges.values[clip])
        if score - mean >= rise:
            nodes.append(Node(lo, hi, clip, score, mean, depth))
            first, last = max(lo, clip - s), min(hi, clip + 1 + s)
            ranges.replace(first, scorer.part(first, clip, lo, clip))
            ranges.replace(clip + 1, scorer.part(clip + 1, last, clip + 1, hi))
    return nodes


def _split_together(
    scorer: Scorer, ranges: Ranges, segments: Sequence[tuple[int, int]], depth: int, rise: float
) -> list[Node]:
    """As `_split_each`, all at once."""
    lo, hi = np.array(segments).T
    clips, means = ranges.peaks(lo, hi)
    tops = ranges.values[clips]
    split = tops - means >= rise
    lo, hi, clips = lo[split], hi[split], clips[split]
    s = scorer.half_width
    first = np.concatenate([np.maximum(lo, clips - s), clips + 1])
    last = np.concatenate([clips, np.minimum(hi, clips + 1 + s)])
    lows, highs = np.concatenate([lo, clips + 1]), np.concatenate([clips, hi])
    scores = score_parts(scorer, first, last, lows, highs)
    ranges.replace_at(each_of(first, last), scores)
    columns = (lo, hi, clips, tops[split], means[split])
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [Node(lo, hi, clip, top, mean, depth) for lo, hi, clip, top, mean in rows]


def _strongest(nodes: Sequence[Node], most: int) -> list[Node]:
    """So many splits, each time that of the best score whose segment exists by then."""
    children: dict[Node | None, list[Node]] = {}
    in_order = sorted(nodes, key=lambda node: (node.lo, -node.hi))
    for node, parent in with_parents(in_order):
        children.setdefault(parent, []).append(node)
    waiting = [(-node.score, node.lo, node) for node in children.get(None, [])]
    kept: list[Node] = []
    while waiting and len(kept) < most:
        node = heapq.heappop(waiting)[2]
        kept.append(node)
        for child in children.get(node, []):
            heapq.heappush(waiting, (-child.score, child.lo, child))
    return kept
