"""The metrics of QVHighlights, equal to moment_detr's `standalone_eval` on every key.

Moment retrieval: mAP and R1 at IoU 0.5, 0.55 .. 0.95, for all queries and for those with moments
of a length range. Highlight detection: mAP and Hit@1 where a clip is positive if an annotator
rated it at least Fair (2), Good (3) or VeryGood (4). Lei et al., "QVHighlights: Detecting Moments
and Highlights in Videos via Natural Language Queries", 2021; definitions in
specs/peers_formats_metrics.md §3.6, quirks in `moments` and `highlights`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.errors import UsageError
from training.metrics.base import METRICS, Scores
from training.metrics.highlights import highlight_ap, hit_at_one, on_grid, top_clip
from training.metrics.moments import Mode, Ranked, average_precision, first_window_iou, ranked
from training.metrics.ragged import Ragged
from training.task import Prediction

__all__ = ["qvhighlights"]

RANGES_S = {"full": None, "long": (30.0, 150.0), "middle": (10.0, 30.0), "short": (0.0, 10.0)}
"""Moments whose length is in (low, high] seconds; full: all."""

RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}
"""Lowest rating that makes a clip positive."""

# CG-DETR and LLMEPET report R1 from IoU 0.3 on; moment_detr from 0.5
EXTENDED_FROM, OFFICIAL_FROM = 0.3, 0.5

Floats = NDArray[np.float64]


@METRICS.register("custom")
@METRICS.register("qvhighlights")
@METRICS.register("synthetic")
def qvhighlights(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    *,
    clip_len_s: float = 2.0,
    mode: Mode = "official",
    extended: bool = False,
) -> Scores:
    """Official metrics under their official names; see `Metric` for the arguments.

    Returns:
        `{"brief": {...}, "HL-min-Fair": {...}, "full": {"MR-mAP": {...}, "MR-R1": {...}}, ...}`.
        Percent with two decimals; None where no query has a moment of the range. Highlight keys
        are absent where there are no saliency predictions or no saliency labels. `extended` adds
        R1@0.3 to 0.45 and mIoU under the names of CG-DETR.

    Raises:
        UsageError: no ground truth, or input on which the reference evaluator stops.
    """
    scores: Scores = {"brief": {}}
    if _all_or_none("saliency", annotations, predictions):
        scores |= _highlight_scores(annotations, predictions, clip_len_s, mode)
    scores |= _moment_scores(annotations, predictions, mode, extended)
    scores["brief"] = _brief(scores, extended)
    return scores


def _brief(scores: Scores, extended: bool) -> Scores:
    full = scores["full"]
    brief = {f"MR-full-R1@{at}": full["MR-R1"][at] for at in ("0.5", "0.7")}
    brief["MR-full-mAP"] = full["MR-mAP"]["average"]
    brief |= {f"MR-full-mAP@{at}": full["MR-mAP"][at] for at in ("0.5", "0.75")}
    brief |= {f"MR-{name}-mAP": scores[name]["MR-mAP"]["average"] for name in list(RANGES_S)[1:]}
    for name in (f"HL-min-{rating}" for rating in RATINGS):
        for key, value in scores.get(name, {}).items():
            brief[f"{name}-{key.removeprefix('HL-')}"] = value
    if extended:
        brief["MR-full-R1@0.3"] = full["MR-R1"]["0.3"]
        brief["MR-full-mIoU"] = full["MR-mIoU"]
    return brief


def _moment_scores(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    mode: Mode,
    extended: bool,
) -> Scores:
    _check_moments(annotations, predictions, mode)
    truth = Ragged.of([each.windows for each in annotations if each.windows is not None], (2,))
    predicted = ranked(Ragged.of([each.windows for each in predictions], (3,)), mode)
    length = truth.flat[:, 1] - truth.flat[:, 0]
    scores: Scores = {}
    for name, bounds in RANGES_S.items():
        if bounds is not None:
            inside = truth.where((length > bounds[0]) & (length <= bounds[1]))
        else:
            inside = truth
        some = inside.counts > 0
        scores[name] = _range_scores(predicted.rows(some), inside.rows(some), mode, extended)
    return scores


def _range_scores(predicted: Ranked, truth: Ragged, mode: Mode, extended: bool) -> Scores:
    names = _thresholds(OFFICIAL_FROM)
    precision, counted = average_precision(predicted, truth, _values(names), mode)
    per_threshold = precision[counted].mean(axis=0) if counted.any() else None
    mean_ap = {
        name: _percent(per_threshold[i]) if per_threshold is not None else None
        for i, name in enumerate(names)
    }
    mean_ap["average"] = _percent(per_threshold.mean()) if per_threshold is not None else None

    names = _thresholds(EXTENDED_FROM if extended else OFFICIAL_FROM)
    iou = first_window_iou(predicted, truth, mode) if len(truth.counts) else None
    recall = {
        name: _percent((iou >= float(name)).mean()) if iou is not None else None for name in names
    }
    scores: Scores = {"MR-mAP": mean_ap, "MR-R1": recall}
    if extended:
        scores["MR-mIoU"] = _percent(iou.mean()) if iou is not None else None
    return scores


def _highlight_scores(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    clip_len_s: float,
    mode: Mode,
) -> Scores:
    clips = _clips(annotations, clip_len_s)
    ratings = _ratings(annotations, clips)
    given = Ragged.of([each.saliency or () for each in predictions])
    grid = on_grid(given, clips, mode)
    top = top_clip(given, grid, mode)
    positive = np.stack([ratings >= lowest for lowest in RATINGS.values()], axis=3)
    queries, width, annotators, thresholds = positive.shape
    columns = positive.reshape(queries, width, annotators * thresholds)
    precision = highlight_ap(grid, clips, columns).reshape(queries, annotators, thresholds)
    return {
        f"HL-min-{name}": {
            "HL-mAP": _percent(precision[:, :, i].mean()),
            "HL-Hit1": _percent(hit_at_one(top, positive[..., i]).mean()),
        }
        for i, name in enumerate(RATINGS)
    }


def _clips(annotations: Sequence[Annotation], clip_len_s: float) -> NDArray[np.int64]:
    """(Q,) clips of each video: `int(duration / clip_len)`, as the reference counts them."""
    clips = [int((each.duration_s or 0.0) / clip_len_s) for each in annotations]
    for each, count in zip(annotations, clips, strict=True):
        if count < 1:
            raise UsageError(
                f"query {each.qid}: the highlight metrics need a duration of at least "
                f"{clip_len_s:g} seconds, the annotation says {each.duration_s}"
            )
    return np.asarray(clips, np.int64)


def _ratings(annotations: Sequence[Annotation], clips: NDArray[np.int64]) -> Floats:
    """(Q, N, A) rating of each clip by each annotator, 0 where not annotated."""
    rows = [each.saliency or () for each in annotations]
    annotators = {len(scores) for row in rows for scores in row} or {1}
    if len(annotators) > 1:
        raise UsageError(
            f"every clip must be rated by the same number of annotators, found {sorted(annotators)}"
        )
    ids = Ragged.of([each.clip_ids or () for each in annotations])
    place = ids.flat.astype(np.int64)
    outside = (place < 0) | (place >= clips[ids.row])
    if outside.any():
        row = int(ids.row[outside][0])
        raise UsageError(
            f"query {annotations[row].qid}: clip {place[outside][0]} is rated, but a video of "
            f"{annotations[row].duration_s} seconds has clips 0 to {clips[row] - 1}"
        )
    out = np.zeros((len(rows), int(clips.max()), annotators.pop()))
    out[ids.row, place] = Ragged.of(rows, (out.shape[2],)).flat
    return out


def _check_moments(
    annotations: Sequence[Annotation], predictions: Sequence[Prediction], mode: Mode
) -> None:
    blind = [each.qid for each in annotations if not each.windows]
    if blind or not annotations:
        raise UsageError(
            f"{len(blind)} of {len(annotations)} queries have no ground-truth moment"
            + (f" (first: {blind[0]})" if blind else "")
            + "; evaluate on a split with ground truth"
        )
    silent = [each.qid for each in predictions if not each.windows]
    if silent and mode == "official":
        raise UsageError(
            f"{len(silent)} queries have no predicted window (first: {silent[0]}); the official "
            "evaluator stops there; mode strict counts them as misses"
        )


def _all_or_none(
    name: str, annotations: Sequence[Annotation], predictions: Sequence[Prediction]
) -> bool:
    """Whether both sides have saliency; UsageError where only some rows of a side do."""
    for side, rows in (("annotations", annotations), ("predictions", predictions)):
        without = [each.qid for each in rows if getattr(each, name) is None]
        if without and len(without) < len(rows):
            raise UsageError(
                f"{len(without)} of {len(rows)} {side} have no {name} scores (first: query "
                f"{without[0]}); give them for all queries or for none"
            )
        if without:
            return False
    return True


def _thresholds(lowest: float) -> list[str]:
    """Names of the IoU thresholds from `lowest` to 0.95 in steps of 0.05: "0.5", "0.55", ..."""
    return [str(step / 100) for step in range(round(lowest * 100), 96, 5)]


def _values(names: Sequence[str]) -> Floats:
    return np.asarray([float(name) for name in names])


def _percent(share: float | np.floating) -> float:
    """The reference formats with two decimals, which is not always `round`."""
    return float(f"{100 * share:.2f}")
