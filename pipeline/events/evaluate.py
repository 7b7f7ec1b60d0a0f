"""Scores of detected boundaries: the F1 of generic event boundary detection, beside baselines.

The matching is that of the Kinetics-GEBD challenge script (specs/llmepet_and_pseudo_events.md §5):
true boundaries in order, each takes the nearest prediction that is left; the best rater of a video
counts; counts are summed over videos (micro); a video without predictions counts as missed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.annotations.gebd import read_gebd
from data.errors import UsageError
from data.foreign import brief, strict_json, text_lines
from data.identity import check_id
from data.store import Store

__all__ = [
    "BASELINES",
    "Boundaries",
    "BoundaryScore",
    "Truth",
    "boundary_score",
    "human_score",
    "matches",
    "read_truth",
    "score_store",
    "stored_boundaries",
    "truth_and_notes",
    "typical_count",
]

_GEBD_SUFFIXES = {".pkl", ".pickle", ".json"}

_MIN_CONSISTENCY = 0.3
"""`f1_consis_avg` below which the GEBD challenge leaves a video out (specs/llmepet… §5)."""

_MAX_RATERS = 64
_MAX_BOUNDARIES = 10_000


@dataclass(frozen=True)
class Truth:
    """True boundaries of one video.

    Args:
        duration_s: length of the video.
        raters: boundaries in seconds, ascending, one list per annotator.
    """

    duration_s: float
    raters: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class BoundaryScore:
    """Micro scores over all videos.

    Args:
        matched: true boundaries that were found.
        true: true boundaries, of the rater that fits best in each video.
        predicted: predicted boundaries.
    """

    matched: int
    true: int
    predicted: int

    @property
    def precision(self) -> float:
        """Share of predictions that are right; 0 where there is none."""
        return self.matched / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of true boundaries that were found; 1 where there is none, as in the challenge."""
        return self.matched / self.true if self.true else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0

    @property
    def ratio(self) -> float:
        """Predicted per true boundary: 1 is right, above it the parser cuts too often."""
        return self.predicted / max(self.true, 1)

    def __add__(self, other: BoundaryScore) -> BoundaryScore:
        return BoundaryScore(
            self.matched + other.matched,
            self.true + other.true,
            self.predicted + other.predicted,
        )


Boundaries = Mapping[str, Sequence[float]]
"""Predicted boundaries in seconds by video id."""


def read_truth(path: Path) -> dict[str, Truth]:
    """True boundaries by video id: see `truth_and_notes`."""
    return truth_and_notes(path)[0]


def truth_and_notes(path: Path) -> tuple[dict[str, Truth], list[str]]:
    """True boundaries by video id, and what is to be known of them, in sentences.

    From JSONL `{vid, duration, boundaries[, raters]}`, or from a file of Kinetics-GEBD (`.pkl`,
    `.json`), of which videos whose annotators agree too little are left out as its challenge does.

    Raises:
        UsageError: no such file, a line or video that is not of this form (it is named), or none.
    """
    gebd = path.suffix.lower() in _GEBD_SUFFIXES
    truth, unsure = _gebd(path) if gebd else (_jsonl(path), 0)
    if not truth:
        found = _left_out(unsure) if unsure else "nothing"
        raise UsageError(
            f"{path} has no video to score: expected true boundaries, as JSONL of vid, duration "
            f"and boundaries or as a file of Kinetics-GEBD, and found {found}"
        )
    late = sum(
        time > each.duration_s for each in truth.values() for rater in each.raters for time in rater
    )
    notes = [_left_out(unsure)] if unsure else []
    if late:
        notes.append(
            f"{late:,} true boundaries of {path.name} lie after the end of their video and cannot "
            "be found: are they, and the durations, in seconds?"
        )
    return truth, notes


def _left_out(unsure: int) -> str:
    return (
        f"{unsure:,} videos whose annotators agree too little (f1_consis_avg below "
        f"{_MIN_CONSISTENCY}): they are left out, as in the challenge"
    )


def _gebd(path: Path) -> tuple[dict[str, Truth], int]:
    """Videos that the challenge scores, and the number of the others."""
    videos = read_gebd(path)
    truth = {
        video_id: Truth(video.duration_s, video.raters)
        for video_id, video in videos.items()
        if video.consistency_mean is None or video.consistency_mean >= _MIN_CONSISTENCY
    }
    return truth, len(videos) - len(truth)


def _jsonl(path: Path) -> dict[str, Truth]:
    truth: dict[str, Truth] = {}
    for number, line in text_lines(path, "the true boundaries"):
        try:
            video_id, one = _truth(strict_json(line))
            if video_id in truth:
                raise ValueError(f"video '{video_id}' came before")
        except (ValueError, KeyError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UsageError(
                f"{path}, line {number}: expected a JSON object with 'vid', 'duration' in seconds "
                "and 'boundaries' as a list of seconds, or 'raters' as a list of such lists, got "
                f"{brief(line.decode(errors='replace'))} ({why})"
            ) from None
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        truth[video_id] = one
    return truth


def _truth(record: Any) -> tuple[str, Truth]:
    if not isinstance(record, dict):
        raise ValueError("it is no object")
    raters = record.get("raters") or [record["boundaries"]]
    if not isinstance(raters, list) or len(raters) > _MAX_RATERS:
        raise ValueError(f"'raters' must be a list of at most {_MAX_RATERS} lists")
    duration_s = _number(record["duration"], "duration")
    if not duration_s:
        raise ValueError("'duration' must be above 0")
    return check_id(record["vid"]), Truth(duration_s, tuple(_times(rater) for rater in raters))


def _times(rater: Any) -> tuple[float, ...]:
    if not isinstance(rater, list) or len(rater) > _MAX_BOUNDARIES:
        raise ValueError(f"boundaries must be a list of at most {_MAX_BOUNDARIES:,} seconds")
    return tuple(sorted(_number(each, "boundaries") for each in rater))


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"'{name}' must be numbers from 0 on, got {brief(value)}")
    return float(value)


