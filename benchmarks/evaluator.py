"""Can a user score after every epoch without noticing?

All metrics of QD-DETR's published QVHighlights validation predictions (1,550 queries, ten windows
and about 75 saliency scores each), beside the same metrics computed one query at a time with
scikit-learn, and of 17,505 ActivityNet Captions queries with ten windows each. Both sides run in
this process and must agree on every number. Without the project's shared folder of real files the
input is made up, of the same shape; the table says which it was.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Benchmark, cpu_seconds
from plain_evaluator import Scores, plain_highlights, plain_moments

from data.annotations import Annotation, load_annotations
from training.metrics import METRICS, Measured
from training.metrics.uncertainty import Resampling, intervals
from training.predictions import Prediction, in_order, read_predictions

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("STORYLINE_SHARED", ROOT.parent / "shared"))
QVHIGHLIGHTS = SHARED / "annotations" / "qvhighlights" / "highlight_val_release.jsonl"
ACTIVITYNET = SHARED / "annotations" / "activitynet_captions" / "activitynet_val_release.jsonl"
PUBLISHED = SHARED / "predictions" / "qd_detr_val"
QUERIES = {"QVHighlights": 1_550, "ActivityNet": 17_505}

Row = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Annotations and predictions of the same queries, in files.

    Args:
        name: for the table.
        dataset: format of the annotations.
        annotations, predictions: JSONL.
    """

    name: str
    dataset: str
    annotations: Path
    predictions: Path

    def read(self) -> tuple[list[Annotation], list[Prediction]]:
        """As the trainer reads them, checked."""
        annotations = load_annotations(self.dataset, self.annotations)
        return annotations, in_order(annotations, read_predictions(self.predictions))

    def rows(self) -> tuple[list[Row], list[Row]]:
        """As JSON gives them, in the order of the annotations."""
        truth, predicted = rows_of(self.annotations), rows_of(self.predictions)
        by_qid = {row["qid"]: row for row in predicted}
        return truth, [by_qid[row["qid"]] for row in truth]


def main() -> None:
    """Measure and print."""
    real = PUBLISHED.is_dir() and QVHIGHLIGHTS.is_file() and ACTIVITYNET.is_file()
    what = "real files" if real else f"made-up files of their shape: there is no {SHARED}"
    bench = Benchmark(f"Can a user score after every epoch without noticing? ({what})")
    with tempfile.TemporaryDirectory() as scratch:
        highlights, moments = (real_files if real else made_up_files)(Path(scratch))
        measured = compare(bench, highlights, both, cpu_s=0.25, ratio=40)
        how = Resampling()
        interval_s = cpu_seconds(lambda: intervals(measured, how), repeats=1)
        bench.figure(f"95 % intervals, {how.samples:,} samples", interval_s, "CPU s")
        compare(bench, moments, plain_moments, cpu_s=1.0)
    bench.finish()


def both(truth: list[Row], predicted: list[Row]) -> Scores:
    """Moments and highlights, one query at a time."""
    return plain_moments(truth, predicted) | plain_highlights(truth, predicted)


def compare(
    bench: Benchmark,
    split: Split,
    plain: Callable[[list[Row], list[Row]], Scores],
    *,
    cpu_s: float,
    ratio: float | None = None,
) -> Measured:
    """Time, and agreement on every number, of our evaluator and the plain one."""
    annotations, predictions = split.read()
    truth, predicted = split.rows()
    metric = METRICS.get("mr_hd")

    def fast() -> Scores:
        return flat(metric(annotations, predictions, clip_len_s=2.0, mode="official").scores())

    slow: list[Scores] = []
    first_s = cpu_seconds(fast, repeats=1)
    fast_s = cpu_seconds(fast)
    plain_s = cpu_seconds(lambda: slow.append(plain(truth, predicted)), repeats=1)
    agreement(bench, f"{split.name}, {len(annotations):,} queries: ", fast(), slow[0])
    if (published := split.predictions.with_name("expected.json")).is_file():
        agreement(bench, "published: ", fast(), flat(json.loads(published.read_text())))
    bench.figure(f"all {len(fast())} numbers", fast_s, "CPU s", at_most=cpu_s)
    bench.figure("the first time in this process", first_s, "CPU s")
    bench.figure(f"{len(slow[0])} of them, one query at a time", plain_s, "CPU s")
    bench.figure("ratio", plain_s / fast_s, "x", at_least=ratio)
    bench.figure("reading and checking both files", cpu_seconds(split.read, 3), "CPU s")
    return metric(annotations, predictions, clip_len_s=2.0, mode="official")


