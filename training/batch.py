"""From samples to batches: padding, masks and targets.

What is drawn at random for a query depends only on (seed, epoch, query id), never on the order of
the queries, the number of workers or what was drawn before: a resumed run draws the same.
Arithmetic of the targets: specs/retrieval_models.md §3.0, specs/peers_formats_metrics.md §3.3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.annotations import Ratings
from data.annotations.types import Annotation
from data.dataset import Sample, Together
from data.grid import Grid
from models.retrieval.parts.losses import MAX_LABEL
from models.retrieval.types import Batch, Side, Targets
from training.labelled_clips import on_grid
from training.task import MomentBatch, QueryInfo

__all__ = [
    "NARRATIVE",
    "Draw",
    "QueryTruth",
    "collate",
    "numbers_of",
    "other_texts",
    "pad",
    "query_info",
    "side_streams",
    "targets_of",
    "truth_of",
]

NARRATIVE = "narrative"
"""Name of the narrative among the side streams of a batch."""

SUMS = Ratings()
"""Labels are sums over the annotators, as in QVHighlights."""


@dataclass(frozen=True)
class Draw:
    """What the random choices of an epoch depend on.

    Args:
        seed: of the run.
        epoch: counts from 0.
        max_windows: at most so many moments of a query are targets; more are drawn from.
    """

    seed: int = 0
    epoch: int = 0
    max_windows: int = 5

    def numbers(self, qid: int | str) -> list[int]:
        """Five random integers below 2**64 for a query."""
        text = f"{self.seed}|{self.epoch}|{type(qid).__name__}|{qid}"
        digest = hashlib.blake2b(text.encode(), digest_size=40).digest()
        return [int.from_bytes(digest[i : i + 8], "little") for i in range(0, 40, 8)]


@dataclass(frozen=True)
class QueryTruth:
    """Ground truth of one query on its clips, before anything is drawn.

    Args:
        spans: (G, 2) float32 moments as (centre, width) in [0, 1] of the grid.
        saliency: (L,) float32 label, 0 where not annotated; without labels 1 inside of a moment.
        in_moment: (L,) bool, whether the clip's centre lies in a moment.
        hard_pair: (most, least) salient clip inside of the moments; None without saliency labels,
            and where all labels inside are equal, because then no clip should outrank another
            (the public loader pairs such clips by position).
        labelled: (L,) bool, clips that have a label, where the annotation has labels and says
            nothing about moments (highlight detection only); None where it says which they are.
    """

    spans: NDArray[np.float32]
    saliency: NDArray[np.float32]
    in_moment: NDArray[np.bool_]
    hard_pair: tuple[int, int] | None
    labelled: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls, annotation: Annotation, clips: int, clip_len_s: float, ratings: Ratings = SUMS
    ) -> QueryTruth | None:
        """Ground truth on the first `clips` clips; None if the annotation has none.

        Args:
            annotation: the query.
            clips, clip_len_s: of the grid.
            ratings: how the scores of annotators become labels.
        """
        found = _labels(annotation, clips, clip_len_s, ratings)
        saliency, labelled = found or (None, None)
        if annotation.windows is None and saliency is None:
            return None
        total_s = clips * clip_len_s
        edges = np.asarray(annotation.windows or (), np.float64).reshape(-1, 2).clip(0.0, total_s)
        edges = edges[edges[:, 1] > edges[:, 0]]
        in_moment = _clips_inside(edges, clips, clip_len_s)
        spans = np.stack([edges.mean(axis=1), edges[:, 1] - edges[:, 0]], axis=1) / total_s
        return cls(
            spans=spans.astype(np.float32),
            saliency=in_moment.astype(np.float32) if saliency is None else saliency,
            in_moment=in_moment,
            hard_pair=None if saliency is None else _hard_pair(saliency, in_moment),
            labelled=labelled if annotation.windows is None else None,
        )

    @property
    def has_moments(self) -> bool:
        """Whether it is known which moments answer the query."""
        return self.labelled is None

    @property
    def teaches(self) -> bool:
        """Whether there is anything to find: a moment, or rated clips of different labels."""
        if self.labelled is None:
            return len(self.spans) > 0
        labels = self.saliency[self.labelled]
        return len(labels) > 0 and bool(labels.max() > labels.min())

    def chosen_spans(self, draw: Draw, qid: int | str) -> NDArray[np.float32]:
        """(G, 2) with G at most `max_windows`, in their order."""
        if len(self.spans) <= draw.max_windows:
            return self.spans
        rng = np.random.default_rng(draw.numbers(qid)[4])
        return self.spans[np.sort(rng.permutation(len(self.spans))[: draw.max_windows])]

    def pairs(self, draw: Draw, qid: int | str) -> list[tuple[int, int] | None]:
        """Two (positive, negative) pairs of clips for the margin loss, None where there is none.

        With saliency labels the hard pair and a random (inside, outside) one, else two random.
        Without moments one of the clips with the highest label against one with the lowest, as the
        public loaders of TVSum and YouTube Highlights pair them; they always take the same two.
        """
        if self.labelled is not None:
            return [_extremes(self.saliency, self.labelled, draw.numbers(qid)), None]
        inside, outside = np.flatnonzero(self.in_moment), np.flatnonzero(~self.in_moment)
        if not len(inside) or not len(outside):
            return [self.hard_pair, None]
        a, b, c, d, _ = draw.numbers(qid)
        easy = [
            (int(inside[i % len(inside)]), int(outside[j % len(outside)]))
            for i, j in ((a, b), (c, d))
        ]
        return [self.hard_pair or easy[1], easy[0]]


def collate(
    together: Together,
    draw: Draw | None,
    truths: Sequence[QueryTruth | None] | None = None,
    ratings: Ratings = SUMS,
) -> MomentBatch:
    """One batch of samples.

    Args:
        together: with the same streams, padded to the longest.
        draw: how targets are drawn; None leaves them out.
        truths: of the samples, if somebody made them already.
        ratings: how the scores of annotators become labels, if nobody did.
    """
    samples = together.samples
    if draw is not None and truths is None:
        truths = [truth_of(each, ratings) for each in samples]
    infos = tuple(query_info(each.annotation, each.grid) for each in samples)
    qids = [each.qid for each in infos]
    side, events, event_mask = side_streams(samples)
    tensors = Batch(
        video=torch.from_numpy(together.video),
        video_mask=_mask([len(each.video) for each in samples]),
        text=torch.from_numpy(together.text),
        text_mask=_mask([len(each.text) for each in samples]),
        side=side,
        texts=other_texts([each.texts for each in samples]),
        events=events,
        event_mask=event_mask,
        video_ids=numbers_of([each.video_id for each in infos]),
        sample_ids=numbers_of([str(each) for each in qids]),
        targets=targets_of(list(zip(qids, truths, strict=True)), draw) if draw and truths else None,
    )
    return MomentBatch(tensors, infos)


def truth_of(sample: Sample, ratings: Ratings = SUMS) -> QueryTruth | None:
    """Ground truth of a sample; None if it has none."""
    return QueryTruth.of(sample.annotation, len(sample.video), sample.grid.clip_len_s, ratings)


def side_streams(
    samples: Sequence[Sample],
) -> tuple[dict[str, Side], Tensor | None, Tensor | None]:
    """Padded side streams by name, events (B, E, 3) and their mask (B, E)."""
    side = {}
    if samples[0].narrative is not None:
        x, _ = pad([_given(each.narrative) for each in samples])
        mask, _ = pad([_given(each.narrative_mask) for each in samples])
        side[NARRATIVE] = Side(x, mask)
    if samples[0].events is None:
        return side, None, None
    return side, *pad([_given(each.events) for each in samples])


def other_texts(rows: Sequence[Mapping[str, NDArray[np.float32]]]) -> dict[str, Side]:
    """Queries in their further embeddings (`Sample.texts`), padded, by name."""
    return {name: Side(*pad([each[name] for each in rows])) for name in rows[0]}


def targets_of(truths: Sequence[tuple[int | str, QueryTruth | None]], draw: Draw) -> Targets | None:
    """Padded targets of (query id, ground truth) rows; None if any row has no ground truth."""
    known = [(qid, truth) for qid, truth in truths if truth is not None]
    if len(known) < len(truths):
        return None
    spans, span_mask = pad([truth.chosen_spans(draw, qid) for qid, truth in known], at_least=1)
    pairs = [truth.pairs(draw, qid) for qid, truth in known]
    indices = torch.tensor([[pair or (0, 0) for pair in row] for row in pairs])
    return Targets(
        spans=spans,
        span_mask=span_mask,
        saliency=pad([truth.saliency for _, truth in known])[0],
        positive=indices[..., 0],
        negative=indices[..., 1],
        pair_mask=torch.tensor([[pair is not None for pair in row] for row in pairs]),
        in_moment=pad([truth.in_moment for _, truth in known])[0],
        has_moments=_known_moments([truth for _, truth in known]),
    )


def pad(rows: Sequence[NDArray[Any]], *, at_least: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor, zeros (False) after the end of each.

    Args:
        rows: B arrays of shape (n, ...).
        at_least: the padded length is not below this.

    Returns:
        (B, N, ...) and the mask (B, N).
    """
    lengths = [len(row) for row in rows]
    longest = max(*lengths, at_least)
    out = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(out), _mask(lengths, at_least)


