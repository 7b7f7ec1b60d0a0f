"""Does every model of the family learn, and what do the parts of the papers add?

Every base in `fixed`, every paper with and without its parts, and every base in `paper` is trained
narrow and for the same budget on the synthetic corpus: batch, schedule and seed of `trainer fit
--config qd_detr/demo`, its rate halved and its epochs doubled (decoders without anchors, those of
Moment-DETR and LMR, learn little at that rate, and little in so few epochs). One table: scores on
the validation split, parameters, seconds of a step; the blind baseline beside them. All features,
and the layers of LLMEPET's language model, are random networks: the table says that the parts
train, not what they are worth on films.

    python benchmarks/family.py --store demo/store --out runs/family   # of `pipeline demo`
    python benchmarks/family.py --models lmr,tea --epochs 4            # makes a corpus first

Controls show what no preset does, because it does not learn here: saliency without a loss that
tells which clips are salient, and edges that widen to any proposal. The check leaves them out.

What is finished in --out is not trained again. --write puts the whole table into docs/models.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from family_tables import table, with_blocks
from harness import Benchmark
from rich.console import Console
from rich.table import Table

from data.config import load_config
from data.errors import StorylineError, UsageError
from models.retrieval import MODELS, RetrievalModel, create_model
from training.config import TrainerConfig, shipped_or_file
from training.fit import fit
from training.loop import Progress, Reporter
from training.session import Session, predict_blind
from training.stopping import Stop

CONFIG = Path("qd_detr/demo")
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
RATE = 1e-3
SCORES = {
    "R1@0.5": "MR-full-R1@0.5",
    "R1@0.7": "MR-full-R1@0.7",
    "mAP": "MR-full-mAP",
    "HD mAP": "HL-min-Good-mAP",
}
NARROW: Mapping[str, Any] = {
    "slot_hidden": 128,
    "similarity_hidden": 128,
    "drop_path": 0.0,
    "queue_length": 512,
    "weights": "random",
    "numbers": "float32",
    "llm_width": 128,
    "llm_heads": 4,
    "llm_hidden": 256,
    "layers": [0, 1],
}
"""Options of those models that have them, beside those of the configuration."""


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Args:
        title: what is trained; unique.
        model: the base.
        preset: its preset.
        options: of the base, beside the narrow ones.
        plugins: by name.
        control: whether it need not learn.
    """

    title: str
    model: str
    preset: str = "fixed"
    options: Mapping[str, Any] = field(default_factory=dict)
    plugins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    control: bool = False


def entries() -> list[Entry]:
    """All bases, the papers with and without their parts, `paper` where it differs, controls."""
    fixed = [Entry(f"{name} (fixed)", name) for name in MODELS]
    differing = [name for name in MODELS if MODELS.get(name).presets.get("paper")]
    paper = [Entry(f"{name} (paper)", name, "paper") for name in differing]
    return fixed + paper + papers() + controls()


def papers() -> list[Entry]:
    """Papers whose parts can be taken away; the whole ones are among the bases where they are."""
    places = {"places": "sine", "position_coef": 0.0}
    emb_tea: Mapping[str, Mapping[str, Any]] = {"tea": {}}
    return [
        Entry("LLMEPET with no refiner", "llmepet", options={"weights": "none"}),
        Entry("LLMEPET with identity for a refiner", "llmepet", options={"weights": "identity"}),
        Entry("LLMEPET without event regulation", "llmepet", options={"event_coef": 0.0}),
        Entry("LLMEPET without position regulation", "llmepet", options=places),
        Entry(
            "LD-DETR without Distill Align",
            "ld_detr",
            options={"align_weight": 0.0, "sim_weight": 0.0},
        ),
        Entry("LD-DETR without convolutions", "ld_detr", options={"conv_blocks": 0}),
        Entry("LD-DETR with one loop", "ld_detr", options={"loops": 1}),
        Entry("TEA: EMB and narratives", "emb", plugins=emb_tea),
        Entry("TEA: EMB, narratives, paragraph", "emb", plugins={**emb_tea, "tea_paragraph": {}}),
        Entry("TEA: QD-DETR and narratives", "qd_detr", plugins=emb_tea),
        Entry("LMR w/o WS: two fusions", "lmr", options={"share_vqf": False}),
        Entry("LMR w/o VQF: descriptions not fused", "lmr", options={"vqf": "clips"}),
        Entry("LMR w/o VCE: no descriptions", "lmr", options={"descriptions": False}),
        Entry("LMR w/o VFE: no visual features", "lmr", options={"visual": False}),
        Entry("LMR w/o LMQ: no language in its queries", "lmr", options={"query_content": "none"}),
    ]