def agreement(bench: Benchmark, what: str, ours: Scores, others: Scores) -> None:
    """How many numbers the others have, and how many of those are not exactly ours."""
    wrong = [key for key, value in others.items() if ours.get(key, "none") != value]
    bench.figure(f"{what}{len(others)} numbers, not equal", len(wrong), at_most=0)


def flat(scores: Mapping[str, Any], above: tuple[str, ...] = ()) -> Scores:
    """Nested numbers by the path of their names."""
    found: Scores = {}
    for name, value in scores.items():
        path = (*above, name)
        found |= flat(value, path) if isinstance(value, Mapping) else {path: value}
    return found


def real_files(scratch: Path) -> tuple[Split, Split]:
    """Published predictions, and random ones around the real moments of ActivityNet."""
    published = PUBLISHED / "predictions.jsonl"
    predicted = save(scratch / "activitynet_pred.jsonl", guesses(rows_of(ACTIVITYNET)))
    return (
        Split("QVHighlights", "qvhighlights", QVHIGHLIGHTS, published),
        Split("ActivityNet", "activitynet_captions", ACTIVITYNET, predicted),
    )


def made_up_files(scratch: Path) -> tuple[Split, Split]:
    """Random queries of the shape of the real files."""
    rng = np.random.default_rng(0)
    many, few = QUERIES["ActivityNet"], QUERIES["QVHighlights"]
    truth = [query(qid, rng, int(rng.integers(1, 5)), rng.uniform(60, 150)) for qid in range(few)]
    rated = [row | highlights(row, rng) for row in truth]
    pairs = zip(guesses(rated), rated, strict=True)
    answers = [answer | saliency(rng, row["duration"]) for answer, row in pairs]
    others = [query(qid, rng, 1, rng.uniform(10, 240)) for qid in range(many)]
    return (
        Split(
            "QVHighlights",
            "qvhighlights",
            save(scratch / "qvhighlights.jsonl", rated),
            save(scratch / "qvhighlights_pred.jsonl", answers),
        ),
        Split(
            "ActivityNet",
            "activitynet_captions",
            save(scratch / "activitynet.jsonl", others),
            save(scratch / "activitynet_pred.jsonl", guesses(others)),
        ),
    )


def query(qid: int, rng: np.random.Generator, moments: int, duration_s: float) -> Row:
    """A query whose moments are whole clips that do not overlap."""
    clips = int(duration_s / 2)
    ends = np.sort(rng.choice(clips + 1, size=2 * moments, replace=False)) * 2
    return {
        "qid": qid,
        "query": "a person does something",
        "duration": 2 * clips,
        "vid": f"v{qid}",
        "relevant_windows": ends.reshape(-1, 2).tolist(),
    }


def highlights(row: Row, rng: np.random.Generator) -> Row:
    """Three ratings of 0 to 4 for each clip of the moments."""
    clips = [clip for start, end in row["relevant_windows"] for clip in range(start // 2, end // 2)]
    return {
        "relevant_clip_ids": clips,
        "saliency_scores": rng.integers(0, 5, (len(clips), 3)).tolist(),
    }


def saliency(rng: np.random.Generator, duration_s: float) -> Row:
    """A score per clip with four decimals, as half-precision models write them."""
    scores = rng.normal(size=int(duration_s / 2)).astype(np.float16)
    return {"pred_saliency_scores": [round(float(each), 4) for each in scores]}


def guesses(rows: Iterable[Row]) -> list[Row]:
    """Ten windows per query: some near a true moment, the others anywhere in the video."""
    rng = np.random.default_rng(1)
    return [
        {
            "qid": row["qid"],
            "query": row["query"],
            "vid": row["vid"],
            "pred_relevant_windows": windows(row, rng),
        }
        for row in rows
    ]


def windows(row: Row, rng: np.random.Generator) -> list[list[float]]:
    """(start_s, end_s, score), best first."""
    true = np.asarray(row["relevant_windows"], float)
    near = true[rng.integers(len(true), size=4)]
    near = near + rng.normal(scale=0.1, size=(4, 2)) * (near[:, 1:] - near[:, :1])
    spans = np.concatenate([near, rng.uniform(0, row["duration"], (6, 2))])
    scores = np.sort(rng.uniform(size=10))[::-1]
    spans = np.sort(spans.clip(0, row["duration"]), axis=1)[rng.permutation(10)]
    return np.concatenate([spans, scores[:, None]], axis=1).round(4).tolist()


def rows_of(path: Path) -> list[Row]:
    """The JSON objects of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def save(path: Path, rows: Iterable[Row]) -> Path:
    """The file, written."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


if __name__ == "__main__":
    main()
