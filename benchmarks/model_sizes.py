"""How large is every model of the family, and is that as large as the public code?

    python benchmarks/model_sizes.py [--check] [--json FILE]
    python benchmarks/model_sizes.py --write      # the tables of docs/models.md

At the published sizes for QVHighlights (SlowFast + CLIP, 2,818 features a clip and 512 a word), one
video of 75 clips and a query of 25 words. Parameters of the preset `release` stand beside those of
the public code, at most 5 % away. FLOPs are those of matrix products and convolutions, two for a
multiply and add; a training step's forward pass has the extra passes and no losses.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from family_sizes import HEADER, PUBLIC, Size, cells, measure
from family_tables import BLOCKS, has_language_model, published, table, with_blocks
from harness import Benchmark

from models.retrieval import Preset, list_models

PAGE = Path(__file__).parents[1] / "docs" / "models.md"


def main() -> None:
    """Measure; write the page if asked."""
    question = "How large is every model of the family, and is that as large as the public code?"
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--write", action="store_true", help="put all tables into docs/models.md")
    bench = Benchmark(question, parser)
    sizes = {name: (size(name, "fixed"), size(name, "release")) for name in list_models()}
    for name, (fixed, release) in sizes.items():
        bench.figure(f"{name}: trained", fixed.trained / 1e6, "M")
        bench.figure(f"{name}: predict", fixed.predict / 1e9, "GFLOP")
        bench.figure(f"{name}: train, forward", fixed.train / 1e9, "GFLOP")
        if name in PUBLIC:
            parameters, flops = PUBLIC[name]
            apart = 100 * abs(release.parameters / 1e6 / parameters - 1)
            bench.figure(f"{name}: parameters against {parameters} M", apart, "%", at_most=5)
            factor = release.train / 1e9 / flops
            bench.figure(f"{name}: train, forward, of {flops} GFLOP", factor, "x")
    if bench.args.write:
        rows = [cells(name, *both) for name, both in sizes.items()]
        texts = {"sizes": table(HEADER, rows)} | {name: text() for name, text in BLOCKS.items()}
        PAGE.write_text(with_blocks(PAGE.read_text(), texts))
    bench.finish()


def size(name: str, preset: Preset) -> Size:
    """Of a model at its published size."""
    return measure(lambda: published(name, preset), without_numbers=has_language_model(name))


if __name__ == "__main__":
    main()