def controls() -> list[Entry]:
    """What the words of two papers, or a base without part of its losses, would be."""
    off: Mapping[str, Any] = {"saliency_weight": 0.0}
    alone: Mapping[str, Any] = {"saliency": "neg-only"}
    return [
        Entry("Moment-DETR, no saliency loss", "moment_detr", options=off, control=True),
        Entry("QD-DETR, no saliency loss", "qd_detr", options=off, control=True),
        Entry("LMR, saliency of wrong queries alone", "lmr", options=alone, control=True),
        Entry("EMB, no threshold", "emb", "paper", options={"threshold": "none"}, control=True),
    ]


class Stopwatch:
    """A reporter that notes how long steps take."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: tuple[int, float] | None = None

    def step(self, epoch: int, batch: int, batches: int) -> None:
        """A step is done; the first of an epoch waits for other things and is not counted."""
        now = time.perf_counter()
        if self._last is not None and self._last[0] == epoch:
            self.seconds.append(now - self._last[1])
        self._last = epoch, now

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Nothing."""


def train(entry: Entry, store: Path, out: Path, epochs: int) -> dict[str, Any]:
    """Train one entry, or read what was trained before.

    Returns:
        `scores` of the best epoch, `parameters`, `seconds` of a step.

    Raises:
        UsageError: what was trained before had other options.
    """
    done = out / "row.json"
    config, watch = _config(entry, store, epochs), Stopwatch()
    model = config.model.model_dump(mode="json")
    if done.exists():
        row: dict[str, Any] = json.loads(done.read_text())
        if row.get("model") != model:
            raise UsageError(f"{out} holds a model with other options; remove it, or take --out")
        return row

    def report(progress: Progress, select: str) -> nullcontext[Reporter]:
        return nullcontext(watch)

    run, progress = fit(
        config,
        out,
        resume=False,
        allow_overlap=False,
        tell=lambda sentence: None,
        report=report,
        stop=Stop(),
    )
    weights = run.checkpoint("last")["model"]
    names = [name for name, _ in _built(model).named_parameters()]
    row = {
        "title": entry.title,
        "model": model,
        "scores": (progress.best or {})["scores"]["brief"],
        "parameters": sum(weights[name].numel() for name in names),
        "seconds": statistics.median(watch.seconds),
    }
    done.write_text(json.dumps(row, indent=2) + "\n")
    return row