def query_info(query: Annotation, grid: Grid) -> QueryInfo:
    """The facts of a query that a prediction must carry."""
    return QueryInfo(query.qid, query.query, query.video_id, grid, _scored_spans(query, grid))


def _scored_spans(query: Annotation, grid: Grid) -> tuple[tuple[float, float], ...] | None:
    """Spans of the clips that the dataset scores, None where those are all of the grid.

    Where every clip of a video was rated, and the grid has one more because the video lasts a bit
    longer than its rated clips (133 s of TVSum: 66 clips, the grid has 67), there are no more.
    """
    if query.windows is not None or query.clip_ids is None or query.duration_s is None:
        return query.clip_spans_s
    count, length_s = len(query.clip_ids), grid.clip_len_s
    all_rated = query.clip_ids == tuple(range(count)) and count == round(
        query.duration_s / length_s
    )
    if query.clip_spans_s is not None or not all_rated or count >= grid.n:
        return query.clip_spans_s
    return tuple((i * length_s, (i + 1) * length_s) for i in range(count))


def numbers_of(ids: Sequence[str]) -> Tensor:
    """(B,) int64, equal for equal ids in every batch and run."""
    digests = [hashlib.blake2b(each.encode(), digest_size=8).digest() for each in ids]
    return torch.tensor([int.from_bytes(each, "little") >> 1 for each in digests])


