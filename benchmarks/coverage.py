"""How many clips hold a caption of their own, on the real durations of data sets?

TEA's Eq. 3 gives a clip the mean of the captions inside it and says nothing of a clip without any.
Counted here by the code that makes captions and narratives, with one caption a second, and beside
it by the equation as it is written: snippets `[k·D/Lv, (k+1)·D/Lv]`, both ends in, pooled to at
most 128 (the measurement of specs/tea_lmr_cqval_splits.md, finding 3, which it must repeat).

    python benchmarks/coverage.py --annotations ../shared/annotations
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import Benchmark

from data.annotations import load_annotations
from data.grid import Grid
from data.video.types import VideoFacts
from pipeline.stages.align import align
from pipeline.stages.caption_slots import Slots

EVERY_SECOND = Slots("timestamp", 1.0, 0.0, 1.0, 64, 0, 0)


def times_s(duration_s: float) -> np.ndarray:
    """When the stage of captions asks for one, by default."""
    facts = VideoFacts(duration_s, 30, 1, 64, 64, 0, "h264", "yuv420p", 1, False, 0)
    parts = range(EVERY_SECOND.parts(facts))
    slots = [slot for part in parts for slot in EVERY_SECOND.of_part("", facts, part)]
    return np.array([slot.start_s for slot in slots])


def empty_clips(durations: Sequence[float], clip_len_s: float) -> tuple[float, int]:
    """Percent of our clips without a caption, and how many clips there are."""
    clips = covered = 0
    for duration in durations:
        times = times_s(duration)
        _, coverage = align(times, np.zeros((len(times), 1)), Grid(duration, clip_len_s))
        clips, covered = clips + len(coverage), covered + int(coverage.sum())
    return 100 * (1 - covered / clips), clips


def empty_snippets(durations: Sequence[float], per_s: float, most: int = 128) -> float:
    """Percent of TEA's snippets, as written, without a caption."""
    snippets = empty = 0
    for duration in durations:
        count = min(max(1, math.floor(duration * per_s)), most)
        edges = np.arange(count + 1) * (duration / count)
        times = times_s(duration)
        first = np.searchsorted(times, edges[:-1], "left")
        after = np.searchsorted(times, edges[1:], "right")
        snippets, empty = snippets + count, empty + int((after <= first).sum())
    return 100 * empty / snippets


def fill_distance_s(durations: Sequence[float], clip_len_s: float) -> float:
    """Seconds from the centre of a filled clip to the caption that fills it, on average, for
    `nearest`: an embedding that is the time of its caption tells which one it was.
    """
    total = count = 0.0
    for duration in durations:
        times, grid = times_s(duration), Grid(duration, clip_len_s)
        narrative, coverage = align(times, times[:, None], grid, "nearest")
        far = np.abs(narrative[:, 0] - grid.centres_s)[coverage == 0]
        total, count = total + float(far.sum()), count + len(far)
    return total / max(count, 1)


def durations_of(annotations: Path) -> dict[str, list[float]]:
    """Durations of the videos that have queries, by data set."""
    charades = annotations / "charades_sta"
    lengths = json.loads((charades / "durations.json").read_text())
    files = ("charades_sta_train.txt", "charades_sta_test.txt")
    lines = [line for file in files for line in (charades / file).read_text().splitlines()]
    found = {"Charades-STA": {line.split(" ")[0]: 0.0 for line in lines}}
    found["Charades-STA"] = {name: lengths[name] for name in found["Charades-STA"]}
    for name, file in (
        ("QVHighlights val", "qvhighlights/highlight_val_release.jsonl"),
        ("TACoS val", "tacos/tacos_val_release.jsonl"),
        ("ActivityNet val", "activitynet_captions/activitynet_val_release.jsonl"),
    ):
        rows = load_annotations(
            "custom" if "qv" not in file else "qvhighlights", annotations / file
        )
        found[name] = {row.video_id: row.duration_s for row in rows}
    return {name: list(each.values()) for name, each in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", type=Path, default=Path("../shared/annotations"))
    bench = Benchmark("How many clips hold a caption of their own?", parser)
    if not bench.args.annotations.is_dir():
        raise SystemExit(f"no annotations in {bench.args.annotations}: name them: --annotations")
    found = durations_of(bench.args.annotations)
    charades = found["Charades-STA"]
    for name, per_s, spec in (("I3D", 2.0, 44.5), ("VGG", 6.0, 75.0)):
        share = empty_snippets(charades, per_s)
        what = f"Charades-STA, Eq. 3 as written, {name} {per_s:g}/s: empty"
        bench.figure(what, share, "%", at_least=spec - 0.15, at_most=spec + 0.15)
    for name, durations in found.items():
        for clip_len_s in (1 / 6, 0.5, 1.0, 2.0):
            share, _ = empty_clips(durations, clip_len_s)
            most = 0.0 if clip_len_s >= 1 else None
            what = f"{name}, our clips of {clip_len_s:.3g} s: empty"
            bench.figure(what, share, "%", at_most=most)
    for clip_len_s in (1 / 6, 0.5):
        what = f"Charades-STA, clips of {clip_len_s:.3g} s: filled from a caption"
        bench.figure(what, fill_distance_s(charades, clip_len_s), "s away", at_most=0.6)
    bench.finish()


if __name__ == "__main__":
    main()
