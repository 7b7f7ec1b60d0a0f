"""The metrics word for word, one query at a time: what the fast ones must agree with.

Written from the definitions (specs/peers_formats_metrics.md §3.6, evaluator_reference.md §4) in
plain Python: no array code, no shared helpers, nothing sorted twice. Every function returns shares
in [0, 1] that are not rounded, or None where no query counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from data.annotations.types import Annotation
from training.predictions import Prediction

Mode = Literal["official", "strict"]
Window = tuple[float, float]
Scored = tuple[float, float, float]
Key = tuple[str, ...]
Numbers = dict[Key, float | None]

AP_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RECALL_THRESHOLDS = tuple(round(0.3 + 0.05 * i, 2) for i in range(14))
RANGES = {"full": None, "long": (30, 150), "middle": (10, 30), "short": (0, 10)}
LOWEST_RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}
TSG_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def literal_moments(
    annotations: Sequence[Annotation], predictions: Sequence[Prediction], mode: Mode
) -> Numbers:
    """mAP, R1, R5 and mIoU for all moments and for those of each range of lengths."""
    numbers: Numbers = {}
    for name, bounds in RANGES.items():
        queries = []
        for annotation, prediction in zip(annotations, predictions, strict=True):
            truth = [w for w in annotation.windows or () if in_range(w, bounds)]
            if truth:
                queries.append((list(prediction.windows), truth))
        answered = [each for each in queries if each[0] or mode == "strict"]
        for threshold in AP_THRESHOLDS:
            aps = [average_precision(p, t, threshold, mode) for p, t in answered]
            numbers[name, "MR-mAP", str(threshold)] = mean(aps)
        parts = [numbers[name, "MR-mAP", str(each)] for each in AP_THRESHOLDS]
        numbers[name, "MR-mAP", "average"] = mean([p for p in parts if p is not None])
        first = [iou_of_the_best(p, t, 1, mode) for p, t in queries]
        of_five = [iou_of_the_best(p, t, 5, mode) for p, t in queries]
        for threshold in RECALL_THRESHOLDS:
            numbers[name, "MR-R1", str(threshold)] = mean([i >= threshold for i in first])
            numbers[name, "MR-R5", str(threshold)] = mean([i >= threshold for i in of_five])
        numbers[name, "MR-mIoU"] = mean(first)
    return numbers


def literal_highlights(
    annotations: Sequence[Annotation],
    predictions: Sequence[Prediction],
    clip_len_s: float,
    mode: Mode,
) -> Numbers:
    """mAP and Hit@1 for clips that are at least Fair, Good and VeryGood."""
    numbers: Numbers = {}
    for name, lowest in LOWEST_RATINGS.items():
        aps, hits = [], []
        for annotation, prediction in zip(annotations, predictions, strict=True):
            labels = positive_clips(annotation, lowest, clip_len_s)
            scores = list(prediction.saliency or ())
            filled = on_grid(scores, len(labels), mode)
            annotators = len(labels[0])
            aps += [ranking_ap([row[a] for row in labels], filled) for a in range(annotators)]
            listed = scores if mode == "official" else filled
            top = listed.index(max(listed))
            hits.append(top < len(labels) and any(labels[top]))
        numbers[f"HL-min-{name}", "HL-mAP"] = mean(aps)
        numbers[f"HL-min-{name}", "HL-Hit1"] = mean(hits)
    return numbers


def in_range(window: Window, bounds: tuple[float, float] | None) -> bool:
    """(lowest, highest]; no bounds means every window, whatever its length."""
    return bounds is None or bounds[0] < window[1] - window[0] <= bounds[1]


def average_precision(
    windows: list[Scored], truth: list[Window], threshold: float, mode: Mode
) -> float:
    """Each window, best score first, takes the free true window of highest IoU."""
    ordered = ten_best(windows, mode)
    taken: set[int] = set()
    precisions, recalls = [0.0], [0.0]
    for rank, window in enumerate(ordered, start=1):
        found = choose(window, truth, taken, threshold, mode)
        if found is not None:
            taken.add(found)
        precisions.append(len(taken) / rank)
        recalls.append(len(taken) / len(truth))
    precisions.append(0.0)
    recalls.append(1.0)
    area = 0.0
    for i in range(1, len(recalls)):
        area += (recalls[i] - recalls[i - 1]) * max(precisions[i:])
    return area


def ten_best(windows: list[Scored], mode: Mode) -> list[Scored]:
    """official: of the first ten; strict: of all."""
    kept = windows[:10] if mode == "official" else windows
    return sorted(kept, key=lambda window: -window[2])[:10]


def choose(
    window: Scored, truth: list[Window], taken: set[int], threshold: float, mode: Mode
) -> int | None:
    """Highest IoU first, NaN before all, the last among equals."""
    ious = [iou(window, each, mode) for each in truth]
    keys = [(math.inf if math.isnan(value) else value, j) for j, value in enumerate(ious)]
    for _, j in sorted(keys, reverse=True):
        if ious[j] < threshold:  # never true of NaN
            return None
        if j not in taken:
            return j
    return None


def iou(one: Sequence[float], other: Sequence[float], mode: Mode) -> float:
    """Intersection over the sum of lengths less the intersection; 0/0 is NaN, in strict 0."""
    shared = max(min(one[1], other[1]) - max(one[0], other[0]), 0.0)
    union = (one[1] - one[0]) + (other[1] - other[0]) - shared
    if union == 0:
        return math.nan if mode == "official" else 0.0
    return shared / union


def hull_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over the span of both; 0/0 is 0."""
    shared = max(min(one[1], other[1]) - max(one[0], other[0]), 0.0)
    hull = max(one[1], other[1]) - min(one[0], other[0])
    return shared / hull if hull else 0.0


