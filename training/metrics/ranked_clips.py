"""What TVSum's and YouTube Highlights' scores share: a ranking of all clips of a video.

Both are UMT's (https://github.com/TencentARC/UMT, `datasets/tvsum.py` and `datasets/youtube.py`),
which Lighthouse, UniVTG, QD-DETR, CG-DETR and R2-Tuning repeat: the area under the precision-recall
curve by trapezoids, per video and annotator, and its mean for each domain. What is odd in it, and
what mode "strict" does instead:

- scores after the last labelled clip are cut off. strict: refused, they belong to another grid.
- with fewer scores than clips, the ranking holds only the clips that have one, and the others do
  not exist, positive or not. strict: they rank last.
- `torch.argsort` promises no order of equal scores; here they keep the order of the clips. strict:
  the clips that are not positive come first, so that nothing is won by equal scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics.base import Average, Columns, Key, Measured, Number
from training.metrics.comparable import check_finite
from training.metrics.moments import Mode
from training.metrics.ragged import Ragged
from training.predictions import Prediction

__all__ = ["Labels", "by_domain", "ranked_labels", "trapezoid_ap"]

Floats = NDArray[np.float64]

AVERAGE = "AVG"
"""Where the mean of the domains stands; UniVTG's name for it."""


@dataclass(frozen=True)
class Labels:
    """What A annotators said about the clips of Q videos.

    Args:
        ratings: (Q, N, A), 0 after the last clip of a video.
        clips: (Q,) how many clips each video has.
    """

    ratings: Floats
    clips: NDArray[np.int64]

    @classmethod
    def of(cls, annotations: Sequence[Annotation]) -> Labels:
        """The labels of all clips.

        Raises:
            UsageError: a video without labels, or with labels for some of its clips only.
        """
        if not annotations:
            raise UsageError("there are no annotations to score against")
        rows = [_all_clips(each) for each in annotations]
        widths = {len(scores) for row in rows for scores in row}
        if len(widths) > 1:
            raise UsageError(
                f"every clip must be rated by the same number of annotators, found {sorted(widths)}"
            )
        ragged = Ragged.of(rows, (widths.pop(),))
        return cls(ragged.padded(), ragged.counts)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(Q, N) whether the video has this clip."""
        return np.arange(self.ratings.shape[1]) < self.clips[:, None]


def _all_clips(row: Annotation) -> tuple[tuple[float, ...], ...]:
    if not row.saliency or row.clip_ids is None:
        raise UsageError(
            f"query {row.qid}: this metric needs labels of the clips, and the annotations have "
            "none; score with the annotations of a highlight dataset, or with another metric"
        )
    if row.clip_ids != tuple(range(len(row.saliency))):
        raise UsageError(
            f"query {row.qid}: this metric ranks all clips of a video, but only "
            f"{len(row.saliency)} of {max(row.clip_ids) + 1} or more are labelled; use the metric "
            "`mr_hd`, which knows unlabelled clips"
        )
    return row.saliency


def ranked_labels(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    labels: Labels,
    positive: NDArray[np.bool_],
    mode: Mode,
) -> NDArray[np.bool_]:
    """(Q, N, A) labels in the order of the predicted scores, best first; False after the end.

    Args:
        annotations: of the Q videos, for messages.
        predictions: one score per clip, `Prediction.saliency`.
        labels: which clips there are.
        positive: (Q, N, A).
        mode: see the module.

    Raises:
        UsageError: predictions without scores; in "strict" more scores than clips.
    """
    scores = _scores(annotations, predictions, labels.clips, mode)
    width = positive.shape[1]
    grid = np.where(labels.inside, scores.padded(width, -np.inf), -np.inf)
    positive = positive & labels.inside[..., None]
    if mode == "official":
        order = np.argsort(-grid, axis=1, kind="stable")
        exist = np.arange(width) < np.minimum(scores.counts, labels.clips)[:, None]
        return np.asarray(np.take_along_axis(positive, order[..., None], 1) & exist[..., None])
    # by score, then negatives first, then places after the end of the video last
    rank = np.where(labels.inside[..., None], positive, 2)
    order = np.lexsort((rank, np.broadcast_to(-grid[..., None], rank.shape)), axis=1)
    return np.asarray(np.take_along_axis(positive, order, axis=1))


def _scores(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    clips: NDArray[np.int64],
    mode: Mode,
) -> Ragged:
    without = [each.qid for each in predictions if not each.saliency]
    if without:
        raise UsageError(
            f"{len(without)} of {len(predictions)} predictions have no saliency scores (first: "
            f"query {without[0]}); this metric needs one score per labelled clip"
        )
    scores = Ragged.of([each.saliency or () for each in predictions])
    check_finite(scores, predictions, "saliency scores")
    more = np.flatnonzero(scores.counts > clips)
    if len(more) and mode == "strict":
        at = int(more[0])
        raise UsageError(
            f"query {annotations[at].qid}: {scores.counts[at]} scores for {clips[at]} labelled "
            f"clips ({len(more)} queries have too many); give one score per labelled clip. The "
            "official evaluator cuts the rest off (mode official)"
        )
    return scores


def trapezoid_ap(hits: NDArray[np.bool_]) -> Floats:
    """Area under the precision-recall curve by trapezoids; 0 without a hit.

    The curve begins at precision 1. Recall counts the hits of the list given, so a list that was
    cut to its first five is complete with the positives among those. Added up in the order of the
    reference: equal to the last bit.

    Args:
        hits: (Q, K, A) whether the clip at each place is positive, best place first.

    Returns:
        (Q, A) in [0, 1].
    """
    found = hits.cumsum(axis=1, dtype=np.float64)
    recall = found / np.maximum(found[:, -1:], 1.0)
    precision = found / np.arange(1.0, hits.shape[1] + 1)[:, None]
    before = np.concatenate([np.ones_like(precision[:, :1]), precision[:, :-1]], axis=1)
    steps = np.diff(recall, axis=1, prepend=0.0) * (before + precision) / 2
    return np.asarray(steps.cumsum(axis=1)[:, -1])


def by_domain(
    annotations: Sequence[Annotation], values: Floats, counted: NDArray[np.bool_]
) -> Measured:
    """Means of the videos of each domain, and the mean of the domains.

    Args:
        annotations: the Q videos; the domain of each is its field "domain". Without such a field
            there is only the mean of all videos.
        values: (Q, 1) or (Q, 1, A).
        counted: (Q,) videos that the means are over.

    Returns:
        `{"brief": {"mAP": …, "BK-mAP": …}, "BK": {"mAP": …}, …, "AVG": {"mAP": …}}`; shares with
        five decimals. A file of one domain has the `{"brief": {"mAP": …}}` of Lighthouse.

    Raises:
        UsageError: some videos have a domain and others not.
    """
    domains = _domains(annotations)
    mean: Key = (AVERAGE, "mAP")
    if domains is None:
        columns: tuple[Columns, ...] = (Columns((mean,), values, counted),)
        return Measured(annotations, columns, (), {"mAP": mean}, "mAP", Number(1.0, 5))
    names = sorted(set(domains))
    inside = {name: np.asarray([each == name for each in domains]) for name in names}
    keys: dict[str, Key] = {name: (name, "mAP") for name in names}
    columns = tuple(Columns((keys[name],), values, counted & inside[name]) for name in names)
    brief = {"mAP": mean} | {f"{name}-mAP": keys[name] for name in names}
    averages = (Average(mean, tuple(keys.values())),)
    return Measured(annotations, columns, averages, brief, "mAP", Number(1.0, 5))


def _domains(annotations: Sequence[Annotation]) -> list[str] | None:
    domains = [each.extra.get("domain") for each in annotations]
    if all(each is None for each in domains):
        return None
    for row, domain in zip(annotations, domains, strict=True):
        if not isinstance(domain, str) or domain in ("", "brief", AVERAGE):
            raise UsageError(
                f"query {row.qid}: 'domain' is {domain!r}; this metric is reported per domain, so "
                f"every video needs the name of one, other than 'brief' and '{AVERAGE}'"
            )
    return [str(each) for each in domains]
