"""What the report shows, read from a store and from run directories of the trainer."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.annotations.mend import mended
from data.annotations.types import Annotation
from data.charts import Line, Span, Track
from data.errors import UsageError
from data.foreign import brief as brief_of
from data.foreign import json_object, read_limited, text_lines
from data.grid import Grid
from data.store import Store
from data.video import IsolatedDecoder
from data.video.types import FrameRequest, Video, View

__all__ = [
    "BRIEF",
    "Caption",
    "Frame",
    "MetricRow",
    "TimelineData",
    "answered",
    "collect_timeline",
    "history_lines",
    "predictions_of",
    "read_metrics",
    "read_predictions",
    "shown_metrics",
]

BRIEF = {
    "R1@0.5": "MR-full-R1@0.5",
    "R1@0.7": "MR-full-R1@0.7",
    "mAP": "MR-full-mAP",
    "mAP@0.5": "MR-full-mAP@0.5",
    "HD mAP": "HL-min-VeryGood-mAP",
    "HIT@1": "HL-min-VeryGood-Hit1",
}
"""Columns of the metric table and their keys in the official `brief` metrics, where a run has them;
of a run that has none of these, all of its metrics are columns."""

FRAMES_SHOWN = 10

_MAX_METRICS_BYTES = 64 << 20

THUMBNAIL_PIXELS = 96


@dataclass(frozen=True)
class MetricRow:
    """One line of the metric table.

    Args:
        name, about: what was scored.
        role: CSS class of the line.
        scores: the official `brief` metrics; None where no query counts.
        selected_by: the one that chose the best epoch; None if the file does not say.
    """

    name: str
    about: str
    role: str
    scores: Mapping[str, float | None]
    selected_by: str | None = None


@dataclass(frozen=True)
class Frame:
    """One thumbnail as a data URL."""

    time_s: float
    source: str


@dataclass(frozen=True)
class Caption:
    """One caption of a video."""

    time_s: float
    text: str


@dataclass(frozen=True)
class TimelineData:
    """Everything drawn for one query."""

    qid: int | str
    query: str
    video_id: str
    duration_s: float
    frames: list[Frame]
    captions: list[Caption]
    tracks: list[Track]


def read_metrics(file: Path, name: str, about: str, role: str) -> MetricRow:
    """A row of the metric table from `metrics.json` of a run or `trainer evaluate --json`.

    Args:
        file: the scores.
        name, about, role: of the row; split and mode, where the file says them, are added to
            `about`.

    Raises:
        UsageError: no such file, or not the scores of the trainer.
    """
    if not file.is_file():
        raise UsageError(
            f"{file} does not exist; name the folder of a run that is finished (`trainer fit`), or "
            "a file of `trainer evaluate --json`"
        )
    metrics = json_object(read_limited(file, _MAX_METRICS_BYTES, "the scores"), str(file))
    best = metrics.get("best") or metrics
    brief = best.get("brief") if isinstance(best, dict) else None
    if not isinstance(brief, dict):
        raise UsageError(f"{file} holds no scores of `trainer` (no key 'brief')")
    scores = {key: None if v is None else _number(v, file) for key, v in brief.items()}
    split, mode, selected = (metrics.get(key) for key in ("split", "mode", "selected_by"))
    told = [about, f"split {split}" if split else "", "strict metrics" * (mode == "strict")]
    return MetricRow(
        name,
        ", ".join(filter(None, told)),
        role,
        scores,
        selected if isinstance(selected, str) else None,
    )


def shown_metrics(rows: Sequence[MetricRow]) -> dict[str, str]:
    """Columns of the metric table and their keys: see `BRIEF`."""
    known = {key for row in rows for key in row.scores}
    columns = {name: key for name, key in BRIEF.items() if key in known}
    for row in rows:
        others = [key for key in row.scores if key not in columns.values()]
        if not row.scores.keys() & set(BRIEF.values()):
            columns |= {f"{key} ({row.name})" if key in columns else key: key for key in others}
    return columns


def history_lines(run: Path, name: str, key: str = BRIEF["R1@0.5"]) -> tuple[Line, Line]:
    """Training loss of a run and one of its brief metrics, from its `history.jsonl`.

    Raises:
        UsageError: a line that the trainer does not write.
    """
    file = run / "history.jsonl"
    loss, score = [], []
    for where, row in _rows(file, "the history"):
        try:
            epoch = _number(row["epoch"], where)
            losses = {term: _number(each, where) for term, each in row["losses"].items()}
            loss.append((epoch, losses.get("total", sum(losses.values()))))
            if row.get("val") and row["val"].get(key) is not None:
                score.append((epoch, _number(row["val"][key], where)))
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{where} is no epoch of `trainer fit`: {error!r}") from None
    return Line(name, loss), Line(name, score)


def predictions_of(run: Path) -> dict[str, Mapping[str, Any]]:
    """The predictions of a run's best epoch; see `read_predictions`.

    Raises:
        UsageError: there are none.
    """
    found = sorted((run / "predictions").glob("*-best.jsonl"))
    if not found:
        raise UsageError(f"{run} has no predictions of a best epoch; let `trainer fit` finish it")
    return read_predictions(found[0])


def answered(store: Store, predictions: Mapping[str, Mapping[str, Any]]) -> list[Annotation]:
    """The queries that predictions answer, of the split that has most of them.

    A run may be scored on a part of a split, or on one that its trainer made (`data.hold_out`).
    """
    found = [
        [
            row
            for row in store.annotations(split)
            if predictions.get(str(row.qid), {}).get("vid") == row.video_id
        ]
        for split in store.splits()
    ]
    return max(found, key=len, default=[])


def read_predictions(file: Path) -> dict[str, Mapping[str, Any]]:
    """Rows of a submission file by the text of their qid, windows and scores checked.

    Raises:
        UsageError: a line that is no prediction.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for where, row in _rows(file, "the predictions"):
        saliency = row.get("pred_saliency_scores")
        # a highlight detector writes no windows
        windows = row.get("pred_relevant_windows", None if saliency is None else [])
        if not isinstance(windows, list) or not isinstance(saliency, list | None):
            raise UsageError(f"{where}: expected 'pred_relevant_windows' as a list of windows")
        if any(not isinstance(each, list) or len(each) != 3 for each in windows):
            raise UsageError(f"{where}: a window is [start, end, score]")
        found[str(row.get("qid"))] = row | {
            "pred_relevant_windows": [[_number(v, where) for v in each] for each in windows],
            "pred_saliency_scores": [_number(v, where) for v in saliency or ()],
        }
    return found