def iou_of_the_best(windows: list[Scored], truth: list[Window], top: int, mode: Mode) -> float:
    """Of the first `top` windows and all true ones, the IoU of the pair that overlaps most.

    official: the first of the list, the pair by IoU and its value by the hull; the first pair
    among equals. With one window NaN is above all (numpy's argmax), with more it is 0 (UniVTG's
    compute_mr_r5). strict: the first by score, and the true IoU.
    """
    if not windows:
        assert mode == "strict", "the reference stops at a query without windows"
        return 0.0
    if mode == "strict":
        return max(iou(w, t, mode) for w in ten_best(windows, mode)[:top] for t in truth)
    pairs = [(w, t) for w in windows[:top] for t in truth]
    nan_is = math.inf if top == 1 else 0.0
    ious = [iou(w, t, mode) for w, t in pairs]
    ranks = [nan_is if math.isnan(value) else value for value in ious]
    return hull_iou(*pairs[ranks.index(max(ranks))])


def positive_clips(annotation: Annotation, lowest: int, clip_len_s: float) -> list[list[bool]]:
    """For each clip of the grid and each annotator; clips that nobody rated are rated 0."""
    assert annotation.duration_s is not None
    assert annotation.saliency
    ratings = [
        [0.0] * len(annotation.saliency[0]) for _ in range(int(annotation.duration_s / clip_len_s))
    ]
    for clip, rated in zip(annotation.clip_ids or (), annotation.saliency, strict=True):
        ratings[clip] = list(rated)
    return [[rating >= lowest for rating in row] for row in ratings]


def on_grid(scores: list[float], clips: int, mode: Mode) -> list[float]:
    """Longer lists are cut, shorter ones filled: with 0, in strict below every score."""
    fill = 0.0 if mode == "official" else -math.inf
    return scores[:clips] + [fill] * (clips - len(scores))


def ranking_ap(labels: list[bool], scores: list[float]) -> float:
    """Mean, over the thresholds at which recall grows, of the best precision at or below them."""
    if all(labels) or not any(labels):
        return float(all(labels))
    precisions, recalls = [], []
    for threshold in sorted(set(scores)):
        chosen = [label for label, score in zip(labels, scores, strict=True) if score >= threshold]
        precisions.append(sum(chosen) / len(chosen))
        recalls.append(np.float32(sum(chosen) / sum(labels)))
    recalls.append(np.float32(0))
    grows = [i for i in range(len(precisions)) if recalls[i] != recalls[i + 1]]
    return sum(max(precisions[: i + 1]) for i in grows) / len(grows)


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return math.fsum(values) / len(values) if values else None


