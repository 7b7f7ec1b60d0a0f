"""Moment retrieval and highlight detection as moment_detr's `standalone_eval` measures them.

Moments: mAP at IoU 0.5, 0.55 .. 0.95, R1 and R5 at IoU 0.3, 0.35 .. 0.95 and mIoU, for all queries
and for those with moments of a length range. Highlights: mAP and Hit@1 where a clip is positive if
an annotator rated it at least Fair (2), Good (3) or VeryGood (4). Lei et al., "QVHighlights:
Detecting Moments and Highlights in Videos via Natural Language Queries", 2021; definitions in
docs/metrics.md, quirks in `moments` and `highlights`.

One file has all keys of this family: those of moment_detr, and what CG-DETR and LLMEPET (R1 from
0.3 on, mIoU) and UniVTG (R5, mIoU by range) add. Evaluators that call something else by the same
key (other length ranges) are registered under names of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics.base import METRICS, Average, Columns, Key, Measured
from training.metrics.comparable import check_finite, check_have_moments
from training.metrics.highlights import highlight_ap, hit_at_one, on_grid, top_clip
from training.metrics.moments import Mode, Ranked, average_precision, listed_iou, ranked
from training.metrics.ragged import Ragged
from training.predictions import Prediction

__all__ = ["MomentsAndHighlights"]

Range = tuple[float, float] | None
"""Moments whose length is in (low, high] seconds; None: all."""

RANGES_S: Mapping[str, Range] = {
    "full": None,
    "long": (30.0, 150.0),
    "middle": (10.0, 30.0),
    "short": (0.0, 10.0),
}

RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}
"""Lowest rating that makes a clip positive."""

AT = ("0.3", "0.5", "0.7", "0.9")
"""Thresholds of recall in the summary."""

UNIVTG_MARK = "-key"
"""At the end of UniVTG's names of numbers that it selects by."""

MAX_CLIPS = 1_000_000
"""Of one video: 23 days of 2 s. A file that says more means another unit."""