def _rows(file: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in text_lines(file, what):
        where = f"{file}, line {number}"
        yield where, json_object(line, where)


def _number(value: Any, where: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{where}: expected a number, got {brief_of(value)}")
    return float(value)


def collect_timeline(
    store: Store,
    video: Video,
    annotation: Annotation,
    prediction: Mapping[str, Any],
    true_boundaries_s: Sequence[float],
) -> TimelineData:
    """Frames, captions and all tracks of one query."""
    grid = Grid(store.catalogue()[video.id].facts.duration_s, store.clip_len_s)
    return TimelineData(
        annotation.qid,
        annotation.query,
        video.id,
        grid.duration_s,
        _thumbnails(video, grid.duration_s),
        _captions(store, video.id),
        [
            *_moment_tracks(annotation, prediction),
            *_event_tracks(store, video.id, true_boundaries_s),
            *_saliency_tracks(annotation, prediction, grid),
        ],
    )


def _thumbnails(video: Video, duration_s: float) -> list[Frame]:
    times = (np.arange(FRAMES_SHOWN) + 0.5) * duration_s / FRAMES_SHOWN
    request = FrameRequest("report", times[:, None], View(THUMBNAIL_PIXELS), inclusive=True)
    with IsolatedDecoder() as decoder:
        windows = decoder.windows(video, [request])
        return [Frame(float(times[w.unit]), _data_url(w.frames[0])) for w in windows]


def _data_url(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _captions(store: Store, video_id: str) -> list[Caption]:
    if "captions" not in store.current:
        return []
    row = store.reader("captions").row(video_id)
    return [
        Caption(float(t), text) for t, text in zip(row["time_s"], row.texts["caption"], strict=True)
    ]


def _moment_tracks(annotation: Annotation, prediction: Mapping[str, Any]) -> list[Track]:
    usable, _ = mended([annotation])  # a track ends with its video
    truth = [Span(start, end) for row in usable for start, end in row.windows or ()]
    windows = prediction["pred_relevant_windows"]
    if not truth and not windows:
        return []
    best = [Span(s, e, 1.0, f"score {p:.2f}: {s:.1f} to {e:.1f} s") for s, e, p in windows[:1]]
    others = [Span(s, e, 0.25 + 0.5 * p, f"score {p:.2f}") for s, e, p in windows[1:4]]
    return [
        Track("true moments", "truth", truth),
        Track("first prediction", "prediction", best),
        Track("predictions 2 to 4", "prediction", others),
    ]


def _event_tracks(store: Store, video_id: str, true_s: Sequence[float]) -> list[Track]:
    if "events" not in store.current:
        return []
    spans = store.reader("events").row(video_id)["spans_s"]
    shades = (0.9, 0.5)  # so that neighbours can be told apart
    events = [Span(float(s), float(e), shades[i % 2]) for i, (s, e) in enumerate(spans)]
    return [Track("events | true cuts", "event boundary", events, [float(t) for t in true_s])]


def _saliency_tracks(
    annotation: Annotation, prediction: Mapping[str, Any], grid: Grid
) -> list[Track]:
    tracks, own = [], annotation.clip_spans_s
    clips = [(i * grid.clip_len_s, (i + 1) * grid.clip_len_s) for i in range(grid.n)]
    if annotation.clip_ids is not None and annotation.saliency is not None:
        sums = [sum(labels) for labels in annotation.saliency]
        if own is None:
            rated = dict(zip(annotation.clip_ids, sums, strict=True))
            sums = [rated.get(clip, 0.0) for clip in range(grid.n)]
        tracks.append(Track("true saliency", "saliency", scores=sums, places_s=own or clips))
    scores = prediction["pred_saliency_scores"]
    if scores:
        places = own if own is not None and len(own) == len(scores) else clips
        tracks.append(Track("saliency", "saliency", scores=scores, places_s=places))
    return tracks
