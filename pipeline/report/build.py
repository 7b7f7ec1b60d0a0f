"""Puts the report together: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from data.annotations.types import Annotation
from data.charts import line_chart, timeline
from data.store import Store
from data.store.files import atomic_write
from data.terminal import decimals_of
from data.video.types import Video
from pipeline.events.evaluate import read_truth, score_store
from pipeline.report.collect import (
    BRIEF,
    MetricRow,
    answered,
    collect_timeline,
    history_lines,
    predictions_of,
    read_metrics,
    shown_metrics,
)
from pipeline.status import StageStatus, read_status

__all__ = ["ReportInputs", "report_of_runs", "write_report"]


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made of.

    Args:
        title: heading of the page.
        lead: one sentence below it.
        store: the store of shards.
        runs: run directories of the trainer by display name; the first one's predictions are drawn.
        metrics: lines of the metric table, in order.
        videos: media files by id, for the frames.
        boundaries: JSONL of true boundaries (`vid`, `duration`, `boundaries`); None if not known.
        shown: how many queries are drawn.
        notes: sentences that a reader must know first (e.g. that weights are random).
        metric_remarks: sentences below the metric table.
    """

    title: str
    lead: str
    store: Store
    runs: Mapping[str, Path]
    metrics: Sequence[MetricRow]
    videos: Mapping[str, Video]
    boundaries: Path | None = None
    shown: int = 6
    notes: Sequence[str] = ()
    metric_remarks: Sequence[str] = field(default_factory=tuple)


def report_of_runs(
    store: Store,
    videos: Iterable[Video],
    runs: Sequence[Path],
    scores: Sequence[Path],
    boundaries: Path | None,
    shown: int,
) -> ReportInputs:
    """A report of trained runs beside files of scores, named after their folders and files.

    Raises:
        UsageError: a run that is not finished, or a file without scores.
    """
    metrics = [read_metrics(each / "metrics.json", each.name, "best epoch", "run") for each in runs]
    metrics += [read_metrics(each, each.stem, "", "scores") for each in scores]
    return ReportInputs(
        title=store.dataset,
        lead=f"Store {store.path}, {len(runs)} runs.",
        store=store,
        runs={each.name: each for each in runs},
        metrics=metrics,
        videos={video.id: video for video in videos},
        boundaries=boundaries,
        shown=shown,
    )


def write_report(inputs: ReportInputs, file: Path) -> None:
    """Write the page; an existing file is replaced at once, never half."""
    columns = shown_metrics(inputs.metrics)
    decimals = decimals_of(value for row in inputs.metrics for value in row.scores.values())
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html").render(
        title=inputs.title,
        lead=inputs.lead,
        notes=inputs.notes,
        style=Markup((Path(__file__).parent / "report.css").read_text()),
        metric_names=list(columns),
        metrics=[_metric_row(row, columns.values(), decimals) for row in inputs.metrics],
        metric_remarks=inputs.metric_remarks,
        charts=_charts(inputs, columns),
        events=_events(inputs),
        stages=[_stage_row(inputs.store, each) for each in read_status(inputs.store)],
        timelines=_timelines(inputs),
        footer=f"Store {inputs.store.path}, dataset {inputs.store.dataset}.",
    )
    atomic_write(file, page.encode())


def _metric_row(row: MetricRow, keys: Iterable[str], decimals: int) -> dict[str, Any]:
    values = [row.scores.get(key) for key in keys]
    cells = ["–" if value is None else f"{value:.{decimals}f}" for value in values]
    return {"name": row.name, "about": row.about, "role": row.role, "cells": cells}


def _charts(inputs: ReportInputs, columns: Mapping[str, str]) -> list[Markup]:
    name = _charted(inputs.metrics, columns)
    key = columns.get(name, name)
    lines = [history_lines(folder, run, key) for run, folder in inputs.runs.items()]
    return [
        Markup(line_chart("Training loss", [loss for loss, _ in lines], "loss")),
        Markup(line_chart(f"Validation {name}", [score for _, score in lines], name)),
    ]


def _charted(rows: Sequence[MetricRow], columns: Mapping[str, str]) -> str:
    """The column that is drawn over epochs: R1@0.5, or what chose the best epoch of a run."""
    usual = "R1@0.5"
    if columns.get(usual) == BRIEF[usual]:
        return usual
    chosen = next((row.selected_by for row in rows if row.selected_by), None)
    return next((name for name, key in columns.items() if key == chosen), usual)


def _events(inputs: ReportInputs) -> list[dict[str, Any]]:
    if inputs.boundaries is None or "events" not in inputs.store.current:
        return []
    scores = score_store(inputs.store, inputs.boundaries)
    return [{"name": name, **figures} for name, figures in scores.items()]


def _stage_row(store: Store, status: StageStatus) -> dict[str, Any]:
    return {
        "stage": status.stage,
        "done": status.done,
        "failed": status.failed,
        "megabytes": status.bytes / 1e6,
        "recipe": status.recipe,
        "weights": ", ".join(sorted(_weight_kinds(store.recipe(status.stage).params))),
    }


def _weight_kinds(params: Any) -> set[str]:
    """Every `weights.kind` in the parameters of a recipe, however deep."""
    if not isinstance(params, Mapping):
        return set()
    weights = params.get("weights")
    here = {str(weights["kind"])} if isinstance(weights, Mapping) and "kind" in weights else set()
    return here.union(*(_weight_kinds(value) for value in params.values()))


def _timelines(inputs: ReportInputs) -> list[dict[str, Any]]:
    if not inputs.runs:
        return []
    first = next(iter(inputs.runs.values()))
    predictions = predictions_of(first)
    true_cuts = read_truth(inputs.boundaries) if inputs.boundaries else {}
    chosen = _one_query_per_video(answered(inputs.store, predictions), inputs)
    drawn = [
        collect_timeline(
            inputs.store,
            inputs.videos[each.video_id],
            each,
            predictions[str(each.qid)],
            true_cuts[each.video_id].raters[0] if each.video_id in true_cuts else (),
        )
        for each in chosen
    ]
    return [
        vars(each) | {"picture": Markup(timeline(each.duration_s, each.tracks))} for each in drawn
    ]


def _one_query_per_video(rows: Sequence[Annotation], inputs: ReportInputs) -> list[Annotation]:
    first_of: dict[str, Annotation] = {}
    for row in rows:
        if row.video_id in inputs.videos:
            first_of.setdefault(row.video_id, row)
    return list(first_of.values())[: inputs.shown]