CELLS = 1 << 19
"""Clips, with padding, that are ranked at once; bounds the memory."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Parts:
    """What both sides have. (The reference looks at the fields of the first prediction.)

    Args:
        moments, highlights: whether they are measured; moments where there is nothing at all, too.
        notes: what is not measured although one side has it.
    """

    moments: bool
    highlights: bool
    notes: tuple[str, ...]

    @classmethod
    def of(cls, annotations: Sequence[Annotation], predictions: Sequence[Prediction]) -> _Parts:
        """UsageError where only some rows of a side have saliency."""
        rated = any(each.saliency is not None for each in annotations)
        scored = any(each.saliency is not None for each in predictions)
        if highlights := rated and scored:
            _check_all_have_saliency("annotations", annotations)
            _check_all_have_saliency("predictions", predictions)
        known = any(each.windows is not None for each in annotations)
        found = any(each.windows for each in predictions)
        moments = not highlights or (known and found)
        told = {
            "highlights": "" if highlights else _lacking(rated, scored, "saliency scores"),
            "moments": "" if moments else _lacking(known, found, "moments"),
        }
        notes = (f"{part} are not scored: {why}" for part, why in told.items() if why)
        return cls(moments, highlights, tuple(notes))


def _lacking(in_annotations: bool, in_predictions: bool, what: str) -> str:
    """Which side lacks something; "" if both do, and nobody waits for it."""
    if in_annotations == in_predictions:
        return ""
    return f"the {'predictions' if in_annotations else 'annotations'} have no {what}"


def _check_all_have_saliency(side: str, rows: Sequence[Annotation] | Sequence[Prediction]) -> None:
    without = [each.qid for each in rows if each.saliency is None]
    if without:
        raise UsageError(
            f"{len(without)} of {len(rows)} {side} have no saliency scores (first: query "
            f"{without[0]}); give them for all queries or for none"
        )


@dataclass(frozen=True)
class MomentsAndHighlights:
    """The evaluator.

    Args:
        ranges_s: length ranges by name, "full" among them.
        all_if_empty: whether a range that no query has a moment in is measured on all queries, as
            UniVTG does; otherwise its numbers are None.
        suffix: UniVTG's mark of the numbers that it selects by, at the end of their brief names.
        also: the same mark where it makes a second name, beside the one without.
    """

    ranges_s: Mapping[str, Range]
    all_if_empty: bool = False
    suffix: str = ""
    also: str = ""

    def __call__(
        self,
        annotations: Sequence[Annotation],
        predictions: Sequence[Prediction],
        *,
        clip_len_s: float,
        mode: Mode = "official",
    ) -> Measured:
        """See `Metric`. Keys of highlights are absent where one side has no saliency scores; those
        of moments where there are highlights, and one side has no moments. `notes` say so.
        """
        parts = _Parts.of(annotations, predictions)
        columns: tuple[Columns, ...] = ()
        brief: dict[str, Key] = {}
        if parts.highlights:
            columns = _highlights(annotations, predictions, clip_len_s, mode)
            brief = self._highlights_brief()
        if parts.moments:
            columns += tuple(self._moments(annotations, predictions, mode))
            brief = self._moments_brief() | brief
        return Measured(
            annotations,
            columns,
            tuple(_average(name) for name in self.ranges_s) if parts.moments else (),
            brief,
            ("MR-full-mAP" if parts.moments else "HL-min-VeryGood-mAP") + self.suffix,
            aliases={name + self.also: name for name in brief if self.also and _selects(name)},
            notes=parts.notes,
        )

    def _moments(
        self, annotations: Sequence[Annotation], predictions: Sequence[Prediction], mode: Mode
    ) -> Iterator[Columns]:
        truth, predicted = _checked_moments(annotations, predictions, mode)
        best_first = ranked(predicted, mode)
        length = truth.flat[:, 1] - truth.flat[:, 0]
        for name, bounds in self.ranges_s.items():
            inside = truth
            if bounds is not None:
                inside = truth.where((length > bounds[0]) & (length <= bounds[1]))
            if self.all_if_empty and not len(inside.flat):
                inside = truth
            yield from _range_columns(name, best_first, inside, mode)

    def _moments_brief(self) -> dict[str, Key]:
        """Names of the summary, in the order in which they are shown."""
        full: dict[str, Key] = {f"MR-full-R1@{at}": ("full", "MR-R1", at) for at in AT}
        full |= {f"MR-full-R5@{at}": ("full", "MR-R5", at) for at in AT}
        full |= {"MR-full-mIoU": ("full", "MR-mIoU")}
        full |= {"MR-full-mAP": ("full", "MR-mAP", "average")}
        full |= {f"MR-full-mAP@{at}": ("full", "MR-mAP", at) for at in ("0.5", "0.75")}
        brief = {name + self.suffix: key for name, key in full.items()}
        others = [name for name in self.ranges_s if name != "full"]
        brief |= {f"MR-{name}-mAP": (name, "MR-mAP", "average") for name in others}
        return brief | {f"MR-{name}-mIoU": (name, "MR-mIoU") for name in others}

    def _highlights_brief(self) -> dict[str, Key]:
        return {
            f"HL-min-{rating}-{short}{self.suffix if rating == 'VeryGood' else ''}": (
                f"HL-min-{rating}",
                f"HL-{short}",
            )
            for rating in RATINGS
            for short in ("mAP", "Hit1")
        }


METRICS.register("mr_hd")(MomentsAndHighlights(RANGES_S, also=UNIVTG_MARK))
# eval/eval.py of showlab/UniVTG: no upper end, and -key at what is selected by
METRICS.register("mr_hd_univtg")(
    MomentsAndHighlights(
        {**RANGES_S, "long": (30.0, math.inf)}, all_if_empty=True, suffix=UNIVTG_MARK
    )
)
# training/standalone_eval/eval.py of line/lighthouse: moments of length 0 are left out
METRICS.register("mr_hd_lighthouse")(MomentsAndHighlights({"full": (0.0, 1500.0)}))
# standalone_eval/eval.py of jinhyunj/EaTR where the file name says charades
METRICS.register("mr_hd_eatr_charades")(
    MomentsAndHighlights({"full": (0.0, 30.0), "middle": (10.0, 30.0), "short": (0.0, 10.0)})
)
# standalone_eval/eval.py of Pilhyeon/BAM-DETR for ActivityNet Captions
METRICS.register("mr_hd_bam_detr_activitynet")(
    MomentsAndHighlights(
        {
            "full": (0.0, 1000.0),
            "long": (50.0, 1000.0),
            "middle": (20.0, 50.0),
            "short": (0.0, 20.0),
        }
    )
)


def _selects(name: str) -> bool:
    """Whether UniVTG marks this number of the summary."""
    return name.startswith(("MR-full-", "HL-min-VeryGood-"))


def _range_columns(
    name: str, predicted: Ranked, truth: Ragged, mode: Mode
) -> tuple[Columns, Columns, Columns]:
    some = truth.counts > 0
    predicted, truth = predicted.rows(some), truth.rows(some)
    at, steps = _steps(0.5)
    precision, counted = average_precision(predicted, truth, steps, mode)
    found = some.copy()
    found[some] = counted
    one, five = (listed_iou(predicted, truth, first, mode) for first in (1, 5))
    low_at, low_steps = _steps(0.3)
    recall = np.concatenate([each[:, None] >= low_steps for each in (one, five)], axis=1)
    keys = [(name, metric, step) for metric in ("MR-R1", "MR-R5") for step in low_at]
    return (
        Columns(tuple((name, "MR-mAP", step) for step in at), _spread(precision, some), found),
        Columns(tuple(keys), _spread(recall, some), some),
        # the reference averages one row of numbers, which numpy adds up in another order
        Columns(((name, "MR-mIoU"),), _spread(one[:, None, None], some), some),
    )


def _average(name: str) -> Average:
    return Average(
        (name, "MR-mAP", "average"), tuple((name, "MR-mAP", step) for step in _steps(0.5)[0])
    )


def _spread(values: NDArray[np.generic], rows: NDArray[np.bool_]) -> Floats:
    """(Q, ...) with `values` in the rows that are marked."""
    out = np.zeros((len(rows), *values.shape[1:]))
    out[rows] = values
    return out


def _highlights(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    clip_len_s: float,
    mode: Mode,
) -> tuple[Columns, Columns]:
    clips = _clips(annotations, clip_len_s)
    annotators = _annotators(annotations)
    given = Ragged.of([each.saliency or () for each in predictions])
    check_finite(given, predictions, "saliency scores")
    _check_scored(given, predictions, mode)
    precisions, hits = [], []
    rows = max(1, CELLS // int(clips.max()))
    for start in range(0, len(annotations), rows):
        part = slice(start, start + rows)
        inside = np.zeros(len(annotations), bool)
        inside[part] = True
        ratings = _ratings(annotations[part], clips[part], annotators)
        precision, hit = _ranking(given.rows(inside), clips[part], ratings, mode)
        precisions.append(precision)
        hits.append(hit)
    everywhere = np.ones(len(annotations), bool)
    names = [f"HL-min-{name}" for name in RATINGS]
    return (
        Columns(tuple((name, "HL-mAP") for name in names), np.concatenate(precisions), everywhere),
        Columns(tuple((name, "HL-Hit1") for name in names), np.concatenate(hits), everywhere),
    )


def _ranking(
    given: Ragged, clips: NDArray[np.int64], ratings: Floats, mode: Mode
) -> tuple[Floats, Floats]:
    """(Q, R, A) AP by rating and annotator, and (Q, R) Hit@1 by rating."""
    positive = np.stack([ratings >= lowest for lowest in RATINGS.values()], axis=2)
    queries, width, levels, annotators = positive.shape
    grid = on_grid(given, clips, mode)
    precision = highlight_ap(grid, clips, positive.reshape(queries, width, -1))
    top = top_clip(given, clips, mode)
    hits = [hit_at_one(top, positive[:, :, level]) for level in range(levels)]
    return precision.reshape(queries, levels, annotators), np.stack(hits, axis=1).astype(float)


def _clips(annotations: Sequence[Annotation], clip_len_s: float) -> NDArray[np.int64]:
    """(Q,) clips of each video: `int(duration / clip_len)`, as the reference counts them."""
    clips = [int((each.duration_s or 0.0) / clip_len_s) for each in annotations]
    for each, count in zip(annotations, clips, strict=True):
        if not 1 <= count <= MAX_CLIPS:
            raise UsageError(
                f"query {each.qid}: the highlight metrics need a duration of {clip_len_s:g} to "
                f"{MAX_CLIPS * clip_len_s:,.0f} seconds, the annotation says {each.duration_s}"
            )
    return np.asarray(clips, np.int64)


def _annotators(annotations: Sequence[Annotation]) -> int:
    found = {len(scores) for each in annotations for scores in each.saliency or ()} or {1}
    if len(found) > 1:
        raise UsageError(
            f"every clip must be rated by the same number of annotators, found {sorted(found)}"
        )
    return found.pop()


def _ratings(
    annotations: Sequence[Annotation], clips: NDArray[np.int64], annotators: int
) -> Floats:
    """(Q, N, A) rating of each clip by each annotator, 0 where not annotated."""
    ids = Ragged.of([each.clip_ids or () for each in annotations])
    place = ids.flat.astype(np.int64)
    outside = (place < 0) | (place >= clips[ids.row])
    if outside.any():
        row = int(ids.row[outside][0])
        raise UsageError(
            f"query {annotations[row].qid}: clip {place[outside][0]} is rated, but a video of "
            f"{annotations[row].duration_s} seconds has clips 0 to {clips[row] - 1}"
        )
    out = np.zeros((len(annotations), int(clips.max()), annotators))
    rated = Ragged.of([each.saliency or () for each in annotations], (annotators,))
    out[ids.row, place] = rated.flat
    return out


def _checked_moments(
    annotations: Sequence[Annotation], predictions: Sequence[Prediction], mode: Mode
) -> tuple[Ragged, Ragged]:
    """True and predicted windows; UsageError where there are none to compare."""
    check_have_moments(annotations)
    silent = [each.qid for each in predictions if not each.windows]
    if silent and mode == "official":
        raise UsageError(
            f"{len(silent)} queries have no predicted window (first: {silent[0]}); the official "
            "evaluator stops there; mode strict counts them as misses"
        )
    truth = Ragged.of([each.windows or () for each in annotations], (2,))
    predicted = Ragged.of([each.windows for each in predictions], (3,))
    check_finite(predicted, predictions, "windows")
    return truth, predicted


def _check_scored(given: Ragged, predictions: Sequence[Prediction], mode: Mode) -> None:
    silent = np.flatnonzero(given.counts == 0)
    if len(silent) and mode == "official":
        raise UsageError(
            f"{len(silent)} queries have an empty list of saliency scores (first: "
            f"{predictions[silent[0]].qid}); the official evaluator stops there; mode strict "
            "counts them as misses"
        )


def _steps(lowest: float) -> tuple[list[str], Floats]:
    """IoU thresholds from `lowest` to 0.95 in steps of 0.05: names ("0.5", "0.55", ...), values."""
    names = [str(step / 100) for step in range(round(lowest * 100), 96, 5)]
    return names, np.asarray([float(name) for name in names])
