"""Can a user evaluate after every epoch without noticing?

The official QVHighlights metrics of QD-DETR's published validation predictions (1,550 queries, ten
windows and about 75 saliency scores each), beside the same metrics computed one query at a time.
The published evaluator itself needs scikit-learn, which is not installed here; its curves make it
slower than the plain loop (7.4 to 7.7 CPU s, specs/evaluator_reference.md §1).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from harness import Benchmark, cpu_seconds
from plain_evaluator import plain_qvhighlights

from data.annotations import load_annotations
from training.metrics import Scores, qvhighlights
from training.predictions import in_order, read_predictions

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("STORYLINE_SHARED", ROOT.parent / "shared"))
PREDICTIONS = SHARED / "predictions" / "qd_detr_val"
ANNOTATIONS = SHARED / "annotations" / "qvhighlights" / "highlight_val_release.jsonl"


def flat(scores: Scores) -> dict[str, dict[str, float]]:
    """The nesting of the plain evaluator."""
    out = {key: value for key, value in scores.items() if key.startswith("HL")}
    for name in ("full", "long", "middle", "short"):
        out |= {f"{name}/{metric}": value for metric, value in scores[name].items()}
    return out


def main() -> None:
    """Measure and print."""
    bench = Benchmark("Can a user evaluate after every epoch without noticing?")
    if not PREDICTIONS.is_dir():
        print(f"skipped: the published predictions are not at {PREDICTIONS}; set STORYLINE_SHARED")
        return
    annotations = load_annotations("qvhighlights", ANNOTATIONS)
    predictions = in_order(annotations, read_predictions(PREDICTIONS / "predictions.jsonl"))
    fast_s = cpu_seconds(lambda: qvhighlights(annotations, predictions))
    plain_s = cpu_seconds(lambda: plain_qvhighlights(annotations, predictions), repeats=3)

    scores = qvhighlights(annotations, predictions)
    expected = json.loads((PREDICTIONS / "expected.json").read_text())
    agree = scores == expected and flat(scores) == plain_qvhighlights(annotations, predictions)
    bench.figure("all keys equal the published scores (1 = yes)", agree, at_least=1)
    bench.figure("all metrics", fast_s, "CPU s", at_most=0.3)
    bench.figure("all metrics, one query at a time", plain_s, "CPU s")
    bench.figure("ratio", plain_s / fast_s, "x", at_least=8)
    bench.finish()


if __name__ == "__main__":
    main()