def matches(true: Sequence[float], predicted: Sequence[float], tolerance_s: float) -> int:
    """How many true boundaries find a prediction within `tolerance_s` (inclusive).

    True ones choose in the order given, each the nearest prediction left; of two the earlier one.
    """
    left = sorted(predicted)
    found = 0
    for boundary in true:
        if not left:
            break
        after = bisect_left(left, boundary)
        near = after
        if after == len(left) or (after and boundary - left[after - 1] <= left[after] - boundary):
            near = after - 1
        if abs(left[near] - boundary) <= tolerance_s:
            del left[near]
            found += 1
    return found


def boundary_score(
    predictions: Boundaries,
    truth: Mapping[str, Truth],
    *,
    tolerance: float,
    relative: bool = False,
) -> BoundaryScore:
    """Score the predictions for all videos of `truth`; other videos are ignored.

    Args:
        predictions: by video id; a video that is missing counts as one without boundaries.
            Those outside of `[0, duration]` are dropped, as in the challenge.
        truth: by video id.
        tolerance: seconds, or with `relative` a part of the video's duration (0.05 in papers).
    """
    total = BoundaryScore(0, 0, 0)
    for video_id, true in truth.items():
        within = tolerance * true.duration_s if relative else tolerance
        given = predictions.get(video_id, ())
        predicted = [time for time in given if 0 <= time <= true.duration_s]
        per_rater = (
            BoundaryScore(matches(rater, predicted, within), len(rater), len(predicted))
            for rater in true.raters
        )
        total += max(per_rater, key=lambda score: score.f1)
    return total


def human_score(
    truth: Mapping[str, Truth], *, tolerance: float, relative: bool = False
) -> BoundaryScore | None:
    """How well annotators find each other's boundaries: each is left out in turn and scored as a
    prediction against the others of the video, the best of whom counts.

    Returns:
        None where no video has two annotators; videos with one are left out.
    """
    total = None
    for each in truth.values():
        for number, rater in enumerate(each.raters if len(each.raters) > 1 else ()):
            others = each.raters[:number] + each.raters[number + 1 :]
            one = boundary_score(
                {"": rater},
                {"": Truth(each.duration_s, others)},
                tolerance=tolerance,
                relative=relative,
            )
            total = one if total is None else total + one
    return total


def typical_count(truth: Mapping[str, Truth]) -> int:
    """Mean number of true boundaries of a video, rounded; what the baselines predict."""
    counts = [len(rater) for each in truth.values() for rater in each.raters]
    return round(sum(counts) / max(len(counts), 1))


def _uniform_grid(truth: Mapping[str, Truth], seed: int) -> Boundaries:
    del seed
    return _grid(truth, typical_count(truth))


def _uniform_nine(truth: Mapping[str, Truth], seed: int) -> Boundaries:
    del seed
    return _grid(truth, 9)


def _grid(truth: Mapping[str, Truth], k: int) -> Boundaries:
    return {
        video_id: [each.duration_s * i / (k + 1) for i in range(1, k + 1)]
        for video_id, each in truth.items()
    }


def _random(truth: Mapping[str, Truth], seed: int) -> Boundaries:
    rng, k = np.random.default_rng(seed), typical_count(truth)
    return {
        video_id: sorted(rng.uniform(0, truth[video_id].duration_s, k).tolist())
        for video_id in sorted(truth)
    }


def _none(truth: Mapping[str, Truth], seed: int) -> Boundaries:
    del truth, seed
    return {}


BASELINES: Mapping[str, Callable[[Mapping[str, Truth], int], Boundaries]] = {
    "uniform grid": _uniform_grid,
    "uniform grid of 9": _uniform_nine,
    "random": _random,
    "no boundary": _none,
}
"""Predictions without looking, by name: `(truth, seed) -> boundaries`.

The first grid and `random` know the mean number of true boundaries; nine is that of EaTR's and
Kinetics-GEBD's ten events (specs/llmepet_and_pseudo_events.md §5).
"""


def stored_boundaries(store: Store) -> dict[str, list[float]]:
    """Boundaries of the current `events` rows of a store, by video id."""
    reader = store.reader("events")
    return {video_id: reader.array(video_id, "boundaries_s").tolist() for video_id in reader.ids()}


def score_store(store: Store, boundaries: Path, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Scores of the stored pseudo-events and of the baselines, by name.

    Args:
        store: a store with `events`.
        boundaries: file of true boundaries (`read_truth`).
        seed: of the random baseline.

    Returns:
        for each name `f1_half` and `f1_one` (F1 in [0, 1] within 0.5 s and 1 s) and `ratio`.
    """
    truth = read_truth(boundaries)
    method = store.recipe("events").params.get("method", "")
    predictions: dict[str, Boundaries] = {f"events ({method})": stored_boundaries(store)}
    predictions |= {name: predict(truth, seed) for name, predict in BASELINES.items()}
    return {name: _figures(each, truth) for name, each in predictions.items()}


def _figures(predictions: Boundaries, truth: Mapping[str, Truth]) -> dict[str, float]:
    half = boundary_score(predictions, truth, tolerance=0.5)
    one = boundary_score(predictions, truth, tolerance=1.0)
    return {"f1_half": half.f1, "f1_one": one.f1, "ratio": one.ratio}