def _config(entry: Entry, store: Path, epochs: int) -> TrainerConfig:
    base = load_config(TrainerConfig, shipped_or_file(CONFIG), [f"data.store={store}"])
    known = MODELS.get(entry.model).options.model_fields
    small = {**base.model.options, **NARROW, "epochs": epochs}
    narrow = {key: x for key, x in small.items() if key in known}
    model = {
        "name": entry.model,
        "preset": entry.preset,
        "options": {**narrow, **entry.options},
        "plugins": {key: dict(each) for key, each in entry.plugins.items()},
    }
    reads = _built(model).reads
    data = {"narratives": "side.narrative" in reads, "events": "events" in reads}
    values = base.model_dump()
    values["model"] = model
    values["data"] |= data
    values["optim"]["lr"] = RATE
    values["loop"] |= {"epochs": epochs, "save_every": epochs}
    values["eval"] |= {"every": max(1, epochs // 6)}
    return TrainerConfig(**values)


def _built(model: Mapping[str, Any]) -> RetrievalModel:
    """A model without numbers, for features of any width: what it reads and has."""
    rest = {key: each for key, each in model.items() if key not in ("name", "options")}
    with torch.device("meta"):
        return create_model(
            model["name"],
            video_dim=18,
            text_dim=16,
            side_dims={"narrative": 16},
            **rest,
            **model["options"],
        )


def blind(store: Path) -> Mapping[str, Any]:
    """Scores of the blind baseline."""
    config = load_config(TrainerConfig, shipped_or_file(CONFIG), [f"data.store={store}"])
    session = Session(config, lambda sentence: None)
    split = session.split(config.eval.split)
    brief: Mapping[str, Any] = session.score(split, predict_blind(session, split))["brief"]
    return brief


def main() -> None:
    """Train all, print the table, and check that all beat the blind baseline."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, help="store that `pipeline demo` left")
    parser.add_argument("--out", type=Path, help="folder of the runs, which are kept")
    parser.add_argument("--epochs", type=int, default=72, help="of every model")
    parser.add_argument("--models", default="", help="only rows with one of these, by comma")
    parser.add_argument("--write", action="store_true", help="put the table into docs/models.md")
    bench = Benchmark("Do all models beat the blind baseline?", parser)
    args = bench.args
    if args.write and args.models:
        parser.error("--write puts the whole table into the page; leave --models out")
    chosen = [each for each in entries() if _wanted(each, args.models.split(","))]
    with tempfile.TemporaryDirectory() as scratch:
        store = args.store or _demo_store(Path(scratch) / "demo")
        out = args.out or Path(scratch) / "runs"
        floor = blind(store)
        rows, faults = _rows(chosen, store, out / f"{args.epochs}-epochs", args.epochs)
    _print(rows, floor, args.epochs)
    if args.write and not faults:
        text = _markdown(rows, floor)
        PAGE.write_text(with_blocks(PAGE.read_text(), {"learned": text}))
    for fault in faults:
        print(fault)
    asked = sum(not entry.control for entry in chosen)
    score = SCORES["R1@0.5"]
    better = sum(row["scores"][score] > floor[score] for row in rows if not row["control"])
    bench.figure("rows that beat the blind baseline in R1@0.5", better, at_least=asked)
    bench.finish()


def _wanted(entry: Entry, words: Sequence[str]) -> bool:
    text = f"{entry.title} {entry.model}".lower()
    return any(word.strip().lower() in text for word in words)


def _rows(
    chosen: Sequence[Entry], store: Path, out: Path, epochs: int
) -> tuple[list[dict[str, Any]], list[str]]:
    rows, faults = [], []
    for entry in chosen:
        began, folder = time.monotonic(), out / _folder(entry.title)
        try:
            row = train(entry, store, folder, epochs)
        except StorylineError as error:
            faults.append(f"{entry.title}: {error}")
            continue
        rows.append({**row, "control": entry.control})
        found = row["scores"][SCORES["R1@0.5"]]
        print(f"{entry.title}: R1@0.5 {found}, {time.monotonic() - began:.0f} s", file=sys.stderr)
    return rows, faults


def _folder(title: str) -> str:
    return "".join(each if each.isalnum() else "_" for each in title)


def _demo_store(out: Path) -> Path:
    command = [str(Path(sys.executable).with_name("pipeline")), "demo", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out / "store"


def _print(rows: Sequence[Mapping[str, Any]], floor: Mapping[str, Any], epochs: int) -> None:
    shown = Table(title=f"validation split, best of {epochs} epochs", title_justify="left")
    shown.add_column("model")
    for name in (*SCORES, "parameters", "s/step"):
        shown.add_column(name, justify="right")
    shown.add_row("blind baseline", *_scores(floor), "-", "-")
    for row in rows:
        size, seconds = f"{row['parameters']:,}", f"{row['seconds']:.3f}"
        shown.add_row(_title(row), *_scores(row["scores"]), size, seconds)
    Console(width=110).print(shown)


def _markdown(rows: Sequence[Mapping[str, Any]], floor: Mapping[str, Any]) -> str:
    """Without seconds: a table of hours is seldom made on a quiet machine."""
    lines = [["blind baseline", *_scores(floor), ""]]
    lines += [[_title(row), *_scores(row["scores"]), f"{row['parameters']:,}"] for row in rows]
    return table(" | ".join(["model", *SCORES, "parameters"]), lines)


def _title(row: Mapping[str, Any]) -> str:
    return f"control: {row['title']}" if row["control"] else str(row["title"])


def _scores(brief: Mapping[str, Any]) -> list[str]:
    return [f"{brief[key]:.1f}" for key in SCORES.values()]


if __name__ == "__main__":
    main()