def literal_tvsum(
    annotations: Sequence[Annotation], predictions: Sequence[Prediction], mode: Mode
) -> Numbers:
    """AP of the first five clips against what each annotator rated above the median."""
    videos = []
    for annotation, prediction in zip(annotations, predictions, strict=True):
        ratings = all_ratings(annotation)
        aps = []
        for a in range(len(ratings[0])):
            own = [row[a] for row in ratings]
            median = sorted(own)[(len(own) - 1) // 2]
            labels = [rating > median for rating in own]
            if any(labels) or mode == "official":
                aps.append(trapezoid(by_score(labels, prediction, mode)[:5]))
        videos.append(mean(aps))
    return by_domain(annotations, videos)


def literal_youtube(
    annotations: Sequence[Annotation], predictions: Sequence[Prediction], mode: Mode
) -> Numbers:
    """AP of the ranking of all clips against labels above 0."""
    videos = []
    for annotation, prediction in zip(annotations, predictions, strict=True):
        labels = [row[0] > 0 for row in all_ratings(annotation)]
        counts = any(labels) or mode == "official"
        videos.append(trapezoid(by_score(labels, prediction, mode)) if counts else None)
    return by_domain(annotations, videos)


def literal_tsg(
    annotations: Sequence[Annotation], predictions: Sequence[Prediction], mode: Mode
) -> Numbers:
    """Recall and mIoU of one window per query."""
    ious = []
    for annotation, prediction in zip(annotations, predictions, strict=True):
        windows, truth = list(prediction.windows), annotation.windows or ()
        if mode == "strict":
            windows = sorted(windows, key=lambda window: -window[2])
        ious.append(max((tsg_iou(w, t, mode) for w in windows[:1] for t in truth), default=0.0))
    hit = above(mode)
    numbers: Numbers = {
        (f"R1@{threshold}",): mean([hit(each, threshold) for each in ious])
        for threshold in TSG_THRESHOLDS
    }
    return numbers | {("mIoU",): mean(ious)}


def literal_discounted(
    annotations: Sequence[Annotation], predictions: Sequence[Prediction], mode: Mode
) -> Numbers:
    """Recall of the first n windows, times how near the edges of the best of them are."""
    numbers: Numbers = {}
    hit = above(mode)
    for n in (1, 5):
        found = []
        for annotation, prediction in zip(annotations, predictions, strict=True):
            windows, truth = list(prediction.windows), annotation.windows or ()
            if mode == "strict":
                windows = sorted(windows, key=lambda window: -window[2])
            pairs = [(w, t) for w in windows[:n] for t in truth]
            ious = [iou(w, t, "strict") for w, t in pairs]
            best = max(ious, default=0.0)
            near = nearness(*pairs[ious.index(best)], annotation, mode) if pairs else 0.0
            found.append((best, near))
        for threshold in TSG_THRESHOLDS:
            hits = [hit(best, threshold) for best, _ in found]
            discounted = [h * near for h, (_, near) in zip(hits, found, strict=True)]
            numbers[(f"dR{n}@{threshold}",)] = mean(discounted)
            numbers[(f"R{n}@{threshold}",)] = mean(hits)
        if n == 1:
            numbers[("mIoU",)] = mean([best for best, _ in found])
    return numbers


def all_ratings(annotation: Annotation) -> list[tuple[float, ...]]:
    """What the annotators said about clip 0, clip 1 and so on."""
    rated = zip(annotation.clip_ids or (), annotation.saliency or (), strict=True)
    return [ratings for _, ratings in sorted(rated)]


def by_score(labels: list[bool], prediction: Prediction, mode: Mode) -> list[bool]:
    """The labels, best score first.

    official: equal scores in the order of the clips; clips without a score do not exist, nor do
    scores without a clip. strict: among equals the wrong clips first; clips without a score last.
    """
    scores = list(prediction.saliency or ())[: len(labels)]
    if mode == "official":
        return [labels[i] for i in sorted(range(len(scores)), key=lambda i: -scores[i])]
    scores += [-math.inf] * (len(labels) - len(scores))
    return [labels[i] for i in sorted(range(len(labels)), key=lambda i: (-scores[i], labels[i]))]


def trapezoid(labels: list[bool]) -> float:
    """Area under precision over recall of a list, from precision 1 at recall 0; 0 without a hit."""
    if not any(labels):
        return 0.0
    area, recall, precision, hits = 0.0, 0.0, 1.0, 0
    for place, label in enumerate(labels, start=1):
        hits += label
        area += (hits / sum(labels) - recall) * (precision + hits / place) / 2
        recall, precision = hits / sum(labels), hits / place
    return area


def by_domain(annotations: Sequence[Annotation], videos: Sequence[float | None]) -> Numbers:
    """Means of the videos that count, by domain, and the mean of the domains."""
    domains: dict[str, list[float]] = {}
    for annotation, value in zip(annotations, videos, strict=True):
        own = domains.setdefault(annotation.extra["domain"], [])
        own += [] if value is None else [value]
    numbers: Numbers = {(name, "mAP"): mean(values) for name, values in domains.items()}
    known = [value for value in numbers.values() if value is not None]
    return numbers | {("AVG", "mAP"): mean(known) if len(known) == len(numbers) else None}


def tsg_iou(one: Sequence[float], other: Sequence[float], mode: Mode) -> float:
    """official: 0.0001 s are added to the union."""
    if mode == "strict":
        return iou(one, other, mode)
    shared = max(min(one[1], other[1]) - max(one[0], other[0]), 0.0)
    return shared / ((one[1] - one[0]) + (other[1] - other[0]) - shared + 1e-4)


def above(mode: Mode) -> Callable[[float, float], bool]:
    """official: more than the threshold; strict: at least."""
    return (lambda a, b: a > b) if mode == "official" else (lambda a, b: a >= b)


def nearness(window: Scored, truth: Window, annotation: Annotation, mode: Mode) -> float:
    """Product of 1 - |predicted - true| / duration for both edges; strict: neither below 0."""
    assert annotation.duration_s
    product = 1.0
    for predicted, true in zip(window[:2], truth, strict=True):
        near = 1 - abs(predicted - true) / annotation.duration_s
        product *= max(near, 0.0) if mode == "strict" else near
    return product
