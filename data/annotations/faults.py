"""The checks of one annotation file: a small function each, listed in `CHECKS`.

docs/lint.md has the table of the kinds of faults and why each has its level.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from statistics import median
from typing import TypeVar

from data.annotations.findings import KINDS, Check, Fault, Kind, Level, Sheet, SheetRow
from data.annotations.rows import form_of
from data.annotations.types import Annotation
from data.foreign import brief
from data.grid import Grid

__all__ = ["CHECKS", "WRONG_FORM"]

Window = tuple[float, float]
T = TypeVar("T")

_ROUNDING_S = 0.01 + 1e-6
"""Times that differ by no more are equal: those of ActivityNet Captions have two decimals, so that
an end and a duration are each up to half a hundredth off."""

_STATED = "stated_duration"
"""Where readers keep the duration of a file that says another than they read from it (TVSum)."""

_MANY_ROWS = 10
"""A file with fewer rows says nothing about its units."""


def _kind(name: str, level: Level, what: str) -> Kind:
    return KINDS.register(name)(Kind(name, level, what))


WRONG_FORM = _kind("wrong-form", "error", "rows that cannot be read")
"""Faults of `Sheet.wrong`: what `Record.annotation` refused."""

_EMPTY_QUERY = _kind("query-empty", "error", "queries without words")
_SAME_QID = _kind("qid-twice", "error", "rows whose qid came before")
_SAME_ROW = _kind("row-twice", "warning", "rows whose video, query and moments came before")
_NO_TRUTH = _kind("truth-mixed", "error", "rows with other ground truth than most")

_UNITS = _kind("window-units", "error", "rows whose moments are not in seconds")
_REVERSED = _kind("window-reversed", "error", "moments that end before they begin")
_EMPTY = _kind("window-empty", "error", "moments of length zero")
_OUTSIDE = _kind("window-outside", "error", "moments outside their video")
_NEGATIVE = _kind("window-negative", "error", "moments that begin before 0 s")
_PAST_END = _kind("window-past-end", "error", "moments that end over a clip after their video")
_OVER_END = _kind("window-over-end", "warning", "moments that end up to a clip after their video")
_TWICE = _kind("window-twice", "error", "moments that stand in their row before")

_LENGTH = _kind("saliency-length", "error", "rows with too few or too many scores")
_RANGE = _kind("saliency-range", "error", "rows with scores that the dataset does not have")
_CLIPS_OUTSIDE = _kind("clips-outside", "error", "rows with scored clips outside their video")
_DISAGREE = _kind("clips-disagree", "warning", "rows whose scored clips are not of their moments")

_COUNT = _kind("duration-is-clips", "error", "rows with a number of clips as seconds")
_WAS_COUNT = _kind("duration-was-clips", "warning", "rows with a number of clips, read as such")
_DURATION_UNITS = _kind("duration-units", "warning", "rows whose duration may not be in seconds")
_DIFFERS = _kind("duration-differs", "error", "rows whose video has another duration elsewhere")
_OFF_GRID = _kind("duration-off-grid", "warning", "rows with scored clips and part of a clip")
_ON = _kind("duration-past-clips", "warning", "rows whose video goes on after its scored clips")
_MEASURED = _kind("duration-measured", "error", "rows whose duration is not that of their video")


# --- queries and ids


def empty_queries(sheet: Sheet) -> Iterator[Fault]:
    """Sentences without any letter or digit."""
    for row in sheet.rows:
        if not any(map(str.isalnum, row.annotation.query)):
            yield Fault(_EMPTY_QUERY, row, f"the query is {brief(row.annotation.query)}")


def same_qids(sheet: Sheet) -> Iterator[Fault]:
    """An id that stands twice: one of the two queries would be scored by the other's answer."""
    for row, before in _repeated(sheet, lambda row: (type(row.qid), row.qid)):
        yield Fault(_SAME_QID, row, f"the same qid is in {before.where}")


def same_rows(sheet: Sheet) -> Iterator[Fault]:
    """Rows that count twice in every mean."""
    for row, before in _repeated(sheet, lambda row: (row.video_id, row.query, row.windows)):
        yield Fault(_SAME_ROW, row, f"the same video, query and moments are in {before.where}")