def _mask(lengths: Sequence[int], at_least: int = 0) -> Tensor:
    """(B, N), True up to each length."""
    steps = np.arange(max(*lengths, at_least))
    return torch.from_numpy(steps < np.asarray(lengths)[:, None])


def _given(array: NDArray[Any] | None) -> NDArray[Any]:
    if array is None:
        raise ValueError("a stream is there for some samples of a batch and not for others")
    return array


def _clips_inside(edges: NDArray[np.float64], clips: int, clip_len_s: float) -> NDArray[np.bool_]:
    """(L,) whether a clip's centre is in a moment; a moment between centres takes one clip."""
    centres = (np.arange(clips) + 0.5) * clip_len_s
    inside = np.zeros(clips, bool)
    for start, end in edges:
        covered = (centres >= start) & (centres < end)
        if not covered.any():
            covered[min(int((start + end) / 2 / clip_len_s), clips - 1)] = True
        inside |= covered
    return inside


def _labels(
    annotation: Annotation, clips: int, clip_len_s: float, ratings: Ratings
) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
    """(L,) label of each clip and (L,) whether it has one; None without saliency."""
    if annotation.saliency is None or annotation.clip_ids is None:
        return None
    labels = [_label(scores, ratings) for scores in annotation.saliency]
    if annotation.clip_spans_s is not None:
        values = np.asarray(labels, np.float64)
        found, labelled = on_grid(values, annotation.clip_spans_s, clips, clip_len_s)
        return found.astype(np.float32), labelled
    out, labelled = np.zeros(clips, np.float32), np.zeros(clips, bool)
    for clip, label in zip(annotation.clip_ids, labels, strict=True):
        if 0 <= clip < clips:
            out[clip], labelled[clip] = label, True
    return out, labelled


def _label(scores: Sequence[float], ratings: Ratings) -> float:
    total = sum(scores) - ratings.lowest * len(scores)
    return total if ratings.full is None else total * MAX_LABEL / ratings.full


def _known_moments(truths: Sequence[QueryTruth]) -> Tensor | None:
    """(B,) bool; None if it is true of all."""
    known = [truth.has_moments for truth in truths]
    return None if all(known) else torch.tensor(known)


def _extremes(
    saliency: NDArray[np.float32], labelled: NDArray[np.bool_], numbers: Sequence[int]
) -> tuple[int, int] | None:
    """One of the most and one of the least salient clips; None if all labels are equal."""
    places = np.flatnonzero(labelled)
    labels = saliency[places]
    if not len(places) or labels.max() == labels.min():
        return None
    high, low = places[labels == labels.max()], places[labels == labels.min()]
    return int(high[numbers[0] % len(high)]), int(low[numbers[1] % len(low)])


def _hard_pair(
    saliency: NDArray[np.float32], in_moment: NDArray[np.bool_]
) -> tuple[int, int] | None:
    inside = np.flatnonzero(in_moment)
    if not len(inside):
        return None
    labels = saliency[inside]
    if labels.max() == labels.min():
        return None
    return int(inside[labels.argmax()]), int(inside[labels.argmin()])
