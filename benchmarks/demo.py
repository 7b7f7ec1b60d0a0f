"""Does the whole road lead anywhere? Runs `pipeline demo` and scores what came out.

python benchmarks/demo.py              # renders, extracts and trains anew, in a scratch folder
python benchmarks/demo.py --out demo   # what `make demo` left there is used again
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Benchmark

from data.store import Store
from pipeline.events.evaluate import score_store

R1 = "MR-full-R1@0.5"


def main() -> None:
    """Run the demo, or take one that is there, and print its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="folder of a demo that is used again")
    bench = Benchmark("Does the demo learn, and do its pseudo-events find the cuts?", parser)
    with tempfile.TemporaryDirectory() as scratch:
        out = bench.args.out or Path(scratch) / "demo"
        fresh = not (out / "report.html").exists()
        began = time.monotonic()
        command = [str(Path(sys.executable).with_name("pipeline")), "demo", "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if fresh:
            bench.figure("whole demo", (time.monotonic() - began) / 60, "min", at_most=6)
        _score_models(bench, out / "runs")
        _score_events(bench, out)
    bench.finish()


def _score_models(bench: Benchmark, runs: Path) -> None:
    trained = _recall(runs / "qd_detr/metrics.json")
    untrained, blind = _recall(runs / "untrained.json"), _recall(runs / "blind.json")
    bench.figure("val R1@0.5, trained", trained, "%", at_least=60)
    bench.figure("val R1@0.5, trained with narratives", _recall(runs / "qd_detr_tea/metrics.json"))
    bench.figure("val R1@0.5, untrained", untrained, "%")
    bench.figure("val R1@0.5, blind baseline", blind, "%")
    bench.figure("trained / untrained", trained / max(untrained, 1e-9), "x", at_least=2.5)
    bench.figure("trained / blind", trained / max(blind, 1e-9), "x", at_least=2.5)


def _recall(file: Path) -> float:
    metrics = json.loads(file.read_text())
    return float(metrics.get("best", metrics)["brief"][R1])


def _score_events(bench: Benchmark, out: Path) -> None:
    scores = score_store(Store.open(out / "store"), out / "corpus" / "boundaries.jsonl")
    for name, figures in scores.items():
        for key, tolerance in (("f1_half", "0.5 s"), ("f1_one", "1 s")):
            bench.figure(f"boundary F1 at {tolerance}, {name}", figures[key])


if __name__ == "__main__":
    main()