def mixed_truth(sheet: Sheet) -> Iterator[Fault]:
    """Rows without what the others have, or with more: a file has ground truth or has none."""
    forms = [frozenset(form_of(row.annotation)) for row in sheet.rows]
    usual = _usual(forms) or frozenset()
    for row, form in zip(sheet.rows, forms, strict=True):
        if form != usual:
            has, most = (sorted(each) or "no ground truth" for each in (form, usual))
            yield Fault(_NO_TRUTH, row, f"has {has}, most rows have {most}")


def _repeated(
    sheet: Sheet, key: Callable[[Annotation], Hashable]
) -> Iterator[tuple[SheetRow, SheetRow]]:
    """Rows whose key came before, each with the first that has it."""
    first: dict[Hashable, SheetRow] = {}
    for row in sheet.rows:
        before = first.setdefault(key(row.annotation), row)
        if before is not row:
            yield row, before


def _usual(values: Iterable[T]) -> T | None:
    common = Counter(values).most_common(1)
    return common[0][0] if common else None


# --- moments


def moments(sheet: Sheet) -> Iterator[Fault]:
    """Moments that are none, or not of their video. Each is told once, under the worst of it."""
    unit, strange = _unit_of(sheet)
    for row in sheet.rows:
        if row.where in strange:
            yield Fault(_UNITS, row, f"{brief(row.annotation.windows)}: {unit}?")
            continue
        for window in row.annotation.windows or ():
            kind = _fault_of(window, row.annotation.duration_s, sheet.clip_len_s)
            if kind:
                yield Fault(kind, row, _text_of(window, row.annotation.duration_s))


def repeated_moments(sheet: Sheet) -> Iterator[Fault]:
    """A moment that stands twice counts as two, which one prediction cannot find both."""
    for row in sheet.rows:
        counts = Counter(row.annotation.windows or ())
        for (start, end), count in counts.items():
            if count > 1:
                yield Fault(_TWICE, row, f"[{start:g}, {end:g}] stands there {count} times")


def _fault_of(window: Window, duration_s: float | None, clip_len_s: float) -> Kind | None:
    start, end = window
    if start >= end:
        return _REVERSED if start > end else _EMPTY
    if end <= 0 or (duration_s is not None and start >= duration_s):
        return _OUTSIDE
    if start < 0:
        return _NEGATIVE
    over_s = 0.0 if duration_s is None else end - duration_s
    if over_s <= _ROUNDING_S:
        return None
    return _PAST_END if over_s > clip_len_s else _OVER_END


def _text_of(window: Window, duration_s: float | None) -> str:
    video = "" if duration_s is None else f" in a video of {duration_s:.10g} s"
    return f"[{window[0]:.10g}, {window[1]:.10g}]{video}"


def _unit_of(sheet: Sheet) -> tuple[str, set[str]]:
    """What the moments of most rows are instead of seconds, and the places of those rows."""
    rows = [row for row in sheet.rows if row.annotation.duration_s and row.annotation.windows]
    large = [row for row in rows if _share(row) > 2 and _is_whole(row.annotation)]
    if len(large) > len(rows) / 2:
        unit = "milliseconds" if max(map(_share, large)) > 200 else "numbers of frames"
        return unit, {row.where for row in large}
    if len(rows) < _MANY_ROWS or max(map(_last_end, rows)) > 1:
        return "", set()
    if median(row.annotation.duration_s or 0.0 for row in rows) <= 10:
        return "", set()
    return "fractions of the video", {row.where for row in rows}


def _last_end(row: SheetRow) -> float:
    return max(max(window) for window in row.annotation.windows or ())


def _share(row: SheetRow) -> float:
    """Where the last moment ends, in lengths of the video."""
    return _last_end(row) / (row.annotation.duration_s or 1.0)


def _is_whole(row: Annotation) -> bool:
    return all(float(edge).is_integer() for window in row.windows or () for edge in window)


# --- saliency


def saliency_lengths(sheet: Sheet) -> Iterator[Fault]:
    """One score for each clip and annotator, by as many annotators as in most rows."""
    usual = _usual(w for row in sheet.rows for w in _widths(row.annotation))
    for row in sheet.rows:
        widths, clips = _widths(row.annotation), len(row.annotation.clip_ids or ())
        if row.annotation.saliency is None:
            continue
        if len(row.annotation.saliency) != clips:
            told = f"{len(row.annotation.saliency)} scores for {clips} clips"
            yield Fault(_LENGTH, row, told)
        elif widths - {usual}:
            told = f"{sorted(widths)} annotators a clip, most rows have {usual}"
            yield Fault(_LENGTH, row, told)


