"""`trainer llm-feasibility`: the study of LLMEPET §3 on embeddings and LLaMA layers of your own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from data.errors import UsageError
from data.store.files import atomic_write
from data.terminal import new_table, plain_console
from training.llm_layers_command import numbers_of
from training.options import (
    JsonOption,
    answered,
    check_writable,
    console_beside,
    tell,
    tell_written,
    write_json,
)

if TYPE_CHECKING:
    from training.feasibility.refining import Control
    from training.feasibility.study import Outcome, Setting

__all__ = ["feasibility_commands", "points"]

feasibility_commands = typer.Typer()

_MOST_IN_MATRIX = 64


@feasibility_commands.command("llm-feasibility")
@answered
def feasibility_command(
    triplets: Annotated[
        Path, typer.Option("--triplets", help='JSONL of {"a", "b", "c"}; a and b are the pair.')
    ],
    embeddings: Annotated[
        Path, typer.Option("--embeddings", help="NPZ with one vector per concept, by its name.")
    ],
    llama_layers: Annotated[
        Path, typer.Option("--llama-layers", help="File that `trainer llm-layers` wrote.")
    ],
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", help="Zero-based numbers, as 13-16; may be repeated."),
    ] = None,
    alpha: Annotated[str, typer.Option("--alpha", help="START:STOP:STEP or a list.")] = "0:1:0.1",
    p: Annotated[str, typer.Option("--p", help="START:STOP:STEP or a list.")] = "0:1:0.25",
    control: Annotated[
        list[str] | None, typer.Option("--control", help="Only this one; may be repeated.")
    ] = None,
    context: Annotated[
        Literal["triplet", "all", "single"],
        typer.Option("--context", help="What a concept is refined together with."),
    ] = "triplet",
    lift: Annotated[
        Literal["pad", "orth", "tile"],
        typer.Option("--lift", help="How vectors get the width of the LLM."),
    ] = "pad",
    similarity: Annotated[Literal["cos", "dot"], typer.Option("--sim")] = "cos",
    before: Annotated[
        Literal["text", "fused"],
        typer.Option("--before", help="Vectors that say what was unreasonable."),
    ] = "text",
    final_norm: Annotated[Literal["loaded", "ones", "none"], typer.Option("--final-norm")] = (
        "loaded"
    ),
    rope: Annotated[bool, typer.Option("--rope", help="Rotary positions.")] = False,
    causal: Annotated[bool, typer.Option("--causal", help="Read only tokens before.")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Draws of what is random.")] = 5,
    resamples: Annotated[int, typer.Option("--ci-samples", min=1)] = 2000,
    level: Annotated[float, typer.Option("--ci-level")] = 0.95,
    device: Annotated[
        str, typer.Option("--device", help="Where layers run: cpu, cuda, or auto, a GPU if any.")
    ] = "auto",
    figure_path: Annotated[Path | None, typer.Option("--figure", help="SVG to write.")] = None,
    json_path: JsonOption = None,
) -> None:
    """Do layers of an LLM mend wrong similarities of concepts, more than controls do?

    A triplet is unreasonable if its pair is less alike than one of them and the third concept.
    """
    from models.llama_files import read_layers
    from training.distributed import device_of
    from training.feasibility.figure import figure
    from training.feasibility.inputs import read_embeddings, read_triplets
    from training.feasibility.refining import CONTROLS
    from training.feasibility.study import Study

    console = console_beside(json_path)
    check_writable("--json", json_path)
    check_writable("--figure", figure_path)
    if not 0 < level < 1:
        raise UsageError(f"--ci-level is a share between 0 and 1, got {level}")
    unknown = [each for each in control or () if each not in CONTROLS]
    if unknown:
        raise UsageError(f"no control '{unknown[0]}'; allowed: {', '.join(CONTROLS)}")
    where = str(device_of(device, "--device"))
    found = read_triplets(triplets)
    held = read_layers(llama_layers)
    subsets = [tuple(numbers_of(each)) for each in layers or ()] or [tuple(held.layers)]
    absent = sorted({i for each in subsets for i in each} - set(held.layers))
    if absent:
        raise UsageError(
            f"--layers asks for layer {absent[0]}, and {llama_layers} holds "
            f"{', '.join(map(str, held.layers))}; write it with `trainer llm-layers --layers`"
        )
    study = Study(
        found,
        read_embeddings(embeddings, found.concepts),
        held,
        context=context,
        lift=lift,
        similarity=similarity,
        before=before,
        final_norm=final_norm,
        rope=rope,
        causal=causal,
        resamples=resamples,
        level=level,
        device=where,
    )
    chosen: list[Control] = [each for each in CONTROLS if control is None or each in control]
    cells = _settings(subsets, ["none", *chosen], points("--alpha", alpha), points("--p", p), seeds)
    outcomes = []
    for number, outcome in enumerate(study.run(cells), start=1):
        outcomes.append(outcome)
        if number in {1, len(cells)} or number % 50 == 0:
            plain_console(stderr=True).print(f"{number:,} of {len(cells):,} settings done")
    tell(
        console,
        f"{len(found.rows):,} triplets of {len(found.concepts):,} concepts, layers of "
        f"{held.source} on {where}; triplets are judged before by the {before} vectors. Seed 0 is "
        "shown.",
    )
    console.print(_table(outcomes, level))
    tell(console, _READING)
    if figure_path is not None:
        atomic_write(figure_path, figure(outcomes).encode())
    if json_path is not None:
        shown = len(found.concepts) <= _MOST_IN_MATRIX
        pair = study.matrices(cells[0]) if shown else None
        write_json(
            json_path,
            {
                "layers_of": held.source,
                "layers_sha256": held.sha256,
                "concepts": list(found.concepts) if shown else len(found.concepts),
                "triplets": len(found.rows),
                "options": study.options(),
                "outcomes": [each.json() for each in outcomes],
                "cosines": pair and {"before": pair[0].tolist(), "after": pair[1].tolist()},
            },
        )
    tell_written(console, "the figure is in", figure_path)
    tell_written(console, "the outcomes are in", json_path)


_READING = (
    "Net gain is (improved - deteriorated) of all triplets, p McNemar's exact test of it. The LLM "
    "has done something only where it is above every control: identity does nothing, "
    "random-weights are layers of the same shapes, mean-shift adds the mean token to all, and "
    "permuted asks the same layers about roles drawn by lot, of which a third are reasonable by "
    "chance. A cosine near 1 afterwards means that all concepts became one."
)


def points(option: str, text: str) -> list[float]:
    """Values in [0, 1] of `0:1:0.1` (both ends) or `0,0.3,1`.

    Raises:
        UsageError: another text, or a value outside.
    """
    try:
        pieces = [float(each) for each in text.replace(":", ",").split(",")]
    except ValueError:
        pieces = []
    if ":" in text and len(pieces) == 3 and pieces[2] > 0:
        start, stop, step = pieces
        count = math.floor((stop - start) / step + 1e-9) + 1
        pieces = [round(start + i * step, 10) for i in range(max(count, 0))]
    elif ":" in text:
        pieces = []
    if not pieces or not all(0 <= each <= 1 for each in pieces):
        raise UsageError(
            f"{option} takes values from 0 to 1 as START:STOP:STEP (0:1:0.1) or 0,0.3,1; "
            f"got '{text}'"
        )
    return list(dict.fromkeys(pieces))


def _settings(
    subsets: Sequence[tuple[int, ...]],
    controls: Sequence[Control],
    alphas: Sequence[float],
    ps: Sequence[float],
    seeds: int,
) -> list[Setting]:
    """All cells; where nothing random decides (α = 0 has no random vectors, so no p either) a
    cell is taken once."""
    from training.feasibility.study import Setting

    cells = [
        Setting(layers, control, alpha, p if alpha else min(ps), seed)
        for layers, control, seed, alpha, p in itertools.product(
            subsets, controls, range(seeds), alphas, ps
        )
    ]
    return list(dict.fromkeys(cells))


def _table(outcomes: Sequence[Outcome], level: float) -> Table:
    between = f"{100 * level:g} %>"
    table = new_table(
        "", "layers", "control", "α>", "p>", "improved>", "deteriorated>", "net gain>", between,
        "p-value>", "cosine>",
    )  # fmt: skip
    for each in outcomes:
        if each.setting.seed:
            continue
        low, high = each.difference_ci
        table.add_row(
            ",".join(map(str, each.setting.layers)),
            {"none": "-"}.get(each.setting.control, each.setting.control),
            f"{each.setting.alpha:g}",
            f"{each.setting.p:g}",
            f"{each.improved}/{each.unreasonable}",
            f"{each.deteriorated}/{each.reasonable}",
            f"{100 * each.difference:+.1f}",
            f"{100 * low:+.1f} … {100 * high:+.1f}",
            f"{each.p_value:.3g}",
            f"{each.cosine_before:.2f} → {each.cosine_after:.2f}",
        )
    return table