def saliency_ranges(sheet: Sheet) -> Iterator[Fault]:
    """Scores below the lowest or above the highest that the dataset has."""
    lowest, highest = sheet.dataset.ratings.lowest, sheet.dataset.ratings.highest
    most = math.inf if highest is None else highest
    allowed = f"{lowest:g} and more" if highest is None else f"{lowest:g} to {highest:g}"
    for row in sheet.rows:
        scores = [score for clip in row.annotation.saliency or () for score in clip]
        odd = [score for score in scores if not lowest <= score <= most]
        if odd:
            yield Fault(_RANGE, row, f"{len(odd)} scores as {odd[0]:g}; allowed are {allowed}")


def clips_outside(sheet: Sheet) -> Iterator[Fault]:
    """Scored clips that the video does not have; a duration that is their number explains them."""
    for row in sheet.rows:
        outside = _outside(row.annotation, sheet.clip_len_s)
        if not outside:
            continue
        video = f"a duration of {row.annotation.duration_s:g} s"
        if row.annotation.duration_s == len(row.annotation.clip_ids or ()):
            told = f"{video} for as many scored clips of {sheet.clip_len_s:g} s"
            yield Fault(_COUNT, row, told)
        else:
            told = f"{len(outside)} clips, the first is {outside[0]}, with {video}"
            yield Fault(_CLIPS_OUTSIDE, row, told)


def clips_disagree(sheet: Sheet) -> Iterator[Fault]:
    """Scored clips and moments must tell the same: in QVHighlights one is made of the other. Rows
    whose moments or clips are wrong in themselves are told elsewhere.
    """
    told_elsewhere = {
        fault.row.where for check in (moments, clips_outside) for fault in check(sheet)
    }
    for row in sheet.rows:
        if row.where in told_elsewhere:
            continue
        lacking, first, astray = _disagreeing(row.annotation, sheet.clip_len_s)
        told = [f"{lacking} clips of its moments have no score"] * (lacking > 0)
        told += [f"{len(astray)} clips with a score are in no moment"] * bool(astray)
        if told:
            yield Fault(
                _DISAGREE, row, f"{' and '.join(told)}; the first is {min([*first, *astray])}"
            )


def _widths(row: Annotation) -> set[int]:
    return {len(scores) for scores in row.saliency or ()}


def _outside(row: Annotation, clip_len_s: float) -> list[int]:
    """Scored clips that do not lie in the video."""
    if row.duration_s is None or row.clip_ids is None:
        return []
    if row.clip_spans_s is None:
        clips = Grid(row.duration_s, clip_len_s).n
        return [clip for clip in row.clip_ids if not 0 <= clip < clips]
    spans = zip(row.clip_ids, row.clip_spans_s, strict=True)
    return [clip for clip, (a, b) in spans if not 0 <= a < min(b, row.duration_s)]


def _disagreeing(row: Annotation, clip_len_s: float) -> tuple[int, list[int], list[int]]:
    """How many clips inside moments have no score, and the first of them if there is one; clips
    with a score above 0 that touch no moment.
    """
    if not row.windows or not row.clip_ids or not row.saliency or row.clip_spans_s is not None:
        return 0, [], []
    edges = [(start / clip_len_s, end / clip_len_s) for start, end in row.windows]
    inside = _merged((math.ceil(start), math.floor(end)) for start, end in edges)
    touched = _merged((math.floor(start), math.ceil(end)) for start, end in edges)
    rated = set(row.clip_ids)
    first = next(([clip] for each in inside for clip in each if clip not in rated), [])
    count = sum(each.stop - each.start for each in inside) - sum(_in(c, inside) for c in rated)
    scored = zip(row.clip_ids, row.saliency, strict=False)
    positive = [clip for clip, scores in scored if any(score > 0 for score in scores)]
    return count, first, [clip for clip in positive if not _in(clip, touched)]


def _merged(spans: Iterable[tuple[int, int]]) -> list[range]:
    """The same whole numbers in order, none twice; a moment in a wrong unit has billions of them,
    so they are never written out."""
    found: list[range] = []
    for start, stop in sorted(spans):
        part = range(max(start, found[-1].stop) if found else start, stop)
        if part:
            found.append(part)
    return found


def _in(number: int, spans: Sequence[range]) -> bool:
    place = bisect_right(spans, number, key=lambda each: each.start)
    return place > 0 and number in spans[place - 1]


# --- durations


def stated_durations(sheet: Sheet) -> Iterator[Fault]:
    """A file that gives numbers of clips as durations; reading it made seconds of them."""
    for row in sheet.rows:
        stated = row.annotation.extra.get(_STATED)
        if stated is not None and stated != row.annotation.duration_s:
            told = f"'duration' is {brief(stated)}, and the video has"
            yield Fault(_WAS_COUNT, row, f"{told} {row.annotation.duration_s:g} s")


def duration_units(sheet: Sheet) -> Iterator[Fault]:
    """In no row of many does a moment lie after a tenth of the video: frames, milliseconds?"""
    rows = [row for row in sheet.rows if row.annotation.duration_s and row.annotation.windows]
    last = max(map(_share, rows), default=1.0)
    if len(rows) >= _MANY_ROWS and last < 0.1 and not _unit_of(sheet)[0]:
        for row in rows:
            told = f"{row.annotation.duration_s:g} s, but no moment of the file ends after"
            yield Fault(_DURATION_UNITS, row, f"{told} {last:.1%} of its video")


def several_durations(sheet: Sheet) -> Iterator[Fault]:
    """A video has one length."""
    stated: dict[str, list[float]] = defaultdict(list)
    for row in sheet.rows:
        if row.annotation.duration_s is not None:
            stated[row.annotation.video_id].append(row.annotation.duration_s)
    usual = {video: _usual(durations) or 0.0 for video, durations in stated.items()}
    for row in sheet.rows:
        here, most = row.annotation.duration_s, usual.get(row.annotation.video_id, 0.0)
        if here is not None and abs(here - most) > _ROUNDING_S:
            yield Fault(_DIFFERS, row, f"{here:.10g} s here, {most:.10g} s in other rows")


def uneven_durations(sheet: Sheet) -> Iterator[Fault]:
    """Evaluators cut the last part of a clip off, grids round it: scores may be one clip apart."""
    for row in sheet.rows:
        duration_s, clips = row.annotation.duration_s, row.annotation.clip_ids
        if duration_s is None or clips is None or row.annotation.clip_spans_s is not None:
            continue
        count = duration_s / sheet.clip_len_s
        if abs(count - round(count)) * sheet.clip_len_s > _ROUNDING_S:
            told = f"{duration_s:.10g} s are {count:.3f} clips of {sheet.clip_len_s:g} s"
            yield Fault(_OFF_GRID, row, told)


def longer_durations(sheet: Sheet) -> Iterator[Fault]:
    """Where highlights are all there is, every clip has a score: from the first on without a gap
    and not to the end, the duration or the scores are wrong.
    """
    for row in sheet.rows:
        each = row.annotation
        if each.duration_s is None or not each.clip_ids or each.windows or each.clip_spans_s:
            continue
        scored, clips = len(each.clip_ids), Grid(each.duration_s, sheet.clip_len_s).n
        if scored < clips - 1 and max(each.clip_ids) == scored - 1:
            told = f"{scored} scored clips, but {each.duration_s:.10g} s have {clips}"
            yield Fault(_ON, row, told)


def measured_durations(sheet: Sheet) -> Iterator[Fault]:
    """Durations over a clip away from what the pipeline measured."""
    for row in sheet.rows:
        stated = row.annotation.duration_s
        measured = sheet.lengths_s.get(row.annotation.video_id)
        if stated is None or measured is None:
            continue
        if abs(stated - measured) > sheet.clip_len_s + _ROUNDING_S:
            told = f"{stated:.10g} s here, {measured:.10g} s in the store"
            yield Fault(_MEASURED, row, told)


CHECKS: tuple[Check, ...] = (
    empty_queries,
    same_qids,
    same_rows,
    mixed_truth,
    moments,
    repeated_moments,
    saliency_lengths,
    saliency_ranges,
    clips_outside,
    clips_disagree,
    stated_durations,
    duration_units,
    several_durations,
    uneven_durations,
    longer_durations,
    measured_durations,
)
"""All checks of one file."""
